"""What a run says of itself, and what it refuses."""

import json
import os
import sys

import jax
import pytest
from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.storage import records

RECIPE = {"seed": 5, "optim": {"lr": 0.1, "ni": 30}, "model": {"name": "lenet", "hidden": [300, 100]}}
ROWS = [{"step": s, "split": n, "accuracy": s / 40, "loss": 1.5} for s in (0, 10, 20) for n in ("a", "b")]


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path)


def test_a_difference_is_one_readable_line_a_field():
    new = {
        "seed": 5,
        "optim": {"lr": 0.4},
        "model": {"name": "lenet", "hidden": [300, 100]},
        "extra": {"x": None},
    }
    assert records.difference(RECIPE, new) == [
        "extra.x: (absent) -> None",
        "optim.lr: 0.1 -> 0.4",
        "optim.ni: 30 -> (absent)",
    ]


def test_the_recorded_recipe_differs_from_itself_in_nothing(folder):
    recipe = {**RECIPE, "small": 1e-300, "third": 1 / 3, "pair": [1, [2, None]], "none": None, "empty": {}}
    records.record_session(folder, recipe, {})
    assert records.difference(records.recorded_recipe(folder), recipe) == []
    records.check_recipe(folder, records.recorded_recipe(folder), recipe)


def test_another_recipe_is_refused_with_old_and_new(folder):
    records.record_session(folder, RECIPE, {})
    other = {**RECIPE, "seed": 6, "optim": {"lr": 0.1, "ni": 40}}
    records.check_recipe(folder, RECIPE, other)  # no work is lost yet
    (folder / "last.ckpt").mkdir()
    records.check_recipe(folder, RECIPE, RECIPE)
    with pytest.raises(Refusal, match=r"optim\.ni: 30 -> 40; seed: 5 -> 6\. Choose another --save"):
        records.check_recipe(folder, RECIPE, other)


def test_every_session_joins_the_history_of_one_recipe(folder):
    for workers in (1, 2):
        records.record_session(folder, RECIPE, {"placement": {"workers": workers}})
    stored = json.loads((folder / records.CONFIG).read_text())
    assert stored["recipe"] == RECIPE
    assert [session["placement"]["workers"] for session in stored["sessions"]] == [1, 2]


@pytest.mark.parametrize("damage", [b"", b"{", b"\x80\x81", b"[]", b"{}"])
def test_a_damaged_record_is_refused_by_its_path(damage, folder):
    (folder / records.CONFIG).write_bytes(damage)
    with pytest.raises(Refusal, match=r"config\.json is damaged"):
        records.recorded_recipe(folder)


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (5, 2), (10, 4), (19, 4), (20, 6), (99, 6)])
def test_the_log_is_cut_back_to_the_step_that_a_run_resumes_from(step, kept, folder):
    records.MetricsLog(folder, 0).write(ROWS)
    log = records.MetricsLog(folder, step)
    assert records.read_metrics(folder) == ROWS[:kept]
    log.write([{"step": 100}])
    log.write([{"step": 110}])
    assert records.read_metrics(folder) == [*ROWS[:kept], {"step": 100}, {"step": 110}]


def test_a_log_that_was_cut_at_any_byte_gives_its_whole_lines(folder):
    records.MetricsLog(folder, 0).write(ROWS)
    whole = (folder / records.METRICS).read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole)):
        (folder / records.METRICS).write_bytes(whole[:size])
        rows = sum(end <= size for end in ends)  # the newline itself may be missing
        assert records.read_metrics(folder) == ROWS[:rows]
    records.MetricsLog(folder, 20).write([{"step": 30}])  # the last line was left without its newline
    assert records.read_metrics(folder) == [*ROWS, {"step": 30}]


def test_a_folder_has_a_result_when_it_was_written(folder):
    assert records.read_result(folder) is None
    result = {"scores": {"best": {"accuracy": 1 / 3}}, "kept": 2**40}
    records.write_result(folder, result)
    before_there_was_a_choice = {"selected_by": "accuracy"}
    assert records.read_result(folder) == result | before_there_was_a_choice
    records.write_result(folder, result | {"selected_by": "loss"})
    assert records.read_result(folder) == result | {"selected_by": "loss"}
    assert [p.name for p in folder.iterdir()] == [records.RESULT]


def test_the_environment_names_versions_and_can_be_written():
    environment = json.loads(json.dumps(records.environment()))
    assert environment["packages"]["jax"] == jax.__version__
    assert environment["commit"] is None or len(environment["commit"].removesuffix("-dirty")) == 40


def test_how_a_session_ended_is_told_in_that_session_alone(folder):
    records.record_end(folder, "failed", "before anything was recorded")
    assert not (folder / "config.json").exists()
    for name in ("first", "second"):
        records.record_session(folder, RECIPE, {"name": name})
    records.record_end(folder, "stopped", "told to stop")
    first, second = json.loads((folder / "config.json").read_text())["sessions"]
    assert "ended" not in first
    assert second["ended"]["how"] == "stopped"
    assert second["ended"]["why"] == "told to stop"
    assert records.recorded_recipe(folder) == RECIPE


def test_a_session_says_how_it_was_started():
    environment = records.environment()
    assert environment["command"] == sys.argv
    assert environment["directory"] == os.getcwd()
    assert environment["executable"] == sys.executable
