"""Figures show the numbers of the results, as files that can be opened."""

import io
import itertools
import pathlib
import re
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image

from giung2_ext.core import masks as masking
from giung2_ext.reports import chain, drawing, gather, reading, report, summary
from giung2_ext.storage import paths, predictions, records, tickets

SHAPES = {"fc": (30, 20), "cls": (20, 4)}
DENSITIES = {"fc": 0.5, "cls": 0.75}


def make_masks(trial, cycle):
    """Density 1 at cycle 0 and less in every further one; nested."""
    draw = np.random.default_rng(trial)
    kept = {name: draw.random(shape) < DENSITIES[name] ** cycle for name, shape in SHAPES.items()}
    return {name: {"kernel": mask, "bias": None} for name, mask in kept.items()}


def make_chain(folder, trials):
    """A chain's folders as a run leaves them: tickets with a best, results, and one arm."""
    for t in range(trials):
        base = folder / f"trial_{t}" if trials > 1 else folder
        for place, cycle in (("000", 0), ("001", 1), ("002", 2), ("reinit/001", 1)):
            run, arm = base / place, "reinit" in place
            masks = make_masks(t + 50 * arm, cycle)
            params = {
                name: {"kernel": mask["kernel"] * 2.0, "bias": np.ones(4)} for name, mask in masks.items()
            }
            path, meta = tickets.write_ticket(
                run, params, masks, {}, {"seed": t, "arm": place, "num_classes": 4}
            )
            tickets.name_ticket(run, paths.best("accuracy"), path)
            accuracy = 0.9 - 0.1 * cycle + 0.01 * t - 0.2 * arm
            scores = {
                when: {
                    split: {"accuracy": accuracy - less, "loss": 0.1, "seen": 1400}
                    | {"correct": round((accuracy - less) * 1400)}
                    for split in ("holdout", "test")
                }
                for when, less in (("start", 0.4), ("best", 0.0), ("last", 0.01))
            }
            counts = {key: meta[key] for key in ("kept", "prunable", "parameters", "layers")}
            known = dict(selected_on="holdout", seed=t, steps=20, best_step=10)
            known["tickets"] = dict(best="b", last="l")
            records.write_result(run, {"scores": scores, "parents": {}, **known, **counts})
            recipe = {"seed": t, "optim": {"ni": 20}}
            recipe["evaluation"] = {"select_on": "holdout", "select_by": "accuracy"}
            records.record_session(run, recipe, {})
    return chain.read_chain(folder)


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path) / "chain"


def contents(folder):
    root = pathlib.Path(folder)
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def drawn(folder):
    """The charts of a folder by name."""
    gathered, reader = gather.gather([folder]), reading.Reader()
    rows, judged = summary.cycle_rows(gathered), summary.judged_rows(gathered)
    found = {chart.name: chart for chart in drawing.draw(gathered, rows, judged, reader)}
    assert reader.warnings == []
    return found


def line(chart, panel, series, *fields):
    """The rows of one line, a column a field."""
    own = [row for row in chart.rows if (row["panel"], row["series"]) == (panel, series)]
    return np.array([[row[field] for field in fields] for row in own])


@pytest.mark.parametrize("trials", [1, 3])
def test_accuracy_curves_are_the_results(trials, folder):
    points = make_chain(folder, trials)
    chart = drawn(folder)["accuracy_by_density"]
    density, shift = [points[c].density for c in range(3)], np.mean(range(trials))
    trained = line(chart, "trained", "tickets", "density", "value", "low", "high")
    assert trained[:, 0] == pytest.approx(np.array(density), rel=1e-4)
    assert trained[:, 1] == pytest.approx(np.array([90, 80, 70]) + shift)
    if trials > 1:  # the deviation of 0, 1, 2 is 1
        assert trained[:, 2:] == pytest.approx(trained[:, 1:2] + np.array([[-1, 1]]))
    else:  # Wilson's interval of 1,260 right of 1,400
        assert trained[0, 2:] == pytest.approx(np.array([88.3, 91.5]), abs=0.1)
    [control] = line(chart, "trained", "reinit", "density", "value")
    own = next(p.density for p in points if p.arm)
    assert control == pytest.approx(np.array([own, 60 + shift]), rel=1e-4)
    untrained = line(chart, "before the first step", "tickets", "value", "density")
    assert untrained[:, 0] == pytest.approx(np.array([50, 40, 30]) + shift)
    guessed = line(chart, "before the first step", "chance", "density", "value")
    assert {*guessed[:, 0]} == {*untrained[:, 1], *control[:1]}  # wherever something is drawn
    assert {*guessed[:, 1]} == {25}


def test_the_density_of_layers_is_what_the_first_trial_kept(folder):
    make_chain(folder, 2)
    found = {
        (r["cycle"], r["layer"]): r["density"]
        for r in drawn(folder)["layer_densities"].rows
        if r["series"] == "tickets"
    }
    wanted = {(c, n): make_masks(0, c)[n]["kernel"].mean() for c in range(3) for n in SHAPES}
    assert found == pytest.approx(wanted, rel=1e-4)


