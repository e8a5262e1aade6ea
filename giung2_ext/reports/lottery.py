"""Figures of the lottery ticket experiments: early stops, training curves, untrained tickets, instability.

The first two are Figures 1 and 3 of Frankle & Carbin 2019 (https://arxiv.org/abs/1803.03635), the last
follows Frankle et al. 2020 (https://arxiv.org/abs/1912.05671). Lines are means over trials, bars reach
from the lowest trial to the highest.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from giung2_ext.reports.figures import STYLES, Picture, some
from giung2_ext.reports.results import Curves

PANELS = ((100, 51.3, 21.1), (100, 7.0, 3.6, 1.9))  # percent of weights remaining, as in Figure 3
COMPARED = (51.3, 21.1)
PATHS = (100, 21.1, 3.6, 1.9)
BARS = 12  # of a training curve, at most


def pictures(
    points: Sequence[Any], curves: Curves, instability: Mapping[str, Any] | None, chance: float | None
) -> dict[str, Picture]:
    """Those for which there is something to draw, by name."""
    found: dict[str, Picture] = {}
    stopped = [p for p in points if p.selected_by == "loss"]
    spread = told((p.arm, p.cycle) for p in points)
    if any(p.arm == "" for p in stopped):
        found["early_stop"] = Picture(
            lambda figure: draw_early_stop(figure, stopped),
            f"Iteration of the lowest loss on {stopped[0].result['selected_on']} (early stop), and test "
            f"accuracy at it, against the weights remaining; {spread}.",
            (11, 4.4),
        )
    panels = curve_panels(points, curves)
    if panels:
        found["curves"] = Picture(
            lambda figure: draw_curves(figure, panels),
            "Test accuracy while tickets train, by the percentage of weights remaining; "
            f"{told((arm, cycle) for _, arm, cycle in curves)}.",
            (1 + 4.2 * len(panels), 4.4),
        )
    if len({(p.arm, p.cycle) for p in points}) > 1:
        found["start"] = Picture(
            lambda figure: draw_start(figure, points, chance),
            f"Test accuracy before the first step against the weights remaining; {spread}.",
            (7.4, 4.4),
        )
    if instability and instability["rows"]:
        found["instability"] = Picture(
            lambda figure: draw_instability(figure, instability),
            "Instability against the weights remaining, and error on the straight line between the two "
            f"tickets; {told(row['cycle'] for row in instability['rows'])}.",
            (11, 4.4),
        )
    return found


def told(groups: Iterable[Hashable]) -> str:
    """What lines and bars are, from the group (arm and cycle, say) of every trial's value."""
    counts = set(Counter(groups).values())
    if counts == {1}:
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


def draw_bars(
    axes: Any, x: Any, groups: Sequence[Sequence[float]], every: Any = None, **style: Any
) -> None:
    """A line through the means of these groups, with bars from their lowest to their highest values."""
    mean, low, high = (np.array([f(values) for values in groups]) for f in (np.mean, np.min, np.max))
    bars = None if all(len(values) == 1 for values in groups) else (mean - low, high - mean)
    style = dict(ms=4, lw=1.2, elinewidth=0.8, capsize=2) | style
    axes.errorbar(x, mean, bars, markevery=every, errorevery=every or 1, **style)


def draw_arms(axes: Any, points: Sequence[Any], value: Callable[[Any], float]) -> None:
    """Values of the tickets and of every arm against the weights remaining."""
    arms = sorted({p.arm for p in points}, key=lambda arm: (arm != "", arm))
    for (marker, line, colour), arm in zip(itertools.cycle(STYLES), arms):
        own = [p for p in points if p.arm == arm]
        percents = percents_of(own)
        groups = [[value(p) for p in own if p.cycle == c] for c in percents]
        style = dict(marker=marker, ls=line, color=colour, label=arm or "tickets")
        draw_bars(axes, list(percents.values()), groups, **style)
    percent_axis(axes, percents_of(points))


