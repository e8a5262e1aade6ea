"""The charts of the ticket experiments show means and extents of the data, and nothing else."""

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


def chain(points, curves=None, instability=None):
    return {"": lottery.Chain(points, curves or {}, instability)}


def line(chart, panel, series, x="density"):
    """(x, mean, [(low, high), …] where there are bars) of a line of a chart."""
    own = [row for row in chart.rows if (row["panel"], row["series"]) == (panel, series)]
    ends = [(row["low"], row["high"]) for row in own if row["low"] is not None]
    return [row[x] for row in own], [row["value"] for row in own], np.array(ends)


def matches(found, x, groups):
    """Means and extents of a line with a bar at every value; numbers of a chart have five digits."""
    seen_x, mean, ends = found
    assert seen_x == pytest.approx(x, rel=1e-4)
    assert mean == pytest.approx([np.mean(g) for g in groups], rel=1e-4)
    assert ends == pytest.approx(np.array([(np.min(g), np.max(g)) for g in groups]), rel=1e-4)


def series_of(chart, panel):
    return list(dict.fromkeys(row["series"] for row in chart.rows if row["panel"] == panel))


def by_cycle(points, arm, value):
    own = [p for p in points if p.arm == arm]
    cycles = sorted({p.cycle for p in own})
    groups = [[p for p in own if p.cycle == c] for c in cycles]
    densities = [np.mean([p.result["kept"] / PRUNABLE for p in g]) for g in groups]
    return densities, [[value(p) for p in g] for g in groups]


def test_early_stops_are_means_and_extents_over_the_trials():
    points = make_points(arms=("reinit", "random"))
    chart = lottery.early_stops(chain(points))
    for panel, value in (
        ("early-stopping iteration", lambda p: p.result["best_step"]),
        ("test accuracy at it (%)", lambda p: 100 * p.result["scores"]["best"]["test"]["accuracy"]),
    ):
        assert series_of(chart, panel) == ["tickets", "random", "reinit"]
        for arm in ("", "random", "reinit"):
            matches(line(chart, panel, arm or "tickets"), *by_cycle(points, arm, value))
    accuracy = dict(selected_by="accuracy")
    assert lottery.early_stops(chain(make_points(**accuracy))) is None


def test_several_chains_are_told_apart_by_name():
    chains = {name: chain(make_points(2, 3))[""] for name in ("a", "b")}
    rows = lottery.early_stops(chains).rows
    assert {row["series"] for row in rows} == {"a tickets", "a reinit", "b tickets", "b reinit"}


def test_bars_of_one_trial_are_its_value():
    rows = lottery.early_stops(chain(make_points(trials=1))).rows
    assert all(row["low"] == row["value"] == row["high"] for row in rows)


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


PANEL_CYCLES = [[0, 3, 7], [0, 12, 15, 18], [3, 7]]


def percent(cycle):
    return lottery.percent_text(100 * 0.8**cycle)


def test_curves_are_means_and_extents_at_the_levels_of_the_paper():
    points = make_points(arms=("reinit", "random"))
    curves = make_curves(points)
    chart = lottery.curves(chain(points, curves))
    titles = [", ".join(map(percent, cycles)) + "%" for cycles in PANEL_CYCLES]
    titles[2] += ", reinit beside them"
    assert list(dict.fromkeys(row["panel"] for row in chart.rows)) == titles
    for title, cycles in zip(titles, PANEL_CYCLES, strict=True):
        pairs = [(c, arm) for c in cycles for arm in (("", "reinit") if title == titles[2] else ("",))]
        labels = [lottery.named(f"{percent(c)}%", arm) for c, arm in pairs]
        assert series_of(chart, title) == labels
        for (cycle, arm), label in zip(pairs, labels, strict=True):
            steps, mean, _ = line(chart, title, label, "step")
            groups = {step: curve_values(curves, arm, cycle, step) for step in STEPS}
            assert steps == STEPS
            assert mean == pytest.approx([np.mean(groups[step]) for step in steps], rel=1e-4)
            rows = [r for r in chart.rows if (r["panel"], r["series"]) == (title, label)]
            barred = [row for row in rows if row["low"] is not None]
            assert 8 <= len(barred) <= 12
            for row in barred:
                extent = min(groups[row["step"]]), max(groups[row["step"]])
                assert (row["low"], row["high"]) == pytest.approx(extent, rel=1e-4)


def test_bars_of_a_panel_stand_beside_each_other():
    points = make_points()
    rows = lottery.curves(chain(points, make_curves(points))).rows
    places = [(row["panel"], row["step"]) for row in rows if row["low"] is not None]
    assert len(places) == len(set(places))


def test_long_curves_are_thinned():
    points = make_points(1, 1, ())
    rows = lottery.curves(chain(points, make_curves(points, list(range(0, 50_001, 100))))).rows
    assert 60 < len(rows) <= lottery.STEPS


def test_the_limits_of_curves_are_those_of_late_training():
    points = make_points()
    curves = make_curves(points)
    panels = lottery.curve_panels(points, curves)
    shown = {(arm, c) for panel in panels for c, arm, *_ in panel}
    late = [curve_values(curves, *which, step) for which in shown for step in STEPS if step >= 2500]
    lowest, highest = min(map(min, late)), max(map(max, late))
    low, high = lottery.late_limits(panels)
    assert lowest - 1.5 * (highest - lowest) < low < lowest < highest < high
    assert low > 50  # the first points are outside
    layers = lottery.curves(chain(points, curves)).spec["spec"]["layer"]
    for layer in layers:  # else the axis were that of all values
        assert list(layer["encoding"]["y"]["scale"]["domain"]) == [low, high]
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


def test_instability_is_means_and_extents_over_the_trials():
    found = make_instability()
    unstable, barrier = lottery.instability(chain([], {}, found))
    of = lambda c, key: [100 * np.array(r[key]) for r in found["rows"] if r["cycle"] == c]  # noqa: E731
    densities = [int(PRUNABLE * 0.8**c) / PRUNABLE for c in range(19)]
    matches(line(unstable, "", "tickets"), densities, [of(c, "instability") for c in range(19)])
    assert series_of(barrier, "") == ["100%", "21.0%", "3.5%", "1.8%"]
    for cycle, series in zip((0, 7, 15, 18), series_of(barrier, ""), strict=True):
        matches(line(barrier, "", series, "place"), found["alphas"], np.transpose(of(cycle, "error")))
    assert lottery.instability(chain([], {}, {"rows": []})) == [None, None]
    assert lottery.instability(chain([])) == [None, None]


def test_captions_say_how_many_trials_there_are():
    points = make_points(4, 3)
    own = chain(points, make_curves(points), make_instability(3))
    charts = [lottery.early_stops(own), lottery.curves(own), *lottery.instability(own)]
    assert all(chart.caption.endswith("bars from the lowest to the highest.") for chart in charts)
    assert "mean of up to 4 trials" in charts[0].caption  # the last trial stopped early
    assert "mean of 3 trials" in charts[2].caption
    assert "lowest loss on holdout" in charts[0].caption
    assert lottery.early_stops(chain(make_points(1, 3))).caption.endswith("; one trial.")


def test_percents_read_as_in_the_paper():
    text = [lottery.percent_text(p) for p in (100.0, 99.996, 51.28, 21.07, 7.0, 1.94, 0.51, 0.043)]
    assert text == ["100", "100", "51.3", "21.1", "7.0", "1.9", "0.51", "0.043"]
    assert math.isclose(float(lottery.percent_text(10.04)), 10.0)
