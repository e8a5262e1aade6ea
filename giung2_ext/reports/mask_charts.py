"""Charts of masks: what each layer keeps, what masks have in common, what was cut, and what moved."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from giung2_ext.reports import charts, mask_history, measure, summary, tables, themes
from giung2_ext.reports.charts import Chart
from giung2_ext.reports.gather import Gathered
from giung2_ext.reports.reading import Reader, Row
from giung2_ext.storage import records


def layers(gathered: Gathered) -> Chart | None:
    caption = (
        "Kept part of every layer's weights, first trial. Colour is the density on a logarithmic "
        "scale; the table has the counts."
    )
    rows = [r | {"density": max(r["density"], 1e-5)} for r in measure.layer_rows(gathered)]
    titles = ("cycle", "layer", "density")
    build = lambda r: charts.heat(r, "cycle", "layer", "density", titles, log=True)  # noqa: E731
    return charts.made("layer_densities", "Density of every layer", caption, rows, build)


def overlaps(gathered: Gathered, masks: dict[int, measure.Packed]) -> list[Chart | None]:
    found, known = measure.overlap_rows(gathered, masks), densities(gathered)
    arms = {run.series for run in gathered.shown if run.place.arm}
    within = [
        {k: r[k] for k in ("series", "a", "b", "overlap")}
        for r in found
        if r["kind"] == "cycles" and r["series"] not in arms
    ]
    between = [r | {"cycle": r["a"]} for r in found if r["kind"] != "cycles"]
    rows: list[Row] = []
    for pair in dict.fromkeys(r["pair"] for r in between):
        for cycle in sorted({r["cycle"] for r in between if r["pair"] == pair}):
            own = [r for r in between if r["pair"] == pair and r["cycle"] == cycle]
            for what in ("overlap", "chance"):
                values = [r[what] for r in own]
                row = {"panel": pair, "series": "measured" if what == "overlap" else what, "cycle": cycle}
                row |= {"run": own[0]["run"], "other": own[0]["other"]}
                density = known.get((own[0]["series"], cycle))
                ends = {"low": float(min(values)), "high": float(max(values)), "pairs": len(values)}
                rows.append(row | {"density": density, "value": float(np.mean(values))} | ends)
    cycles = (
        "Kept by both over kept by either, |a and b| / |a or b|, between the tickets of the first trial."
    )
    pairs = (
        "Overlap of masks between trials, and between methods (arms or runs) of the same trial, at one "
        "cycle; bars from the lowest to the highest pair. Chance: masks of the same layer densities, drawn "
        "by themselves."
    )
    heat = lambda r: charts.heat(r, "a", "b", "overlap", ("cycle", "cycle", "overlap"))  # noqa: E731
    lines = lambda r: charts.by_density(r, "overlap", zero=True)  # noqa: E731
    rows = [r for r in rows if r["density"]]
    return [
        charts.made("mask_overlap", "Mask overlap between cycles", cycles, within, heat),
        charts.made("mask_overlap_pairs", "Mask overlap between trials and methods", pairs, rows, lines),
    ]


def densities(gathered: Gathered) -> dict[tuple[str, int], float]:
    found = {(run.series, run.cycle): summary.density(run) for run in gathered.shown}
    return {where: float(value) for where, value in found.items() if value}


def weights(gathered: Gathered, masks: dict[int, measure.Packed], reader: Reader) -> Chart | None:
    rows = measure.weight_rows(gathered, masks, reader)
    cycles = sorted({r["cycle"] for r in rows})
    chosen = {cycles[i] for i in tables.thinned(len(cycles), 6)}
    rows = [r | {"panel": f"{r['series']}, cycle {r['cycle']:03d}"} for r in rows if r["cycle"] in chosen]
    caption = (
        "Sizes of the weights that the ticket before ended with, by octaves of |w|: all that it "
        "kept (before), and those of them that this cycle's mask keeps (after). First trial, at "
        "most six cycles."
    )
    return charts.made("weight_sizes", "Weights before and after pruning", caption, rows, charts.weights)


def masks_over_time(gathered: Gathered, reader: Reader) -> list[Chart | None]:
    """Of every series' first run whose mask changed while it trained."""
    found, firsts = [], gathered.firsts
    for run in gathered.shown:
        moved = run.place.folder / records.MOVES
        first = run.place.plain and run.place.trial == firsts[run.series]
        if first and moved.exists() and run.counts.get("layers"):
            found.append(reader.read(f"{moved}", lambda run=run: mask_history.rows_of(run), ([], [])))
    return moving(found)


def moving(found: Sequence[tuple[list[Row], list[Row]]]) -> list[Chart | None]:
    """Layers and moves of each run: lines of few layers, of many a map."""
    layers, moves = [row for own, _ in found for row in own], [row for _, own in found for row in own]
    few = len({row["series"] for row in layers}) <= len(themes.SHAPES)
    titles = ("step", "density of the layer")

    def build(rows: list[Row]) -> Any:
        if few:
            return charts.along(rows, "step", titles, type="log")
        return charts.heat(rows, "step", "series", "value", ("step", "layer", "density"), True, "panel")

    kept = "Kept part of every layer's weights at each update of the mask, and of all of them together."
    new = (
        "What part of the mask each update brought in, and which part of all prunable weights is kept, or "
        "was kept by any mask so far."
    )
    lines = lambda r: charts.along(r, "step", ("step", None), zero=True)  # noqa: E731
    return [
        charts.made("layers_over_time", "Density of every layer over time", kept, layers, build),
        charts.made("moves", "What moved at every update", new, moves, lines),
    ]
