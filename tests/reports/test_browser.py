"""The page in a real browser, opened from disk."""

import json
import shutil

import numpy as np
import pytest
from etils import epath
from test_figures import make_chain
from test_page import judge

from giung2_ext.reports import page

pytest.importorskip("playwright", reason="needs '.[browser]' (2026-11-27)")
from playwright import sync_api as playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium (2026-11-27)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = epath.Path(tmp_path_factory.mktemp("browser")) / "chain"
    for point in make_chain(folder, 2):
        if not point.arm and point.trial == 0:
            judge(point.folder, "b", "imagenet_a", 0.8 - 0.1 * point.cycle)
    return page.write_page([folder], folder / "report").folder / page.PAGE


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, report):
    """Opens the page; what it asked for and what it complained of are kept with it."""
    pages = []

    def open_page(width=1200, scheme="light"):
        one = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        one.asked, one.complaints = [], []
        one.on("request", lambda request: one.asked.append(request.url))
        one.on("console", lambda message: one.complaints.append(message.text))
        one.on("pageerror", lambda error: one.complaints.append(str(error)))
        one.goto(f"file://{report}")
        one.wait_for_selector("html[data-ready=yes]", timeout=60_000)
        pages.append(one)
        return one

    yield open_page
    for one in pages:
        one.close()


def test_it_loads_from_disk_without_network_and_without_complaint(opened, report):
    one = opened()
    assert [url for url in one.asked if not url.startswith("data:")] == [f"file://{report}"]
    assert one.complaints == []
    dashed = "[...document.querySelectorAll('.role-legend-symbol path')]"
    dashed += ".filter((e) => e.getAttribute('stroke-dasharray') && e.getAttribute('d').includes('A'))"
    assert one.evaluate(f"{dashed}.length") == 0  # outlines of circles
    charts = one.locator(".chart")
    assert charts.count() >= 8
    for i in range(charts.count()):
        assert charts.nth(i).locator("svg path").count() > 5


def test_hovering_shows_the_numbers(opened):
    one = opened()
    mark = one.locator("#chart-accuracy_by_density .mark-symbol.role-mark path").first
    mark.scroll_into_view_if_needed()
    mark.hover(force=True)
    one.wait_for_selector("#vg-tooltip-element.visible")
    assert "density" in one.inner_text("#vg-tooltip-element")


def points(one):
    return one.locator("#chart-accuracy_by_density .mark-symbol.role-mark path").count()


def test_a_filter_takes_a_series_out_of_charts_and_summary(opened):
    one = opened()
    before, rows = points(one), one.locator("#summary-table tbody tr:visible").count()
    one.locator("input[value=reinit]").uncheck()
    one.wait_for_function(
        f"document.querySelectorAll('#chart-accuracy_by_density .mark-symbol.role-mark path')"
        f".length < {before}"
    )
    assert one.locator("#summary-table tbody tr:visible").count() == rows - 2
    one.fill("#words", "002")
    assert one.locator("#summary-table tbody tr:visible").count() == 2


def test_a_filter_takes_a_trial_out_of_the_summary_and_of_what_shows_it_by_itself(opened):
    one = opened()
    rows = one.locator("#summary-table tbody tr:visible").count()
    assert one.locator("input[data-trial]").count() == 2
    one.locator("input[data-trial][value='1']").uncheck()
    assert one.locator("#summary-table tbody tr:visible").count() == rows / 2
    trials = one.evaluate(
        "() => report.charts.sets_by_density && rowsOf({columns: ['trial'], values: [[0], [1], [null]]})"
        ".filter((row) => shown(row, filter())).map((row) => row.trial ?? 'all')"
    )
    assert trials == [0, "all"]


def test_the_summary_sorts_by_keyboard(opened):
    one = opened()
    button = one.locator("#summary-table th button", has_text="weights left")
    button.focus()
    place = one.evaluate(
        "[...document.querySelectorAll('#summary-table th')]"
        ".findIndex(th => th.textContent === 'weights left')"
    )
    for order in ("ascending", "descending"):
        one.keyboard.press("Enter")
        cells = one.locator(f"#summary-table tbody td:nth-child({place + 1})").all_inner_texts()
        values = [int(cell.replace(",", "")) for cell in cells]
        assert values == sorted(values, reverse=order == "descending")
        assert one.locator("#summary-table th[aria-sort]").get_attribute("aria-sort") == order


def test_every_chart_has_its_data_and_downloads(opened):
    one = opened()
    for details in one.locator("details[data-of]").all():
        details.locator("summary").click()
        details.locator("tbody tr").first.wait_for()  # filled once the browser says that it is open
    for link in one.locator("a[data-csv]").all():
        assert link.get_attribute("href").startswith("data:text/csv")
    for chart in one.locator(".chart").all():
        assert len(chart.get_attribute("aria-label")) > 40


def luminance(colour):
    value = np.array([float(v) for v in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
    return np.where(value <= 0.03928, value / 12.92, ((value + 0.055) / 1.055) ** 2.4) @ [
        0.2126,
        0.7152,
        0.0722,
    ]


def contrast(a, b):
    low, high = sorted(luminance(c) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


SEEN = """() => {
  const back = (e) => { while (e) { const c = getComputedStyle(e).backgroundColor;
    if (!c.startsWith('rgba(0, 0, 0, 0')) return c; e = e.parentElement; } return 'rgb(255, 255, 255)'; };
  const words = 'h1,h2,p,a,td,th button,label,legend,figcaption,summary,li';
  const texts = [...document.querySelectorAll(words)]
    .filter((e) => e.offsetParent).map((e) => [getComputedStyle(e).color, back(e), 4.5]);
  const charts = [...document.querySelectorAll('.chart svg text')]
    .map((e) => [getComputedStyle(e).fill, e]);
  return texts.concat(charts.filter(([, e]) => !e.closest('.mark-text.role-mark'))
    .map(([c, e]) => [c, getComputedStyle(e.closest('svg')).backgroundColor, 4.5]));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_can_be_read(scheme, opened):
    one = opened(scheme=scheme)
    assert one.get_attribute("html", "data-theme") == scheme
    pairs = {tuple(found) for found in one.evaluate(SEEN)}
    assert len(pairs) >= 3
    page_back = one.evaluate("getComputedStyle(document.body).backgroundColor")
    for colour, back, least in pairs:
        back = page_back if back.startswith("rgba(0, 0, 0, 0") else back
        assert contrast(colour, back) >= least, f"{colour} on {back}"
    one.click("#theme")
    assert one.get_attribute("html", "data-theme") != scheme


def test_a_phone_shows_it_without_scrolling_sideways(opened):
    one = opened(width=390)
    assert one.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_paper_is_light_and_the_screen_is_afterwards_what_it_was(scheme, opened):
    one = opened(scheme=scheme)
    grounds = "() => [...document.querySelectorAll('.chart svg')].map((e) => "
    grounds += "getComputedStyle(e).backgroundColor)"
    before = one.evaluate(grounds)
    drawn = one.evaluate(  # what a browser prints is what is there when no event is left to handle
        f"(event) => {{ dispatchEvent(new Event(event));"
        f" return new Promise((done) => setTimeout(() => done(({grounds})()))); }}",
        "beforeprint",
    )
    assert len(drawn) >= 8
    assert {*drawn} == {"rgb(255, 255, 255)"}
    one.evaluate("dispatchEvent(new Event('afterprint'))")
    one.wait_for_function(f"({grounds})().join() === {json.dumps(','.join(before))}")
