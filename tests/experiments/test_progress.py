"""What is told while a run goes on."""

import pytest

from giung2_ext.experiments import progress

SCORES = [{"holdout": {"accuracy": a}, "train": {"accuracy": 0.5, "loss": 1.0}} for a in (0.5, 0.7)]


@pytest.fixture
def at(monkeypatch):
    """Sets the clock."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, 100.0 + seconds)


def test_the_time_left_is_that_of_the_open_run_and_of_the_whole_job(at):
    job = progress.Progress(300)
    job.open("000", 100, 0)
    assert job.left() == "? left, ? of all"
    at(10)
    job.advance(20, 0.5)
    assert job.left() == "0:40 left, 2:20 of all"
    at(50)
    job.advance(80, 0.5)
    job.close()
    at(1000)  # what is no training says nothing of its rate
    assert job.left() == "1:40 left"
    job.open("001", 200, 150)
    assert job.left() == "0:25 left"  # the last run: all is what is left of it


def test_a_line_has_density_where_masks_stay_and_counts_where_they_move():
    line = progress.scores_line("003", 40, SCORES, "0:10 left", "5 steps/s", 0.512)
    assert line == (
        "003: step 40, mean of 2 · loss 1.0000 · holdout 60.00 ± 14.14% · train 50.00 ± 0.00% · "
        "density 0.5120 · 5 steps/s · 0:10 left"
    )
    moving = [{"holdout": {"accuracy": 0.5, "kept": 10}}, {"holdout": {"accuracy": 0.5, "kept": 20}}]
    line = progress.scores_line("003", 40, moving, "0:10 left", density=1.0)
    assert "15 weights kept" in line
    assert "density" not in line
