"""The figures of a chain, as PNG and PDF: accuracy, density per layer, overlap of masks, shifts."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from giung2_ext.core import masks as masking
from giung2_ext.reports.tables import SHIFTS, judged_sets, usual_top1

# marker, line, colour: told apart in black and white too; only the first is solid
STYLES: tuple[tuple[str, Any, str], ...] = (
    ("o", "-", "#1b4f8f"),
    ("s", "--", "#c4501b"),
    ("^", ":", "#3d7a3d"),
    ("v", "-.", "#7a3d7a"),
    ("D", (0, (7, 2)), "#8f7a1b"),
    ("P", (0, (4, 1, 1, 1, 1, 1)), "#2a9d9d"),
    ("X", (0, (1, 2)), "#b02a4c"),
    ("<", (0, (2, 1)), "#5c5c5c"),
    (">", (0, (9, 2, 2, 2)), "#5b6fd0"),
    ("*", (0, (5, 1, 1, 3)), "#8a5a2b"),
)


class Picture(NamedTuple):
    """A figure to be drawn, and the line below it."""

    draw: Callable[[Any], None]
    caption: str
    size: tuple[float, float] = (6.4, 4.2)


def pictures(points: Sequence[Any], masks: Mapping[Any, Any]) -> dict[str, Picture]:
    """Those for which there is something to draw, by name."""
    trials = len({p.trial for p in points})
    spread = f"mean and deviation of {trials} trials" if trials > 1 else "one trial"
    found = {
        "accuracy": Picture(
            lambda figure: draw_accuracy(figure, points),
            f"Test accuracy of trained tickets, and before their first step; {spread}.",
            (9, 4),
        ),
        "layers": Picture(lambda figure: draw_layers(figure, points), "Density of every layer."),
    }
    if masks:
        found["overlap"] = Picture(
            lambda figure: draw_overlap(figure, masks),
            "Overlap of masks between cycles, and between trials where there are several.",
            (9 if len({trial for trial, _ in masks}) > 1 else 5.2, 4),
        )
    if any(p.judged for p in points if p.arm == ""):
        found["shifts"] = Picture(
            lambda figure: draw_shifts(figure, points), "Top-1 on ImageNet and its shifts."
        )
    return found


def draw_all(wanted: Mapping[str, Picture], folder: epath.Path) -> list[str]:
    """Draws them as PNG and PDF and returns their names; none where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    for name, picture in wanted.items():
        figure = Figure(figsize=picture.size, layout="constrained")
        picture.draw(figure)
        for kind in ("png", "pdf"):
            with (folder / f"{name}.{kind}").open("wb") as file:
                figure.savefig(file, format=kind, dpi=160)
    return list(wanted)


def _curve(points: Sequence[Any], arm: str, when: str) -> tuple[np.ndarray, ...]:
    own = [p for p in points if p.arm == arm]
    cycles = sorted({p.cycle for p in own})
    values = [[p.accuracy(when) for p in own if p.cycle == c] for c in cycles]
    density = [next(p.density for p in own if p.cycle == c) for c in cycles]
    sd = [np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values]
    return np.array(density), np.array([np.mean(v) for v in values]), np.array(sd)


def some(values: Sequence[Any]) -> Sequence[Any]:
    """No more of them than there is room for at an axis."""
    return values[:: 3 if len(values) > 6 else 1]


