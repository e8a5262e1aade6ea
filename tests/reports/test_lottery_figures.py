"""The figures of the ticket experiments draw means and extents of the data, and nothing else."""

import math

import numpy as np
import pytest

from giung2_ext.reports import lottery
from giung2_ext.reports.chain import Point

PRUNABLE = 100_000
STEPS = list(range(0, 5001, 100))


def make_point(trial, arm, cycle, draw, ratio=0.8, selected_by="loss"):
    scores = {
        when: {"test": {"accuracy": draw.uniform(0.2, 0.9), "loss": 1.0}}
        for when in ("start", "best", "last")
    }
    result = dict(kept=int(PRUNABLE * ratio**cycle) + trial, prunable=PRUNABLE, scores=scores)
    result |= dict(best_step=int(draw.integers(1, 5000)), selected_on="holdout", selected_by=selected_by)
    return Point(trial, arm, cycle, None, result)


def make_points(trials=4, cycles=19, arms=("reinit",), **options):
    """The last trial stops early, so that not every mean is over all of them."""
    draw = np.random.default_rng(0)
    return [
        make_point(t, arm, c, draw, **options)
        for t in range(trials)
        for arm in ("", *arms)
        for c in range(1 if arm else 0, min(cycles, 2) if t and t == trials - 1 else cycles)
    ]


def make_curves(points, steps=STEPS):
    """Rising from 0 to somewhere between 0.9 and 1."""
    draw = np.random.default_rng(1)
    rise = 1 - np.exp(-np.array(steps) / 200)
    curves = {}
    for p in points:
        values = rise * draw.uniform(0.9, 0.99, len(steps))
        rows = [dict(step=s, accuracy=float(v), loss=0.1) for s, v in zip(steps, values, strict=True)]
        curves[p.trial, p.arm, p.cycle] = rows
    return curves


@pytest.fixture
def figure():
    return pytest.importorskip("matplotlib.figure").Figure(layout="constrained")


def drawn(axes):
    """{label: (x, mean, [(low, high), …] at the bars)} of what the axes show."""
    found = {}
    for container in axes.containers:
        line, _, bars = container.lines
        ends = [segment[:, 1] for segment in bars[0].get_segments()] if bars else []
        found[container.get_label()] = (*line.get_data(), np.array(ends).reshape(-1, 2))
    return found


def matches(found, x, groups):
    """Means and extents of a line with a bar at every value."""
    seen_x, mean, ends = found
    assert seen_x == pytest.approx(np.array(x))
    assert mean == pytest.approx(np.array([np.mean(g) for g in groups]))
    assert ends == pytest.approx(np.array([(np.min(g), np.max(g)) for g in groups]))


def by_cycle(points, arm, value):
    own = [p for p in points if p.arm == arm]
    cycles = sorted({p.cycle for p in own})
    groups = [[p for p in own if p.cycle == c] for c in cycles]
    percents = [np.mean([100 * p.result["kept"] / PRUNABLE for p in g]) for g in groups]
    return percents, [[value(p) for p in g] for g in groups]


def test_early_stops_are_means_and_extents_over_the_trials(figure):
    points = make_points(arms=("reinit", "random"))
    lottery.draw_early_stop(figure, points)
    left, right = figure.axes
    for axes, value in (
        (left, lambda p: p.result["best_step"]),
        (right, lambda p: 100 * p.result["scores"]["best"]["test"]["accuracy"]),
    ):
        lines = drawn(axes)
        assert list(lines) == ["tickets", "random", "reinit"]
        for label, line in lines.items():
            matches(line, *by_cycle(points, "" if label == "tickets" else label, value))
        assert axes.get_xlim()[0] > 100 > 2 > axes.get_xlim()[1]
        assert axes.get_xscale() == "log"
        solid = [container.lines[0].get_linestyle() == "-" for container in axes.containers]
        assert solid == [True, False, False]
        ticks = [text.get_text() for text in axes.get_xticklabels()]
        assert ticks == ["100", "51.2", "26.2", "13.4", "6.9", "3.5", "1.8"]
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["tickets", "random", "reinit"]


def test_starts_are_drawn_with_chance_where_it_is_known(figure):
    points = make_points()
    lottery.draw_start(figure, points, 10.0)
    [axes] = figure.axes
    start = lambda p: 100 * p.result["scores"]["start"]["test"]["accuracy"]  # noqa: E731
    for label, arm in (("tickets", ""), ("reinit", "reinit")):
        matches(drawn(axes)[label], *by_cycle(points, arm, start))
    [chance] = [line for line in axes.get_lines() if line.get_label() == "chance"]
    assert list(chance.get_ydata()) == [10, 10]
    other = type(figure)()
    lottery.draw_start(other, points, None)
    assert "chance" not in [line.get_label() for line in other.axes[0].get_lines()]


