"""Charts of the lottery ticket experiments: early stops, training curves, instability.

The first two are Figures 1 and 3 of Frankle & Carbin 2019 (https://arxiv.org/abs/1803.03635), the last
follows Frankle et al. 2020 (https://arxiv.org/abs/1912.05671). Lines are means over trials, bars reach
from the lowest trial to the highest.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from giung2_ext.reports import charts, tables
from giung2_ext.reports.charts import Chart, Row
from giung2_ext.reports.results import Curves

PANELS = ((100, 51.3, 21.1), (100, 7.0, 3.6, 1.9))  # percent of weights remaining, as in Figure 3
COMPARED = (51.3, 21.1)
PATHS = (100, 21.1, 3.6, 1.9)
BARS = 12  # of a training curve, at most
STEPS = 80  # of a training curve, at most


class Chain(NamedTuple):
    """What is drawn of one chain; several are told apart by their names, a single one has none."""

    points: Sequence[Any]
    curves: Curves
    instability: Mapping[str, Any] | None


def told(groups: Iterable[Hashable]) -> str:
    """What lines and bars are, from the group (arm and cycle, say) of every trial's value."""
    counts = set(Counter(groups).values())
    if counts <= {1}:
        return "one trial"
    few = "up to " if len(counts) > 1 else ""
    return f"mean of {few}{max(counts)} trials, bars from the lowest to the highest"


def nearest(percents: Mapping[int, float], levels: Iterable[float]) -> list[int]:
    """The cycles nearest to these levels in log distance, each once."""
    chosen = (min(percents, key=lambda c: abs(math.log(percents[c] / level))) for level in levels)
    return list(dict.fromkeys(chosen)) if percents else []


def percents_of(points: Sequence[Any]) -> dict[int, float]:
    """Percent of weights remaining by cycle, mean over trials."""
    cycles = sorted({p.cycle for p in points})
    return {c: 100 * float(np.mean([p.density for p in points if p.cycle == c])) for c in cycles}


def percent_text(percent: float) -> str:
    return f"{percent:.2g}" if percent < 1 else f"{percent:.1f}".replace("100.0", "100")


def spanned(values: Sequence[float]) -> Row:
    """Their mean, with bars from the lowest to the highest."""
    return {"value": float(np.mean(values)), "low": float(min(values)), "high": float(max(values))}


def named(*parts: str) -> str:
    return " ".join(filter(None, parts))


def by_cycle(points: Sequence[Any], name: str, panel: str, value: Callable[[Any], float]) -> list[Row]:
    """Values of the tickets and of every arm, a row a cycle."""
    rows = []
    for arm in sorted({p.arm for p in points}, key=lambda arm: (arm != "", arm)):
        for cycle, percent in percents_of([p for p in points if p.arm == arm]).items():
            values = [value(p) for p in points if (p.arm, p.cycle) == (arm, cycle)]
            row = {"panel": panel, "series": named(name, arm or "tickets"), "cycle": cycle}
            rows.append(row | {"density": percent / 100} | spanned(values) | {"trials": len(values)})
    return rows


def early_stops(chains: Mapping[str, Chain]) -> Chart | None:
    rows: list[Row] = []
    groups, splits = [], set()
    for name, chain in chains.items():
        stopped = [p for p in chain.points if p.selected_by == "loss"]
        if any(p.arm == "" for p in stopped):
            rows += by_cycle(stopped, name, "early-stopping iteration", lambda p: p.result["best_step"])
            rows += by_cycle(stopped, name, "test accuracy at it (%)", lambda p: p.accuracy("best"))
            groups += [(name, p.arm, p.cycle) for p in stopped]
            splits |= {p.result["selected_on"] for p in stopped}
    caption = (
        f"Iteration of the lowest loss on {' and '.join(sorted(splits))} (early stop), and test accuracy "
        f"at it, against the weights remaining; {told(groups)}."
    )
    return charts.made("early_stop", "Early stops", caption, rows, lambda r: charts.by_density(r, None))


Curve = tuple[list[int], list[list[float]]]  # steps, and at each the accuracies of the trials in percent
Panel = list[tuple[int, str, float, Curve]]  # cycle, arm, percent of weights remaining, curve


def curve_of(curves: Curves, arm: str, cycle: int) -> Curve | None:
    """Accuracy at the steps that all trials were measured at; None without any along the training."""
    runs = [
        {row["step"]: 100 * row["accuracy"] for row in rows}
        for (_, own, c), rows in curves.items()
        if (own, c) == (arm, cycle)
    ]
    steps = sorted(set.intersection(*map(set, runs))) if runs else []
    steps = [steps[i] for i in tables.thinned(len(steps), STEPS)]
    return (steps, [[run[step] for run in runs] for step in steps]) if len(steps) > 2 else None


