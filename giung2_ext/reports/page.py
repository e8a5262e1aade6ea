"""The report as one page that needs no network, and its figures and tables as files beside it.

`report.html` holds the data of every chart once, their Vega-Lite specifications and one Vega bundle.
"""

import base64
import datetime
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.reports import drawing, gather, measure, summary, tables, themes, warnings
from giung2_ext.reports.charts import Chart
from giung2_ext.reports.gather import Gathered
from giung2_ext.reports.reading import Reader, Row
from giung2_ext.storage import paths

PAGE = "report.html"
Pictures = Callable[[Mapping[str, Any], str, int], bytes | None]
"""A JPEG of an example of a set, from what a ticket says of its data; None where the data is not at hand"""
Names = Callable[[str], Sequence[str] | None]
"""What the classes of a set are called, by label"""


class Absent(Refusal):
    """A package that the page needs."""


class Written(NamedTuple):
    folder: epath.Path
    charts: list[Chart]
    warnings: list[str]
    means: tables.Table  # over trials, where there are several


def listed(rows: Sequence[Row]) -> tables.Table:
    return (
        [list(rows[0]), *([str(v) if v is not None else "–" for v in r.values()] for r in rows)]
        if rows
        else []
    )


def listings(gathered: Gathered, rows: Sequence[Row]) -> list[tuple[str, str, str, tables.Table]]:
    """Tables without a chart: how each row was made, with what, by which recipe."""
    commands = [
        {k: r[k] for k in ("series", "trial", "cycle", "state", "why", "folder", "command")} for r in rows
    ]
    found = [
        (
            "means",
            "Means over trials",
            "Of each run's finished trials; ± is the standard deviation (n - 1).",
            summary.means(rows),
        ),
        (
            "commands",
            "Commands",
            "What to type for each row; the same command continues it.",
            listed(commands),
        ),
        (
            "environment",
            "Environment",
            "Of each run's latest session.",
            listed(measure.environment_rows(gathered)),
        ),
        (
            "config",
            "Recipe",
            "Of the first run in each; what differs comes first.",
            listed(measure.recipe_rows(gathered)),
        ),
    ]
    return [one for one in found if one[3]]


def script_text(value: Any) -> str:
    """JSON that cannot end a script element."""
    return json.dumps(
        value, separators=(",", ":"), ensure_ascii=False, default=float, allow_nan=False
    ).replace("<", "\\u003c")


@functools.cache
def bundle() -> str:
    import vl_convert

    return vl_convert.javascript_bundle().replace("</script", "<\\/script")


def file_of(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def pictured(
    rows: Sequence[Row], gathered: Gathered, pictures: Pictures | None, names: Names | None, reader: Reader
) -> list[Row]:
    """With their pictures, and their classes by name where they have one."""
    runs = {summary.key(summary.named(run)): run for run in gathered.shown}
    found = []
    for row in rows:
        meta, picture = runs[summary.key(row)].meta, None
        if pictures is not None:
            what = f"the picture of example {row['example']} of {row['dataset']}"
            picture = reader.read(
                what, lambda row=row, meta=meta: pictures(meta, row["dataset"], row["example"]), None
            )
        encoded = base64.b64encode(picture).decode() if picture else None
        called = names(row["dataset"]) if names is not None else None
        if called is not None:
            row = row | {field: called[row[field]] for field in ("label", "pruned_answer")}
        found.append(row | {"picture": f"data:image/jpeg;base64,{encoded}" if encoded else None})
    return found


def render(
    gathered: Gathered,
    rows: Sequence[Row],
    table: tables.Table,
    drawn: Sequence[Chart],
    flips: Sequence[Row],
    told: Sequence[str],
    watch: int | None,
) -> str:
    import jinja2

    more = listings(gathered, rows)
    states = [run.state for run in gathered.shown]
    one = "run" if len(states) == 1 else "runs"
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    sections = [("warnings", "Warnings"), ("summary", "Summary"), *((c.name, c.title) for c in drawn)]
    sections += [("flips", "Flips"), *((one[0], one[1]) for one in more)]
    data = {
        "series": gathered.series,
        "themes": themes.THEMES,
        "charts": {c.name: {"spec": c.spec, "columns": c.columns, "values": c.values} for c in drawn},
    }
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    return environment.from_string(file_of("page.html")).render(
        title=", ".join(gathered.names),
        counts=f"{len(states)} {one}: {counts}.",
        written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        watch=watch,
        series=gathered.series,
        sections=sections,
        warnings=told,
        about=warnings.about(gathered),
        summary=table,
        trials=sorted({run.place.trial for run in gathered.shown}),
        body=[(cells, row["series"], row["trial"]) for cells, row in zip(table[1:], rows, strict=True)],
        charts=drawn,
        flips=flips,
        pictured=any(row["picture"] for row in flips),
        listings=more,
        data=script_text(data),
        css=file_of("page.css"),
        js=file_of("page.js"),
        bundle=bundle(),
    )


def write_files(
    drawn: Sequence[Chart],
    summarised: tables.Table,
    averaged: tables.Table,
    rows: Sequence[Row],
    out: epath.Path,
) -> None:
    """Every figure as PNG and PDF, and the data of each and the summary as tables.

    The summary is as it is read in .md and .tex, and plain numbers in .csv.
    """
    import vl_convert

    for folder in ("figures", "tables"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for chart in drawn:
        spec = vl_convert.vegalite_to_vega(chart.whole)
        for legend in spec.get("legends", ()):
            if legend.get("symbolType") != "stroke":  # a dash would break outlines, as page.js knows too
                legend.pop("strokeDash", None)
        paths.write_bytes(out / f"figures/{chart.name}.png", vl_convert.vega_to_png(spec, scale=2))
        paths.write_bytes(out / f"figures/{chart.name}.pdf", vl_convert.vega_to_pdf(spec))
        cells = [["" if v is None else str(v) for v in row] for row in chart.values]
        tables.write(out / "tables", chart.name, [chart.columns, *cells], tables.write_csv)
    if averaged:
        tables.write(out / "tables", "means", averaged)
    plain = [["" if v is None else str(v) for v in row.values()] for row in rows]
    tables.write(
        out / "tables", "summary", summarised, lambda table: tables.write_csv([[*rows[0]], *plain])
    )


def write_page(
    folders: Sequence[epath.Path],
    out: epath.Path,
    watch: int | None = None,
    pictures: Pictures | None = None,
    names: Names | None = None,
) -> Written:
    """Reads the runs and writes page, figures and tables; the page last."""
    try:
        import altair  # noqa: F401
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise Absent(f"the page needs {error.name}: pip install -e . installs it") from None
    gathered, reader = gather.gather(folders), Reader()
    rows, judged = summary.cycle_rows(gathered), summary.judged_rows(gathered)
    table = summary.table(rows, judged)
    drawn = drawing.draw(gathered, rows, judged, reader)
    flips = pictured(measure.flip_rows(gathered, reader), gathered, pictures, names, reader)
    told = list(dict.fromkeys([*warnings.warnings(gathered), *gathered.warnings, *reader.warnings]))
    averaged = summary.means(rows)
    write_files(drawn, table, averaged, summary.plain(rows, judged), out)
    page = render(gathered, rows, table, drawn, flips, told, watch)
    paths.write_bytes(out / PAGE, page.encode())
    return Written(out, drawn, told, averaged)
