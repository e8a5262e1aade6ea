"""Figures show the numbers of the results, as files that can be opened."""

import os
import pathlib
import sys

import numpy as np
import pytest
from etils import epath

from giung2_ext.core import masks as masking
from giung2_ext.reports import chain, figures
from giung2_ext.storage import paths, records, tickets

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
            path, meta = tickets.write_ticket(run, params, masks, {}, {"seed": t, "arm": place})
            tickets.name_ticket(run, paths.best("accuracy"), path)
            accuracy = 0.9 - 0.1 * cycle + 0.01 * t - 0.2 * arm
            scores = {
                when: {
                    split: {"accuracy": accuracy - less, "loss": 0.1, "correct": 1, "seen": 1397}
                    for split in ("holdout", "test")
                }
                for when, less in (("start", 0.4), ("best", 0.0), ("last", 0.01))
            }
            counts = {key: meta[key] for key in ("kept", "prunable", "parameters", "layers")}
            known = dict(selected_on="holdout", seed=t, steps=20, best_step=10)
            known["tickets"] = dict(best="b", last="l")
            records.write_result(run, {"scores": scores, "parents": {}, **known, **counts})
    return chain.read_chain(folder)


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path) / "chain"


@pytest.fixture
def figure():
    return pytest.importorskip("matplotlib.figure").Figure(layout="constrained")


def contents(folder):
    root = pathlib.Path(folder)
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


@pytest.mark.parametrize("trials", [1, 3])
def test_accuracy_curves_are_the_results(trials, folder, figure):
    points = make_chain(folder, trials)
    figures.draw_accuracy(figure, points)
    trained, untrained = (lines(axes) for axes in figure.axes)
    density, shift = [points[c].density for c in range(3)], np.mean(range(trials))
    assert density[0] == 1
    assert trained["tickets"] == pytest.approx(np.c_[density, np.array([90, 80, 70]) + shift])
    assert trained["reinit"] == pytest.approx(np.c_[next(p.density for p in points if p.arm), 60 + shift])
    assert trained["dense"][:, 1] == pytest.approx(90 + shift)
    assert untrained["tickets"] == pytest.approx(np.c_[density, np.array([50, 40, 30]) + shift])
    for axes in figure.axes:
        assert axes.get_xlim()[0] > axes.get_xlim()[1]  # dense at the left
    bands = [band.get_paths()[0].vertices[:, 1] for band in figure.axes[0].collections]
    assert len(bands) == (2 if trials > 1 else 0)
    if bands:  # the deviation of 0, 1, 2 is 1
        assert [bands[0].min(), bands[0].max()] == pytest.approx([70, 92])


def test_layer_curves_are_kept_shares_averaged_over_trials(folder, figure):
    points = make_chain(folder, 2)
    figures.draw_layers(figure, points)
    curves = lines(figure.axes[0])
    assert set(curves) == {"fc", "cls", "whole network"}
    for name in ("fc", "cls"):
        shares = [np.mean([make_masks(t, c)[name]["kernel"].mean() for t in range(2)]) for c in range(3)]
        assert curves[name][:, 1] == pytest.approx(np.array(shares))


def test_overlap_shows_cycles_of_one_trial_and_chance_between_trials(folder, figure):
    points = make_chain(folder, 2)
    masks, warnings = chain.read_masks(points)
    assert warnings == []
    assert set(masks) == {(t, c) for t in range(2) for c in range(3)}
    assert np.array_equal(masks[1, 1]["fc"]["kernel"], make_masks(1, 1)["fc"]["kernel"])  # not the arm's
    figures.draw_overlap(figure, masks)
    left, right = figure.axes[:2]
    grid = np.asarray(left.get_images()[0].get_array())
    expected = [
        [np.mean([masking.overlap(make_masks(t, a), make_masks(t, b)) for t in range(2)]) for b in range(3)]
        for a in range(3)
    ]
    assert grid == pytest.approx(np.array(expected))
    between = [masking.overlap(make_masks(0, c), make_masks(1, c)) for c in range(3)]
    assert lines(right)["measured"] == pytest.approx(np.c_[range(3), between])
    chance = next(curve for label, curve in lines(right).items() if label.startswith("chance"))
    assert chance[0, 1] == 1
    assert chance[:, 1] == pytest.approx(np.array(between), abs=0.08)  # these masks are independent


@pytest.mark.parametrize("trials", [1, 2])
def test_shifts_are_drawn_with_their_intervals_or_deviations(trials, folder, figure):
    def scores(value):
        return {"scores": {"200": {"top1": [value, value - 0.1, value + 0.05]}, "all": {"top1": [0, 0, 0]}}}

    points = [
        p._replace(judged={"imagenet_a": scores(0.3 + 0.02 * p.cycle + 0.01 * p.trial)})
        for p in make_chain(folder, trials)
    ]
    figures.draw_shifts(figure, points)
    [axes] = figure.axes
    [container] = axes.containers
    line, _, [bars] = container.lines
    mean = np.array([30, 32, 34]) + (0.5 if trials == 2 else 0)
    assert line.get_ydata() == pytest.approx(mean)
    ends = np.array([segment[:, 1] for segment in bars.get_segments()]) - mean[:, None]
    sd = np.sqrt(0.5)  # of two values 1 apart
    assert ends == pytest.approx(np.tile([-10, 5] if trials == 1 else [-sd, sd], (3, 1)))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["IN-A"]


@pytest.mark.parametrize("trials", [1, 2])
def test_a_report_is_files_that_open_and_changes_nothing_else(trials, folder, capsys):
    image = pytest.importorskip("matplotlib.image")
    make_chain(folder, trials)
    before = contents(folder)
    report = chain.write_report(os.fspath(folder))
    after = contents(folder)
    drawn = {
        f"figures/{name}.{kind}"
        for name in ("accuracy", "layers", "overlap", "start")
        for kind in ("png", "pdf")
    }
    tables = {f"{name}.{kind}" for name in ("table", "costs") for kind in ("md", "csv", "tex")}
    tables |= {"report.md", "runs.csv", "results.csv", "test_acc.csv"}
    assert set(after) - set(before) == {f"report/{name}" for name in tables | drawn}
    assert {name: after[name] for name in before} == before
    for name in sorted(drawn):
        content = (report / name).read_bytes()
        if name.endswith("pdf"):
            assert content.startswith(b"%PDF-")
            assert content.rstrip().endswith(b"%%EOF")
        else:
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
            assert image.imread(os.fspath(report / name))[..., :3].std() > 0.02  # not blank
    text = (report / "report.md").read_text()
    assert (report / "table.md").read_text() in text
    assert all(f"({name})" in text for name in drawn if name.endswith("png"))
    assert (report / "table.md").read_text() in capsys.readouterr().out


def test_without_matplotlib_there_are_tables_and_a_word_on_figures(folder, monkeypatch, capsys):
    make_chain(folder, 1)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report = chain.write_report(folder)
    assert "no figures: matplotlib is missing" in capsys.readouterr().out
    assert list((report / "figures").iterdir()) == []
    assert "![" not in (report / "report.md").read_text()
