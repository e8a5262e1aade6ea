"""Which charts a report has, from the rows of its runs, and what the lines below them say."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from giung2_ext.reports import charts, lottery, mask_history, measure, published, results, summary
from giung2_ext.reports.chain import Point
from giung2_ext.reports.charts import Chart
from giung2_ext.reports.gather import Gathered, Reader, Row
from giung2_ext.reports.tables import SHIFTS
from giung2_ext.storage import paths, records

BASE = "imagenet2012"


def draw(gathered: Gathered, cycles: Sequence[Row], judged: Sequence[Row], reader: Reader) -> list[Chart]:
    """Every chart that there is something for."""
    masks = measure.masks_of(gathered, reader)
    own = chains(gathered, reader)
    parts: dict[str, Callable[[], Sequence[Chart | None]]] = {
        "accuracy": lambda: [accuracy(cycles, gathered)],
        "the sets": lambda: [shifts(judged), robustness(judged)],
        "learning": lambda: [learning(gathered, reader)],
        "early stops": lambda: [lottery.early_stops(own)],
        "training curves": lambda: [lottery.curves(own)],
        paths.INSTABILITY: lambda: lottery.instability(own),
        records.MOVES: lambda: masks_over_time(gathered, reader),
        "layers": lambda: [layers(gathered)],
        "overlaps": lambda: overlaps(gathered, masks),
        "weights": lambda: [weights(gathered, masks, reader)],
        "calibration": lambda: [reliability(gathered, reader), calibration(judged)],
        "lineage": lambda: [lineage(gathered)],
    }
    found = [chart for what, build in parts.items() for chart in reader.read(what, build, [])]
    return [charts.alike(chart, gathered.series) for chart in found if chart is not None]


def spread(rows: Sequence[Row]) -> str:
    trials = max(len({r["trial"] for r in rows if r["series"] == s}) for s in {r["series"] for r in rows})
    return (
        f"mean of {trials} trials, bars of one standard deviation"
        if trials > 1
        else "one trial, bars of its 95% interval"
    )


def averaged(rows: Sequence[Row], value: str, ends: tuple[str, str] | None, panel: str) -> list[Row]:
    """Means over trials with deviations; of one trial its interval, where it has one."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row.get(value) is not None and row["density"]:
            groups.setdefault((row["series"], row["cycle"]), []).append(row)
    found = []
    for (series, cycle), own in groups.items():
        mean, low, high = measure.spans([row[value] for row in own])
        if len(own) == 1 and ends is not None and own[0][ends[0]] is not None:
            low, high = own[0][ends[0]], own[0][ends[1]]
        row = {"panel": panel, "series": series, "cycle": cycle, "density": float(own[0]["density"])}
        found.append(
            row | {"value": float(mean), "low": float(low), "high": float(high), "trials": len(own)}
        )
    return found


def accuracy(cycles: Sequence[Row], gathered: Gathered) -> Chart | None:
    rows = averaged(cycles, "test", ("test_low", "test_high"), "trained")
    untrained = averaged(cycles, "start", None, "before the first step")
    rows += untrained
    classes = {run.meta.get("num_classes") for run in gathered.shown if run.result}
    several = len({row["density"] for row in untrained}) > 1
    if several and len(classes) == 1 and (count := classes.pop()):
        guess = {"series": "chance", "value": 100 / count, "low": None, "high": None, "trials": None}
        by_cycle = {row["cycle"]: row | guess for row in untrained}
        rows += by_cycle.values()
    caption = (
        "Test accuracy of the selected ticket, and of the same ticket before its first step, "
        f"against the kept part of the prunable weights; {spread(cycles)}. Intervals are Wilson's, of "
        "trained ones."
    )
    build = lambda r: charts.by_density(r, "test accuracy (%)")  # noqa: E731
    return charts.made("accuracy_by_density", "Accuracy against density", caption, rows, build)


