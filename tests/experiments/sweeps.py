"""A small sweep that is killed and called again, for the local one and for SLURM's."""

import os
import signal
import subprocess
import sys
import time

from etils import epath
from fakes import REPOSITORY

from giung2_ext.reports import status
from giung2_ext.storage.records import read_lines

DIGITS = f"{REPOSITORY / 'configs/imp/digits.py'}:smoke"


def start(*words):
    command = [sys.executable, str(REPOSITORY / "scripts" / "sweep.py"), *words]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=environment, **pipes)


def kill_once_saved(process, folder):
    """SIGKILL to the training that has locked a folder, as soon as it has a state to go on from."""
    while process.poll() is None and not any(p.name.isdecimal() for p in folder.glob("states/*")):
        time.sleep(0.01)
    os.kill(int((folder / ".lock").read_text().split()[0]), signal.SIGKILL)


def swept(tmp_path, seeds, *more):
    """A sweep of twice so many runs, of which one is killed, and the same again; what both of them said."""
    words = (
        *(f"--save={tmp_path / 'save'}", f"--config={DIGITS}", f"--seeds=0..{seeds - 1}"),
        *("--over=optim_ni=10,400", "--config.evaluation.every=400", "--config.model.hidden=(20,)"),
        *("--save_every=20", "--config.placement.log_every=20", *more),
    )
    victim = "imp.digits.smoke__optim_ni=400__seed=0"
    process = start(*words)
    kill_once_saved(process, tmp_path / "save" / victim)
    first = process.communicate(timeout=300)
    assert process.returncode == 1, first
    before = {one.folder: one for one in status.survey(epath.Path(tmp_path) / "save")}
    process = start(*words)
    second = process.communicate(timeout=300)
    assert process.returncode == 0, second
    return victim, first[0], second[0], before


def check_swept(tmp_path, victim, first, second, before):
    log = tmp_path / f"save/logs/{victim}.log"
    assert f"{victim}: killed by SIGKILL" in first
    runs = len(before)
    assert f"{runs - 1} finished, 1 failed, 0 left" in first
    assert str(log) in first
    stopped = before.pop(str(tmp_path / "save" / victim))
    assert stopped.state == "stopped"
    assert 0 < stopped.step < 400
    assert {one.state for one in before.values()} == {"finished"}
    assert f"{runs} runs of train.py · {runs - 1} finished before · 1 to run" in second
    assert f"{runs} finished, 0 failed, 0 left" in second
    assert log.read_text().count("continuing from step") == 1
    after = status.survey(epath.Path(tmp_path) / "save")
    assert [one.state for one in after] == ["finished"] * runs
    for one in after:  # each was done once, and whole
        steps = [row["step"] for row in read_lines(epath.Path(one.folder) / "metrics.jsonl")]
        assert max(steps) == one.steps
        assert steps == sorted(steps)
