"""Where runs and chains stand, told from their folders alone, whatever is in them."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from fakes import REPOSITORY

from giung2_ext.core.errors import Refusal
from giung2_ext.reports import status
from giung2_ext.storage import locks, records, tickets

STEPS = 40


@pytest.fixture
def save(tmp_path):
    return epath.Path(tmp_path) / "save"


def session(script="train.py", save="", chain=None, started="1"):
    environment = dict(
        command=[script, "--seed=3", *([f"--save={save}"] if save else [])],
        directory="/somewhere",
        executable="python3",
        started=started,
    )
    return {"environment": environment, "placement": {"processes": 1}, "chain": chain or {}}


def make_run(folder, reached=20, done=False, how=None, **of):
    """A run as it writes itself down, that has come to a step."""
    recipe = {"optim": {"ni": STEPS}, "evaluation": {"select_on": "holdout", "select_by": "accuracy"}}
    folder.mkdir(parents=True, exist_ok=True)
    records.record_session(folder, recipe, session(save=of.pop("save", os.fspath(folder)), **of))
    kernel, mask = np.ones((4, 2), np.float32), np.ones((4, 2), bool)
    mask[0] = False
    for step in range(0, reached + 1, 10):
        row = dict(step=step, accuracy=step / 100, loss=1.0)
        records.MetricsLog(folder, step - 1).write([{**row, "split": "holdout"}, {**row, "split": "train"}])
    if reached:
        place, _ = tickets.write_ticket(folder, {"k": kernel}, {"k": mask}, {}, {"step": reached})
        tickets.name_ticket(folder, "best_acc.ckpt", place)
    if how:
        records.record_end(folder, how, "because")
    if done:
        best = {"holdout": {"accuracy": reached / 100, "loss": 1.0}}
        result = dict(steps=STEPS, selected_on="holdout", best_step=reached, kept=6, prunable=8)
        records.write_result(folder, result | {"scores": {"best": best}})


def only(save):
    [standing] = status.survey(save)
    return standing


def test_a_run_tells_its_step_its_best_score_and_its_density(save):
    make_run(save / "run")
    found = only(save)
    assert (found.state, found.step, found.steps, found.density) == ("stopped", 20, STEPS, 0.75)
    assert found.best == ("holdout", "accuracy", 0.2, 20)
    assert found.why == "gave no reason: killed, or the machine was lost"
    (save / "run/states/30").mkdir(parents=True)
    assert only(save).step == 30  # a state is further than what was measured


@pytest.mark.parametrize(
    ("made", "state", "why"),
    [
        (dict(done=True), "finished", ""),
        (dict(how="failed"), "failed", "because"),
        (dict(how="stopped"), "stopped", "because"),
        (dict(reached=0), "stopped", "gave no reason: killed, or the machine was lost"),
        (dict(how="failed", done=True), "finished", ""),
    ],
)
def test_a_run_is_in_the_state_that_its_last_words_say(made, state, why, save):
    make_run(save / "run", **made)
    assert (only(save).state, only(save).why) == (state, why)


def test_a_session_that_goes_on_forgets_how_the_one_before_ended(save):
    make_run(save / "run", how="failed")
    make_run(save / "run", started="2")
    assert only(save).why == "gave no reason: killed, or the machine was lost"


def test_a_run_that_is_worked_on_is_running_and_says_by_whom(save):
    make_run(save / "run", how="failed")
    with locks.locked([save / "run"]):
        found = only(save)
    assert (found.state, found.holder) == ("running", f"{os.getpid()} on {os.uname().nodename}")
    assert only(save).state == "failed"


def test_a_run_stopped_before_its_first_step_is_one(save):
    with locks.locked([save / "run"]):
        assert only(save).state == "running"
    assert (only(save).state, only(save).why) == ("stopped", "before its first step")


def test_the_command_is_the_recorded_one_with_the_folder_where_it_is_now(save, tmp_path):
    make_run(save / "run")
    command = f"cd /somewhere && python3 train.py --seed=3 --save={save / 'run'}"
    assert only(save).command == command
    os.rename(save / "run", save / "moved")
    assert only(save).command == command.replace("run", "moved")
    lines = status.text(status.survey(save), 0.0).splitlines()
    assert lines[1].strip() == only(save).command
    make_run(save / "relative", save="../elsewhere/relative")
    assert status.survey(save)[1].command.endswith(f"--save={os.path.realpath(save / 'relative')}")


def test_what_is_finished_and_the_runs_of_a_chain_have_no_command_of_their_own(save):
    make_run(save / "run", done=True)
    assert only(save).command is None
    make_chain(save / "chain", cycles=2)
    chain, _ = status.survey(save)
    assert chain.command
    assert {run.command for run in chain.runs} == {None}
    make_chain(save / "chain", done=True)
    assert status.survey(save)[0].command is None


def damage(name, content):
    def apply(folder):
        (folder / name).write_bytes(content)

    return apply


def lose(name):
    def apply(folder):
        place = folder / name
        place.rmtree() if place.is_dir() else place.unlink()

    return apply


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (damage("config.json", b"{"), "config.json is damaged"),
        (damage("config.json", b"[]"), "holds no recipe"),
        (damage("config.json", b'{"recipe": {}}'), "KeyError"),
        (
            damage("config.json", b'{"recipe": {"evaluation": 3, "optim": {"ni": 1}}, "sessions": []}'),
            "TypeError",
        ),
        (damage("config.json", b"\xff\xfe"), "damaged"),
        (damage("metrics.jsonl", b"5\n"), "TypeError"),
        (damage("metrics.jsonl", b"\xff\n"), "UnicodeDecodeError"),
        (damage("result.json", b""), "result.json is damaged"),
        (damage("result.json", b"{}"), "KeyError"),
        (lose("config.json"), "metrics.jsonl and no config.json"),
        (lose("tickets"), "best_acc.ckpt"),
    ],
)
def test_a_damaged_folder_is_shown_as_such_beside_the_others(harm, said, save):
    make_run(save / "a", done=True)
    make_run(save / "b")
    harm(save / "b")
    good, bad = status.survey(save)
    assert (good.state, bad.state) == ("finished", "damaged")
    assert said in bad.why
    assert "Traceback" not in status.text([good, bad], 0.0)


CHAIN = dict(cycles=2, trials=2, arms=["reinit"], rewind_ni=0)


def make_chain(root, cycles=3, **of):
    for trial in range(2):
        base = root / f"trial_{trial}"
        how = dict(script="/x/imp.py", save=os.fspath(root), chain=CHAIN)
        make_run(base, done=True, **how)
        make_run(base / "reinit", done=True, **how)
        for n in range(cycles):
            last = n == cycles - 1
            make_run(base / f"{n:03d}", **how, **(of if last else dict(done=True, reached=30)))
            if n:
                make_run(base / f"reinit/{n:03d}", **how, **(of if last else dict(done=True)))


def test_a_chain_is_told_as_one_with_its_newest_cycle(save):
    make_chain(save / "chain", cycles=2, how="failed")
    found = only(save)
    assert (found.kind, found.state, found.why) == ("chain", "failed", "because")
    assert (found.cycle, found.cycles, found.step, found.steps) == (1, 2, 20, STEPS)
    assert found.best == ("holdout", "accuracy", pytest.approx(0.2), 20)
    assert (found.finished, len(found.runs)) == (6, 10)
    assert found.command == f"cd /somewhere && python3 /x/imp.py --seed=3 --save={save / 'chain'}"
    with locks.locked([save / "chain"]):
        assert only(save).state == "running"
    (save / "chain/chain_states/001/30").mkdir(parents=True)
    assert only(save).step == 30


def test_a_chain_is_finished_with_its_last_cycle_and_not_before(save):
    make_chain(save / "chain", cycles=2, done=True)
    assert only(save).state == "stopped"
    make_chain(save / "chain", cycles=3, done=True)
    assert only(save).state == "finished"
    (save / "chain/trial_1/reinit/002/result.json").unlink()
    assert only(save).state != "finished"


def test_a_chain_with_a_damaged_run_is_damaged(save):
    make_chain(save / "chain", done=True)
    (save / "chain/trial_0/001/config.json").write_text("{")
    found = only(save)
    assert found.state == "damaged"
    assert "trial_0/001" in found.why


def test_cycles_typed_one_by_one_are_runs_of_their_own(save):
    make_run(save / "run", done=True)
    make_run(save / "run/000")
    assert [one.kind for one in status.survey(save)] == ["run", "run"]


def test_what_a_sweep_has_not_begun_is_waiting_and_what_it_began_has_its_command(save):
    command = ["python3", "train.py", "--save="]
    runs = {
        n: {"command": [*command[:-1], f"--save={n}"], "directory": f"/some/{n}"} for n in ("a", "b", "c")
    }
    make_run(save / "a", done=True)
    with locks.locked([save / "b"]):
        pass
    (save / records.SWEEP).write_text(json.dumps({"runs": runs}))
    (save / "logs/states").mkdir(parents=True)  # a log may have any name
    a, b, c = status.survey(save)
    assert [one.state for one in (a, b, c)] == ["finished", "stopped", "waiting"]
    assert b.command == "cd /some/b && python3 train.py --save=b"
    assert c.command == "cd /some/c && python3 train.py --save=c"
    (save / records.SWEEP).write_text("{")
    assert [one.state for one in status.survey(save)] == ["finished", "stopped"]


def test_a_chain_that_is_starting_is_one_line_and_running(save):
    runs = {"chain": {"command": ["python3", "imp.py", "--save=chain"], "directory": "/x"}}
    held = [save / "chain", *(save / f"chain/trial_{i}" for i in range(3))]
    with locks.locked(held):
        (save / records.SWEEP).write_text(json.dumps({"runs": runs}))
        found = only(save)
        assert (found.state, found.holder) == ("running", f"{os.getpid()} on {os.uname().nodename}")
        assert found.command == "cd /x && python3 imp.py --save=chain"


def test_a_chain_that_was_killed_while_it_started_is_one_line(save):
    with locks.locked([save / "chain", *(save / f"chain/trial_{i}" for i in range(3))]):
        pass
    found = only(save)
    assert (found.folder, found.state, found.why) == (f"{save}/chain", "stopped", "before its first step")


def test_what_is_damaged_within_what_is_damaged_stops_nothing(save):
    make_run(save / "good", done=True)
    for place in ("a", "a/000"):
        make_run(save / place)
        (save / place / records.CONFIG).write_text("{")
    with locks.locked([save / "a/001"]):
        found = {one.folder.removeprefix(f"{save}/"): one.state for one in status.survey(save)}
    assert found == {"good": "finished", "a": "damaged", "a/000": "damaged", "a/001": "running"}


def test_where_tests_choose_because_there_is_no_validation_the_best_is_told(save):
    make_run(save / "run")
    lines = (save / "run" / records.METRICS).read_text()
    (save / "run" / records.METRICS).write_text(lines.replace("holdout", "test"))
    assert only(save).best == ("test", "accuracy", 0.2, 20)


def test_nothing_is_written_and_jax_is_not_imported(save):
    make_chain(save / "chain", how="stopped")
    make_run(save / "run")
    before = {path: path.stat().st_mtime_ns for path in pathlib.Path(save).rglob("*")}
    script = str(REPOSITORY / "scripts/status.py")
    code = (
        f"import runpy, sys; sys.argv = ['status.py', {str(save)!r}, '--json']; "
        f"runpy.run_path({script!r}, run_name='__main__'); "
        "assert not {'jax', 'flax', 'orbax'} & {*sys.modules}"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    chain, run = json.loads(done.stdout)
    assert (chain["kind"], run["kind"], run["best"]["value"]) == ("chain", "run", 0.2)
    assert len(chain["runs"]) == 14
    assert {path: path.stat().st_mtime_ns for path in pathlib.Path(save).rglob("*")} == before


def test_a_folder_that_is_not_there_is_refused(save):
    with pytest.raises(Refusal, match="there is no folder"):
        status.survey(save)


@pytest.mark.parametrize(
    ("seconds", "said"), [(-1, "0 s"), (90, "90 s"), (150, "2 min"), (8000, "2 h"), (2e5, "2 d")]
)
def test_times_are_told_in_the_largest_unit_that_fits_twice(seconds, said):
    assert status.ago(seconds) == said
