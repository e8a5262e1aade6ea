"""Which charts a report has, from the rows of its runs, and what the lines below them say."""

from collections.abc import Callable, Sequence

from giung2_ext.reports import charts, lottery, mask_charts, measure, published, results, summary
from giung2_ext.reports.chain import Point
from giung2_ext.reports.charts import Chart
from giung2_ext.reports.gather import Gathered
from giung2_ext.reports.reading import Reader, Row
from giung2_ext.reports.tables import SHIFTS, thinned
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
        records.MOVES: lambda: mask_charts.masks_over_time(gathered, reader),
        "layers": lambda: [mask_charts.layers(gathered)],
        "overlaps": lambda: mask_charts.overlaps(gathered, masks),
        "weights": lambda: [mask_charts.weights(gathered, masks, reader)],
        "calibration": lambda: [reliability(gathered, reader), calibration(judged)],
        "lineage": lambda: [lineage(gathered)],
    }
    found = [chart for what, build in parts.items() for chart in reader.drawn(what, build)]
    return [charts.alike(chart, gathered.series) for chart in found if chart is not None]


def trials_told(rows: Sequence[Row]) -> str:
    """What lines and bars of `averaged` rows are."""
    counts = {row["trials"] for row in rows}
    if counts <= {1}:
        return "one trial, bars of its 95% interval"
    few = "up to " if len(counts) > 1 else ""
    alone = ", of a single trial its 95% interval" if 1 in counts else ""
    return f"mean of {few}{max(counts)} trials, bars of one standard deviation{alone}"


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
    told = trials_told(rows)
    untrained = averaged(cycles, "start", None, "before the first step")
    rows += untrained
    classes = {run.meta.get("num_classes") for run in gathered.shown if run.result}
    several = len({row["density"] for row in untrained}) > 1
    if several and len(classes) == 1 and (count := classes.pop()):
        guess = {"series": "chance", "value": 100 / count, "low": None, "high": None, "trials": None}
        rows += {row["density"]: row | guess for row in untrained}.values()
    caption = (
        "Test accuracy of the selected ticket, and of the same ticket before its first step, "
        f"against the kept part of the prunable weights; {told}. Intervals are Wilson's, of "
        "trained ones."
    )
    build = lambda r: charts.by_density(r, "test accuracy (%)")  # noqa: E731
    return charts.made("accuracy_by_density", "Accuracy against density", caption, rows, build)


def shifts(judged: Sequence[Row]) -> Chart | None:
    rows: list[Row] = []
    others: list[Row] = []
    for name in summary.sets_of(judged):
        title = SHIFTS.get(name, name)
        rows += averaged([r for r in judged if r["dataset"] == name], "top1", ("low", "high"), title)
        others += averaged([r for r in published.rows() if r["dataset"] == name], "top1", None, title)
    if not rows:
        return None
    pipelines = ", ".join(sorted({r["pipeline"] for r in judged}))
    caption = (
        f"Top-1 of the selected ticket on each set, pipeline {pipelines}; {trials_told(rows)}. "
        "Intervals are of a bootstrap."
    )
    if others:
        caption += f" {published.ABOUT}, where the set is one of its five."
    build = lambda r: charts.by_density(r, "top-1 (%)")  # noqa: E731
    return charts.made("sets_by_density", "Accuracy on every judged set", caption, rows + others, build)


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


def reliability(gathered: Gathered, reader: Reader) -> Chart | None:
    rows = measure.reliability_rows(gathered, reader)
    cycles = sorted({r["cycle"] for r in rows})
    chosen = {cycles[i] for i in thinned(len(cycles), 4)}
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
    several = len({r["run"] for r in found}) > 1
    firsts: dict[str, int] = {}
    found = [r for r in found if firsts.setdefault(r["series"], r["trial"]) == r["trial"]]
    at = {r["ticket"]: r for r in found} | {(r["run"], r["ticket"]): r for r in found}
    rows = [
        {
            "kind": "ticket",
            "series": r["series"],
            "lane": lane(r, several),
            "x": r["cycle"],
            "ticket": r["ticket"],
        }
        | {"matching": r["matching"], "previous": r["previous"]}
        for r in found
    ]
    for r in found:
        for kind in ("matching", "previous"):
            parent = at.get((r["run"], r[kind])) or at.get(r[kind])  # another chain's only where it must be
            if parent is not None:
                row = {
                    "kind": kind,
                    "series": r["series"],
                    "lane": lane(parent, several),
                    "x": parent["cycle"],
                }
                row |= {"ticket": r["ticket"], "x2": r["cycle"], "lane2": lane(r, several)}
                rows.append(row)
    caption = (
        "Selected tickets by the first eight digits of their digests, and what they name as "
        "parents: matching, whose weights they start from, and previous, whose weights were "
        "ranked. First trial; the table has the links."
    )
    return charts.made("lineage", "Lineage", caption, rows, charts.lineage)


def lane(row: Row, several: bool) -> str:
    if row["cycle"] >= 0 or row["arm"]:
        return row["series"]
    return f"{row['run']} rewind point" if several else "rewind point"