def test_one_trial_has_no_bars(figure):
    lottery.draw_start(figure, make_points(trials=1), None)
    assert all(len(ends) == 0 for *_, ends in drawn(figure.axes[0]).values())


def test_levels_are_the_nearest_cycles_in_log_distance_and_each_once():
    percents = {c: 100 * 0.8**c for c in range(19)}
    assert lottery.nearest(percents, lottery.PANELS[0]) == [0, 3, 7]
    assert lottery.nearest(percents, lottery.PANELS[1]) == [0, 12, 15, 18]
    assert lottery.nearest({0: 100.0, 1: 36.0, 2: 17.0}, [25]) == [1]  # by difference it were 2
    assert lottery.nearest({0: 100.0, 1: 80.0, 2: 64.0}, [100, 51.3, 21.1]) == [0, 2]
    assert lottery.nearest({}, [100]) == []


def curve_values(curves, arm, cycle, step):
    return [
        100 * row["accuracy"]
        for (_, a, c), rows in curves.items()
        for row in rows
        if (a, c, row["step"]) == (arm, cycle, step)
    ]


def test_curves_are_means_and_extents_at_the_levels_of_the_paper(figure):
    points = make_points(arms=("reinit", "random"))
    curves = make_curves(points)
    panels = lottery.curve_panels(points, curves)
    lottery.draw_curves(figure, panels)
    labels = [[f"{0.8**c * 100:.1f}".replace("100.0", "100") for c in some] for some in PANEL_CYCLES]
    labels[2] = [f"{label}{arm}" for label in labels[2] for arm in ("", " reinit")]
    assert [list(drawn(axes)) for axes in figure.axes] == labels
    for axes, cycles in zip(figure.axes, PANEL_CYCLES, strict=True):
        pairs = [(c, arm) for c in cycles for arm in (("", "reinit") if axes is figure.axes[2] else ("",))]
        for (cycle, arm), container, (x, mean, ends) in zip(
            pairs, axes.containers, drawn(axes).values(), strict=True
        ):
            groups = [curve_values(curves, arm, cycle, step) for step in STEPS]
            assert list(x) == STEPS
            assert mean == pytest.approx(np.mean(groups, axis=1))
            places = [int(s[0, 0]) for s in container.lines[2][0].get_segments()]
            assert 8 <= len(places) <= 12
            at = [groups[STEPS.index(step)] for step in places]
            assert ends == pytest.approx(np.c_[np.min(at, axis=1), np.max(at, axis=1)])
            assert container.lines[0].get_linestyle() == ("--" if arm else "-")


PANEL_CYCLES = [[0, 3, 7], [0, 12, 15, 18], [3, 7]]


def test_bars_of_a_panel_stand_beside_each_other(figure):
    points = make_points()
    lottery.draw_curves(figure, lottery.curve_panels(points, make_curves(points)))
    for axes in figure.axes:
        places = [s[0, 0] for c in axes.containers for s in c.lines[2][0].get_segments()]
        assert len(places) == len(set(places))


def test_the_limits_of_curves_are_those_of_late_training(figure):
    points = make_points()
    curves = make_curves(points)
    panels = lottery.curve_panels(points, curves)
    lottery.draw_curves(figure, panels)
    shown = {(arm, c) for panel in panels for c, arm, *_ in panel}
    late = [curve_values(curves, *which, step) for which in shown for step in STEPS if step >= 2500]
    lowest, highest = min(map(min, late)), max(map(max, late))
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert lowest - 1.5 * (highest - lowest) < low < lowest < highest < high
        assert low > 50  # the first points are outside
    flat = [[(0, "", 100.0, ([0, 1, 2], [[10.0], [97.0], [97.0]]))]]
    low, high = lottery.late_limits(flat)
    assert low < 97 < high