def test_overlap_shows_cycles_of_one_trial_and_chance_between_trials(folder):
    make_chain(folder, 2)
    charts = drawn(folder)
    grid = {(r["a"], r["b"]): r["overlap"] for r in charts["mask_overlap"].rows if r["series"] == "tickets"}
    pairs = list(itertools.combinations(range(3), 2))
    wanted = {(a, b): masking.overlap(make_masks(0, a), make_masks(0, b)) for a, b in pairs}
    assert grid == pytest.approx(wanted, rel=1e-4)
    between = [masking.overlap(make_masks(0, c), make_masks(1, c)) for c in range(3)]
    chart = charts["mask_overlap_pairs"]
    assert line(chart, "tickets", "measured", "value")[:, 0] == pytest.approx(between, rel=1e-4)
    chance = line(chart, "tickets", "chance", "value")[:, 0]
    assert chance[0] == 1
    assert chance == pytest.approx(np.array(between), abs=0.08)  # these masks are independent


@pytest.mark.parametrize("trials", [1, 2])
def test_shifts_are_drawn_with_their_intervals_or_deviations(trials, folder):
    for p in make_chain(folder, trials):
        if not p.arm:
            value = 0.3 + 0.02 * p.cycle + 0.01 * p.trial
            scores = {"200": {"top1": [value, value - 0.1, value + 0.05]}, "all": {"top1": [0, 0, 0]}}
            about = dict(dataset="imagenet_a", pipeline="timm", images="x", seen=7500, ticket="b")
            labels = np.arange(8) % 4
            arrays = {"ids": np.arange(8), "labels": labels, "top": labels[:, None]}
            arrays["confidence"] = np.linspace(0.5, 1, 8)
            predictions.write(predictions.folder_in(p.folder, "b"), about | {"scores": scores}, arrays)
    found = line(drawn(folder)["sets_by_density"], "IN-A", "tickets", "value", "low", "high")
    mean = np.array([30, 32, 34]) + (0.5 if trials == 2 else 0)
    assert found[:, 0] == pytest.approx(mean)
    sd = np.sqrt(0.5)  # of two values 1 apart
    ends = np.tile([-10, 5] if trials == 1 else [-sd, sd], (3, 1))
    assert found[:, 1:] == pytest.approx(mean[:, None] + ends, rel=1e-4)


@pytest.mark.parametrize("trials", [1, 2])
def test_a_report_is_files_that_open_and_changes_nothing_else(trials, folder, capsys):
    make_chain(folder, trials)
    before = contents(folder)
    report.write([folder])
    after = contents(folder)
    names = {"accuracy_by_density", "layer_densities", "mask_overlap", "mask_overlap_pairs"}
    names |= {"weight_sizes", "lineage"}
    figures = {f"figures/{name}.{kind}" for name in names for kind in ("png", "pdf")}
    kinds = ("md", "csv", "tex")
    tables = {
        f"tables/{name}.{kind}" for name in names | {"summary", *["means"] * (trials > 1)} for kind in kinds
    }
    tables |= {f"{name}.{kind}" for name in ("table", "costs") for kind in kinds}
    tables |= {"report.md", "report.html", "runs.csv", "results.csv", "test_acc.csv"}
    assert set(after) - set(before) == {f"report/{name}" for name in tables | figures}
    assert {name: after[name] for name in before} == before
    for name in sorted(figures):
        content = (folder / "report" / name).read_bytes()
        if name.endswith("pdf"):
            assert content.startswith(b"%PDF-")
            assert content.rstrip().endswith(b"%%EOF")
        else:
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
            assert np.std(Image.open(io.BytesIO(content)).convert("L")) > 5  # not blank
    text, said = (folder / "report/report.md").read_text(), capsys.readouterr().out
    assert (folder / "report/table.md").read_text() in text
    assert all(f"({name})" in text for name in figures if name.endswith("png"))
    assert (folder / "report/table.md").read_text() in said
    assert (
        f"report: {folder}/report/ with report.html, 6 charts in figures/, tables/, report.md and" in said
    )


def test_elsewhere_text_and_figures_lie_together(folder, tmp_path):
    make_chain(folder, 1)
    before = contents(folder)
    report.write([folder], out=epath.Path(tmp_path) / "out")
    assert contents(folder) == before
    text = (tmp_path / "out/report.md").read_text()
    for name in re.findall(r"\]\((figures/\w+\.png)\)", text):
        assert (tmp_path / "out" / name).exists()
    assert "](figures/" in text


@pytest.mark.parametrize("package", ["altair", "vl_convert", "jinja2"])
def test_without_a_package_of_the_page_there_are_tables_and_a_word_on_it(
    package, folder, monkeypatch, capsys
):
    make_chain(folder, 1)
    monkeypatch.setitem(sys.modules, package, None)
    report.write([folder])
    said = capsys.readouterr().out
    assert f"no page and no figures: the page needs {package}" in said
    assert f"report: {folder}/report/ with report.md and its tables" in said
    assert not (folder / "report/figures").exists()
    assert "![" not in (folder / "report/report.md").read_text()