def curve_panels(points: Sequence[Any], curves: Curves) -> list[Panel]:
    """Tickets in two panels as in Figure 3 of 2019, then re-initialised ones beside them."""
    percents = percents_of([p for p in points if p.arm == ""])

    def lines(levels: Sequence[float], arms: Sequence[str]) -> Panel:
        found = {(arm, c): curve_of(curves, arm, c) for arm in arms for c in percents}
        there = {key: curve for key, curve in found.items() if curve}
        common = {c: percent for c, percent in percents.items() if all((arm, c) in there for arm in arms)}
        return [(c, arm, common[c], there[arm, c]) for c in nearest(common, levels) for arm in arms]

    panels: list[Panel] = []
    for levels in PANELS:
        panel = lines(levels, [""])
        if {line[0] for line in panel} - {line[0] for other in panels for line in other}:
            panels.append(panel)
    arms = {p.arm for p in points}
    control = next((arm for arm in ("reinit", "random") if arm in arms), None)
    compared = lines(COMPARED, ["", control]) if control else []
    return [*panels, compared] if compared else panels


def late_limits(panels: Sequence[Panel]) -> tuple[float, float]:
    """Limits in which the second half of the training fills the upper half."""
    late = [
        values for panel in panels for *_, (steps, groups) in panel for values in groups[len(steps) // 2 :]
    ]
    low, high = min(map(min, late)), max(map(max, late))
    room = max(high - low, 0.1)
    return max(low - room, 0.0), high + 0.1 * room


def panel_rows(panel: Panel, name: str) -> list[Row]:
    """A row a step; bars stand at some of them, beside those of the other lines."""
    rows = []
    title = named(name, ", ".join(dict.fromkeys(percent_text(line[2]) for line in panel)) + "%")
    arms = next((f", {line[1]} beside them" for line in panel if line[1]), "")
    for i, (cycle, arm, percent, (steps, groups)) in enumerate(panel):
        every = max(1, math.ceil(len(steps) / BARS))
        for k, (step, values) in enumerate(zip(steps, groups, strict=True)):
            row = {"panel": title + arms, "series": named(f"{percent_text(percent)}%", arm)}
            row |= {"run": named(name, arm or "tickets"), "cycle": cycle, "step": step} | spanned(values)
            rows.append(row if k % every == i * every // len(panel) else row | {"low": None, "high": None})
    return rows


def curves(chains: Mapping[str, Chain]) -> Chart | None:
    drawn = {name: curve_panels(chain.points, chain.curves) for name, chain in chains.items()}
    panels = [panel for own in drawn.values() for panel in own]
    rows = [row for name, own in drawn.items() for panel in own for row in panel_rows(panel, name)]
    groups = [(name, *key[1:]) for name, chain in chains.items() for key in chain.curves]
    caption = (
        "Test accuracy while tickets train, by the percentage of weights remaining; the axis is that of "
        f"the second half of the training; {told(groups)}."
    )
    build = lambda r: charts.along(  # noqa: E731
        r, "step", ("training iteration", "test accuracy (%)"), domain=late_limits(panels)
    )
    return charts.made("curves", "Training curves of tickets", caption, rows, build)


def instability(chains: Mapping[str, Chain]) -> list[Chart | None]:
    """Left by density; then the error on the line between the two tickets."""
    rows, errors, groups, splits = [], [], [], set()
    for name, chain in chains.items():
        found = chain.instability
        if not found or not found["rows"]:
            continue
        cycles = sorted({r["cycle"] for r in found["rows"]})
        own = {c: [r for r in found["rows"] if r["cycle"] == c] for c in cycles}
        percents = {
            c: 100 * float(np.mean([r["kept"] / r["prunable"] for r in group])) for c, group in own.items()
        }
        for cycle, group in own.items():
            row = {"panel": name, "series": named(name, "tickets"), "cycle": cycle}
            row |= {"density": percents[cycle] / 100, "trials": len(group)}
            rows.append(row | spanned([100 * r["instability"] for r in group]))
        for cycle in nearest(percents, PATHS):
            series = f"{percent_text(percents[cycle])}%"
            for alpha, values in zip(
                found["alphas"], np.transpose([r["error"] for r in own[cycle]]), strict=True
            ):
                row = {"panel": name, "run": named(name, "tickets"), "series": series, "cycle": cycle}
                row |= {"place": float(alpha)}
                errors.append(row | spanned(100 * values))
        groups += [(name, r["cycle"]) for r in found["rows"]]
        splits.add(found["split"])
    about = "of the straight line between two tickets that were trained in another order of the data"
    high = f"Highest error {about}, minus the mean of its ends; {told(groups)}."
    line = f"Error {about}, by the percentage of weights remaining; {told(groups)}."
    titles = ("place on the line between the two tickets", f"error on {' and '.join(sorted(splits))} (%)")
    build = lambda r: charts.along(r, "place", titles, zero=True)  # noqa: E731
    by_density = lambda r: charts.by_density(r, "instability (%)", zero=True)  # noqa: E731
    return [
        charts.made("instability", "Instability", high, rows, by_density),
        charts.made("barrier", "Error between two tickets", line, errors, build),
    ]