def test_a_panel_shows_something_new_and_a_control_if_there_is_one():
    def shown(cycles, arms=()):
        points = make_points(cycles=cycles, arms=arms, trials=2)
        return [[line[:2] for line in panel] for panel in lottery.curve_panels(points, make_curves(points))]

    assert shown(1) == [[(0, "")]]
    assert shown(3) == [[(0, ""), (2, "")]]
    assert shown(10) == [[(0, ""), (3, ""), (7, "")], [(0, ""), (9, "")]]
    assert shown(5, ("shuffle",)) == [[(0, ""), (3, ""), (4, "")]]
    control = shown(5, ("random",))[1]
    assert control == [(3, ""), (3, "random"), (4, ""), (4, "random")]
    assert shown(5, ("random", "reinit"))[1] == [(c, arm.replace("random", "reinit")) for c, arm in control]


def test_curves_need_measurements_along_the_training():
    points = make_points(trials=2)
    curves = make_curves(points, [0, 5000])
    assert lottery.curve_panels(points, curves) == []
    assert lottery.curve_panels(points, {}) == []
    curves |= make_curves([p for p in points if (p.arm, p.cycle) == ("", 4)])
    assert [[line[0] for line in panel] for panel in lottery.curve_panels(points, curves)] == [[4]]


def test_a_curve_is_at_the_steps_that_every_trial_has():
    rows = [dict(step=s, accuracy=s / 1000, loss=0.0) for s in (0, 100, 200, 300)]
    curves = {(0, "", 0): rows, (1, "", 0): rows[:3], (2, "", 1): rows}
    assert lottery.curve_of(curves, "", 0) == ([0, 100, 200], [[0, 0], [10, 10], [20, 20]])
    assert lottery.curve_of(curves, "", 2) is None


def make_instability(trials=3):
    draw = np.random.default_rng(2)
    rows = [
        dict(
            trial=t,
            cycle=c,
            kept=int(PRUNABLE * 0.8**c),
            prunable=PRUNABLE,
            error=draw.random(5).tolist(),
            instability=draw.random(),
        )
        for t in range(trials)
        for c in range(19)
    ]
    return dict(dataset="mnist", split="test", about="", alphas=[0.0, 0.25, 0.5, 0.75, 1.0], rows=rows)


def test_instability_is_means_and_extents_over_the_trials(figure):
    found = make_instability()
    lottery.draw_instability(figure, found)
    left, right = figure.axes
    of = lambda c, key: [100 * np.array(r[key]) for r in found["rows"] if r["cycle"] == c]  # noqa: E731
    [line] = drawn(left).values()
    percents = [100 * int(PRUNABLE * 0.8**c) / PRUNABLE for c in range(19)]
    matches(line, percents, [of(c, "instability") for c in range(19)])
    lines = drawn(right)
    assert list(lines) == ["100", "21.0", "3.5", "1.8"]
    for cycle, line in zip((0, 7, 15, 18), lines.values(), strict=True):
        matches(line, found["alphas"], np.transpose(of(cycle, "error")))


def test_nothing_is_drawn_where_nothing_is_there():
    def names(points, curves=None, instability=None):
        return list(lottery.pictures(points, curves or {}, instability, None))

    accuracy = dict(selected_by="accuracy")
    assert names(make_points(1, 1, (), **accuracy)) == []
    assert names(make_points(1, 2, (), **accuracy)) == ["start"]
    assert names(make_points(1, 1, ())) == ["early_stop"]
    assert names(make_points(1, 1, ()), instability={"rows": []}) == ["early_stop"]
    points = make_points(2, 3)
    everything = names(points, make_curves(points), make_instability())
    assert everything == ["early_stop", "curves", "start", "instability"]
    assert names([p._replace(result=p.result | accuracy) for p in points if not p.arm]) == ["start"]


def test_captions_say_how_many_trials_there_are():
    points = make_points(4, 3)
    found = lottery.pictures(points, make_curves(points), make_instability(3), None)
    bars = "bars from the lowest to the highest."
    assert all(found[name].caption.endswith(bars) for name in found)
    assert "mean of up to 4 trials" in found["start"].caption  # the last trial stopped early
    assert "mean of 3 trials" in found["instability"].caption
    assert "lowest loss on holdout" in found["early_stop"].caption
    assert lottery.pictures(make_points(1, 3), {}, None, None)["start"].caption.endswith("; one trial.")


def test_percents_read_as_in_the_paper():
    text = [lottery.percent_text(p) for p in (100.0, 99.996, 51.28, 21.07, 7.0, 1.94, 0.51, 0.043)]
    assert text == ["100", "100", "51.3", "21.1", "7.0", "1.9", "0.51", "0.043"]
    assert math.isclose(float(lottery.percent_text(10.04)), 10.0)