def _density_axis(axes: Any, densities: Sequence[float]) -> None:
    axes.set_xscale("log")
    ticks = some(sorted(set(densities), reverse=True))
    axes.set_xticks(ticks, [f"{t:.3g}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.invert_xaxis()
    axes.set_xlabel("density (kept / prunable weights)")
    axes.grid(alpha=0.3)


def draw_accuracy(figure: Any, points: Sequence[Any]) -> None:
    """Left: trained tickets and arms, with the dense accuracy. Right: tickets before their first step."""
    arms = sorted({p.arm for p in points if p.arm})
    trials = len({p.trial for p in points})
    trained, untrained = figure.subplots(1, 2)
    for (marker, line, colour), arm in zip(itertools.cycle(STYLES), ["", *arms]):
        _draw_curve(trained, points, arm, "best", arm or "tickets", marker=marker, ls=line, color=colour)
        _draw_curve(untrained, points, arm, "start", arm or "tickets", marker=marker, ls=line, color=colour)
    dense = [p.accuracy("best") for p in points if p.arm == "" and p.density == 1]
    if dense:
        trained.axhline(np.mean(dense), color="0.5", lw=1, ls=":", label="dense")
    spread = f"mean ± sd of {trials} trials" if trials > 1 else "one trial"
    for axes, when in ((trained, "trained"), (untrained, "iteration 0")):
        _density_axis(axes, [p.density for p in points])
        axes.set_ylabel("test accuracy (%)")
        axes.set_title(f"{when}, {spread}", fontsize=10)
        axes.legend(frameon=False, fontsize=9)


def _draw_curve(axes: Any, points: Sequence[Any], arm: str, when: str, label: str, **style: Any) -> None:
    density, mean, sd = _curve(points, arm, when)
    axes.plot(density, mean, ms=4, label=label, **style)
    if sd.any():
        axes.fill_between(density, mean - sd, mean + sd, color=style["color"], alpha=0.18, lw=0)


def draw_layers(figure: Any, points: Sequence[Any]) -> None:
    """Density of every prunable leaf, mean over trials, against the density of the whole."""
    own = [p for p in points if p.arm == ""]
    names = list(own[0].result["layers"])
    cycles = sorted({p.cycle for p in own})
    axes = figure.subplots()
    total = [next(p.density for p in own if p.cycle == c) for c in cycles]
    few = len(names) <= len(STYLES)
    for i, name in enumerate(names):
        shares = [
            np.mean([np.divide(*p.result["layers"][name]) for p in own if p.cycle == c]) for c in cycles
        ]
        marker, line, colour = STYLES[i % len(STYLES)]
        label = name.removesuffix("/kernel")
        if few:
            axes.plot(total, shares, ls=line, marker=marker, ms=4, color=colour, label=label)
        else:
            axes.plot(total, shares, lw=0.8, color=(0.1, 0.3, 0.6, 0.5))
    axes.plot(total, total, color="0.5", lw=1, label="whole network")
    axes.set_yscale("log")
    _density_axis(axes, total)
    axes.set_ylabel("density of the layer")
    axes.set_title("Where the kept weights are", fontsize=10)
    axes.legend(frameon=False, fontsize=9)


def draw_overlap(figure: Any, masks: Mapping[tuple[int, int], Any]) -> None:
    """Left: overlap between cycles of one trial. Right: between trials at one cycle, and chance."""
    trials = sorted({trial for trial, _ in masks})
    cycles = sorted({cycle for _, cycle in masks if all((trial, cycle) in masks for trial in trials)})
    left, *right = figure.subplots(1, 2 if len(trials) > 1 else 1, squeeze=False)[0]
    grid = np.array(
        [
            [np.mean([masking.overlap(masks[t, a], masks[t, b]) for t in trials]) for b in cycles]
            for a in cycles
        ]
    )
    image = left.imshow(grid, vmin=0, vmax=1, cmap="viridis", origin="lower")
    left.set_xticks(some(range(len(cycles))), some(cycles))
    left.set_yticks(some(range(len(cycles))), some(cycles))
    left.set_xlabel("cycle")
    left.set_ylabel("cycle")
    left.set_title("Overlap |a and b| / |a or b| between cycles", fontsize=10)
    figure.colorbar(image, ax=left, shrink=0.8)
    if not right:
        return
    pairs = list(itertools.combinations(trials, 2))
    measured = [[masking.overlap(masks[a, c], masks[b, c]) for a, b in pairs] for c in cycles]
    chance = [np.mean([masking.chance_overlap(masks[a, c], masks[b, c]) for a, b in pairs]) for c in cycles]
    axes = right[0]
    mean = np.mean(measured, axis=1)
    axes.plot(cycles, mean, "-o", ms=4, color=STYLES[0][2], label="measured")
    axes.fill_between(cycles, np.min(measured, 1), np.max(measured, 1), color=STYLES[0][2], alpha=0.18)
    axes.plot(cycles, chance, "--", color="0.4", label="chance, same layer densities")
    axes.set_yscale("log")
    axes.set_xticks(some(cycles))
    axes.set_xlabel("cycle")
    axes.set_ylabel("|a and b| / |a or b|")
    axes.set_title(f"Overlap between {len(trials)} trials", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)


def draw_shifts(figure: Any, points: Sequence[Any]) -> None:
    """Top-1 on ImageNet and its shifts; bars are the sets' 95% intervals, or deviations over trials."""
    own = [p for p in points if p.arm == ""]
    trials = len({p.trial for p in own})
    axes = figure.subplots()
    for (marker, line, colour), name in zip(itertools.cycle(STYLES), judged_sets(own)):
        there = [p for p in own if name in p.judged]
        density, mean, below, above = [], [], [], []
        for cycle in sorted({p.cycle for p in there}):
            here = [p for p in there if p.cycle == cycle]
            scores = 100 * np.array([usual_top1(p.judged[name]) for p in here])
            density.append(here[0].density)
            mean.append(scores[:, 0].mean())
            spread = [scores[:, 0].std(ddof=1)] * 2 if len(here) > 1 else np.abs(scores[0, 1:] - mean[-1])
            below.append(spread[0])
            above.append(spread[1])
        style = dict(ls=line, marker=marker, ms=4, lw=1.2, elinewidth=0.8, color=colour)
        axes.errorbar(density, mean, (below, above), label=SHIFTS.get(name, name), **style)
    _density_axis(axes, [p.density for p in own])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("top-1 (%)")
    bars = f"mean ± sd of {trials} trials" if trials > 1 else "95% intervals over examples"
    axes.set_title(f"ImageNet and its shifts, {bars}", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