def shifts(judged: Sequence[Row]) -> Chart | None:
    rows: list[Row] = []
    for name in summary.sets_of(judged):
        title = SHIFTS.get(name, name)
        own = [r for r in judged if r["dataset"] == name]
        rows += averaged(own, "top1", ("low", "high"), title)
        rows += averaged(
            [r | {"trial": 0} for r in published.rows() if r["dataset"] == name], "top1", None, title
        )
    if not rows:
        return None
    pipelines = ", ".join(sorted({r["pipeline"] for r in judged}))
    caption = (
        f"Top-1 of the selected ticket on each set, pipeline {pipelines}; {spread(judged)}. "
        "Intervals are of a bootstrap."
    )
    if any(r["series"] == published.NAME for r in rows):
        caption += f" {published.ABOUT}, where the set is one of its five."
    build = lambda r: charts.by_density(r, "top-1 (%)")  # noqa: E731
    return charts.made("sets_by_density", "Accuracy on every judged set", caption, rows, build)


def robustness(judged: Sequence[Row]) -> Chart | None:
    """None where nothing was judged on both ImageNet and a shifted set."""
    everything = [*judged, *(r | {"trial": 0, "run": ""} for r in published.rows())]
    base = {summary.key(r): r["top1"] for r in everything if r["dataset"] == BASE}
    wanted = [name for name in summary.sets_of(judged) if name in SHIFTS and name != BASE]
    rows = [
        {
            "panel": SHIFTS[r["dataset"]],
            "series": r["series"],
            "trial": r["trial"],
            "cycle": r["cycle"],
            "density": float(r["density"]),
            "unshifted": base[summary.key(r)],
            "shifted": r["top1"],
        }
        for r in everything
        if r["dataset"] in wanted and summary.key(r) in base and r["density"]
    ]
    if all(r["series"] == published.NAME for r in rows):
        return None
    caption = (
        "Top-1 on a shifted set against top-1 on ImageNet, one point a ticket: above the "
        f"published line is more robust than its accuracy explains. {published.ABOUT}."
    )
    return charts.made("robustness", "Effective robustness", caption, rows, charts.scatter)


def chains(gathered: Gathered, reader: Reader) -> dict[str, lottery.Chain]:
    """The finished cycles of every chain, by its name where there are several."""
    runs = [run for run in gathered.shown if not run.place.plain]
    found = {}
    for name in dict.fromkeys(run.place.run for run in runs):
        own = [run for run in runs if run.place.run == name and run.result]
        points = [Point(r.place.trial, r.place.arm, r.cycle, r.place.folder, dict(r.result)) for r in own]
        if points:
            root, lasts = own[0].place.root, {run.result["tickets"].get("last") for run in own}
            curves = reader.read(f"{root}: {records.METRICS}", lambda p=points: results.read_curves(p), {})
            unstable = reader.read(
                f"{root / paths.INSTABILITY}", lambda r=root, t=lasts: results.read_instability(r, t), None
            )
            found[name if gathered.several else ""] = lottery.Chain(points, curves, unstable)
    return found


def masks_over_time(gathered: Gathered, reader: Reader) -> list[Chart | None]:
    """Of runs whose mask changed while they trained."""
    found = []
    for run in gathered.shown:
        moved = run.place.folder / records.MOVES
        if run.place.plain and not run.place.trial and moved.exists() and run.counts.get("layers"):
            found.append(reader.read(f"{moved}", lambda run=run: mask_history.rows_of(run), ([], [])))
    return moving(found)


def moving(found: Sequence[tuple[list[Row], list[Row]]]) -> list[Chart | None]:
    """Layers and moves of each run: lines of few layers, of many a map."""
    layers, moves = [row for own, _ in found for row in own], [row for _, own in found for row in own]
    few = len({row["series"] for row in layers}) <= len(charts.SHAPES)
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