def percent_axis(axes: Any, percents: Mapping[int, float]) -> None:
    axes.set_xscale("log")
    ticks = some(list(percents.values()))
    axes.set_xticks(ticks, [percent_text(t) for t in ticks])
    axes.set_xticks([], minor=True)
    axes.invert_xaxis()
    axes.set_xlabel("weights remaining (%)")
    axes.grid(alpha=0.3)


def draw_legend(figure: Any, axes: Any, title: str | None = None) -> None:
    """Beside the axes, its samples long enough to show the dashes."""
    handles, labels = axes.get_legend_handles_labels()
    place = dict(loc="outside right upper", handlelength=4)
    figure.legend(handles, labels, frameon=False, fontsize=9, title=title, **place)


def draw_early_stop(figure: Any, points: Sequence[Any]) -> None:
    """Left: when the validation loss was lowest. Right: the test accuracy then."""
    when, accuracy = figure.subplots(1, 2)
    draw_arms(when, points, lambda p: p.result["best_step"])
    when.set_ylabel("early-stopping iteration")
    when.set_ylim(bottom=0)
    draw_arms(accuracy, points, lambda p: p.accuracy("best"))
    accuracy.set_ylabel("test accuracy at early stop (%)")
    draw_legend(figure, when)


def draw_start(figure: Any, points: Sequence[Any], chance: float | None) -> None:
    axes = figure.subplots()
    draw_arms(axes, points, lambda p: p.accuracy("start"))
    if chance is not None:
        axes.axhline(chance, color="0.5", lw=1, ls=":", label="chance")
    axes.set_ylabel("test accuracy at iteration 0 (%)")
    axes.set_ylim(bottom=0)
    draw_legend(figure, axes)


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
    return low - room, high + 0.1 * room


def draw_curves(figure: Any, panels: Sequence[Panel]) -> None:
    """Tickets solid, an arm dashed with hollow markers; a cycle looks the same in every panel."""
    cycles = sorted({line[0] for panel in panels for line in panel})
    for axes, panel in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
    ):
        for i, (cycle, arm, percent, (steps, groups)) in enumerate(panel):
            every = max(1, math.ceil(len(steps) / BARS))
            marker, _, colour = STYLES[cycles.index(cycle)]
            style = dict(
                marker=marker, color=colour, ls="--" if arm else "-", mfc="white" if arm else colour
            )
            label = f"{percent_text(percent)} {arm}".strip()
            draw_bars(axes, steps, groups, (i * every // len(panel), every), label=label, **style)
        axes.set_xlabel("training iteration")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=9, loc="lower right", title="weights remaining (%)")
    figure.axes[0].set_ylabel("test accuracy (%)")
    figure.axes[0].set_ylim(*late_limits(panels))


def draw_instability(figure: Any, found: Mapping[str, Any]) -> None:
    """Left: instability by weights remaining. Right: the error on the line between the two tickets."""
    rows = found["rows"]
    cycles = sorted({row["cycle"] for row in rows})
    own = {c: [row for row in rows if row["cycle"] == c] for c in cycles}
    percents = {c: 100 * float(np.mean([row["kept"] / row["prunable"] for row in own[c]])) for c in cycles}
    left, right = figure.subplots(1, 2)
    marker, line, colour = STYLES[0]
    groups = [[100 * row["instability"] for row in own[c]] for c in cycles]
    draw_bars(left, list(percents.values()), groups, marker=marker, ls=line, color=colour)
    percent_axis(left, percents)
    left.set_ylabel("instability (%)")
    for (marker, line, colour), c in zip(STYLES, nearest(percents, PATHS), strict=False):
        errors = 100 * np.transpose([row["error"] for row in own[c]])
        style = dict(marker=marker, ls=line, color=colour, label=percent_text(percents[c]))
        draw_bars(right, found["alphas"], list(errors), **style)
    right.set_xlabel("place on the line between the two tickets")
    right.set_ylabel(f"error on {found['split']} (%)")
    right.set_ylim(bottom=0)
    right.grid(alpha=0.3)
    draw_legend(figure, right, "weights remaining (%)")