def learning(gathered: Gathered, reader: Reader) -> Chart | None:
    rows = measure.curve_rows(gathered, reader)
    rows = [r | {"panel": f"{r['series']}, {r['split']}"} for r in rows]
    along = {r["panel"] for r in rows if r["step"] > 0}
    rows = [r for r in rows if r["panel"] in along]
    caption = (
        "Accuracy while each run trains, of all trials, on the held-out and the test split where "
        "they were measured; runs that still train are here too. The colour is the density, light"
        " where dense, grey where it is not known yet."
    )
    return charts.made("learning", "Learning curves", caption, rows, charts.curves)


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
    found = measure.overlap_rows(gathered, masks)
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
                density = densities(gathered).get((own[0]["series"], cycle))
                ends = {"low": float(min(values)), "high": float(max(values)), "pairs": len(values)}
                rows.append(row | {"density": density, "value": float(np.mean(values))} | ends)
    cycles = (
        "Kept by both over kept by either, |a and b| / |a or b|, between the tickets of the first trial."
    )
    pairs = (
        "Overlap of masks between trials, and between methods (arms or runs) of the same trial, at one "
        "cycle; bars "
        "from the lowest to the highest pair. Chance: masks of the same layer densities, drawn by "
        "themselves."
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
    chosen = some(sorted({r["cycle"] for r in rows}))
    rows = [r | {"panel": f"{r['series']}, cycle {r['cycle']:03d}"} for r in rows if r["cycle"] in chosen]
    caption = (
        "Sizes of the weights that the ticket before ended with, by octaves of |w|: all that it "
        "kept (before), and those of them that this cycle's mask keeps (after). First trial, at "
        "most six cycles."
    )
    return charts.made("weight_sizes", "Weights before and after pruning", caption, rows, charts.weights)


def some(values: Sequence[int], most: int = 6) -> set[int]:
    """At most so many, the first and the last among them."""
    count = min(most, len(values))
    return {values[round(i * (len(values) - 1) / max(1, count - 1))] for i in range(count)}


def reliability(gathered: Gathered, reader: Reader) -> Chart | None:
    rows = measure.reliability_rows(gathered, reader)
    chosen = some(sorted({r["cycle"] for r in rows}), 4)
    rows = [
        r | {"panel": SHIFTS.get(r["dataset"], r["dataset"]), "ticket": f"{r['series']} {r['cycle']:03d}"}
        for r in rows
        if r["cycle"] in chosen
    ]
    caption = (
        "Accuracy against mean confidence in 15 bins of equal width; on the dotted line "
        "confidence is right. First trial, at most four cycles."
    )
    return charts.made("reliability", "Reliability", caption, rows, charts.reliability)


def calibration(judged: Sequence[Row]) -> Chart | None:
    rows: list[Row] = []
    for name in summary.sets_of(judged):
        own = [r for r in judged if r["dataset"] == name]
        rows += averaged(own, "ece", ("ece_low", "ece_high"), SHIFTS.get(name, name))
    caption = "Expected calibration error (ECE, 15 bins) of the selected ticket on each judged set."
    build = lambda r: charts.by_density(r, "ECE", zero=True)  # noqa: E731
    return charts.made("calibration", "Calibration error against density", caption, rows, build)


def lineage(gathered: Gathered) -> Chart | None:
    """Of every series' first trial."""
    found = measure.lineage_rows(gathered)
    firsts: dict[str, int] = {}
    found = [r for r in found if firsts.setdefault(r["series"], r["trial"]) == r["trial"]]
    at = {r["ticket"]: r for r in found}
    rows = [
        {"kind": "ticket", "series": r["series"], "lane": lane(r), "x": r["cycle"], "ticket": r["ticket"]}
        | {"matching": r["matching"], "previous": r["previous"]}
        for r in found
    ]
    for r in found:
        for kind in ("matching", "previous"):
            parent = at.get(r[kind])
            if parent is not None:
                row = {"kind": kind, "series": r["series"], "lane": lane(parent), "x": parent["cycle"]}
                row |= {"ticket": r["ticket"], "x2": r["cycle"], "lane2": lane(r)}
                rows.append(row)
    caption = (
        "Selected tickets by the first eight digits of their digests, and what they name as "
        "parents: matching, whose weights they start from, and previous, whose weights were "
        "ranked. First trial; the table has the links."
    )
    return charts.made("lineage", "Lineage", caption, rows, charts.lineage)


def lane(row: Row) -> str:
    return "rewind point" if row["cycle"] < 0 and not row["arm"] else row["series"]
