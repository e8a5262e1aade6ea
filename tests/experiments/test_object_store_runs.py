"""A chain in an object store is the chain on a disk, also when it was killed in the middle of a save."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from etils import epath
from fakes import REPOSITORY, script_module

from giung2_ext import load_chain_masks, load_ticket
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments.doctor import examination
from giung2_ext.experiments.evaluate import load_and_evaluate
from giung2_ext.reports import report
from giung2_ext.storage import records, tickets

LEASE = 4.0
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "8",
}  # as here: it finds the compiled programs
CHAIN = (
    f"--config={REPOSITORY / 'configs/imp/digits.py'}:smoke", "--seed=0", "--mesh=data:1", "--optim_ni=60",
    "--config.chain.cycles=1", "--config.chain.trials=1", "--config.chain.arms=",
    "--config.chain.rewind_ni=20", "--config.evaluation.every=20", "--config.placement.log_every=20",
    "--save_every=20", "--config.model.hidden=12,8", f"--config.placement.lease={LEASE}",
)  # fmt: skip


def kill_while(folder, object_store, part):
    """Runs the chain in a process of its own until something with `part` in its name is held back."""
    object_store.tell("slow", 3600, part)
    command = [sys.executable, str(REPOSITORY / "scripts/imp.py"), f"--save={folder}", *CHAIN]
    with subprocess.Popen(command, env=os.environ | ENVIRONMENT) as process:
        while not any(line.startswith("POST") and part in line for line in object_store.tell("log")):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    object_store.tell("slow")


@pytest.fixture(scope="module")
def chains(tmp_path_factory, object_store, chain):
    """On a disk, and in a bucket: killed while it saved step 40 of cycle 001, and started again."""
    local, remote = epath.Path(tmp_path_factory.mktemp("disk")) / "c", epath.Path("gs://bucket-of-chains/c")
    chain(local, *CHAIN)
    kill_while(remote, object_store, "c/001/states/40/state/d/")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        chain(remote, *CHAIN)
    return local, remote, said.getvalue()


def test_a_chain_that_was_killed_in_a_bucket_has_the_tickets_of_one_on_a_disk(chains):
    local, remote, _ = chains
    for run in ("", "000", "001"):
        here, there = local / run, remote / run
        names = sorted(name.name for name in here.glob("*.ckpt"))
        assert names == sorted(name.name for name in there.glob("*.ckpt"))
        for name in names:
            assert tickets.read_meta(there / name) == tickets.read_meta(here / name)
        assert records.read_metrics(there) == records.read_metrics(here)
        assert records.read_result(there) == records.read_result(here)


def test_the_next_start_waits_for_the_lock_and_goes_on_from_the_older_state(chains):
    _, remote, said = chains
    assert re.search(r"in use by process \d+ on \S+, whose lock runs until .* Waiting: it may have", said)
    assert "001: continuing from step 20" in said
    assert not list(remote.glob(".lock"))
    assert not (remote / "001/states").exists()


def test_reports_tickets_and_scores_are_read_from_a_bucket(chains):
    local, remote, _ = chains
    for folder in (local, remote):
        report.write([folder])
    for place in ("report", "report/figures", "report/tables"):
        names = sorted(path.name for path in (local / place).iterdir())
        assert names == sorted(path.name for path in (remote / place).iterdir())
    assert (remote / "report/table.md").read_text() == (local / "report/table.md").read_text()
    assert load_ticket(f"{remote}/001/last.ckpt").digest == load_ticket(local / "001/last.ckpt").digest
    assert len(load_chain_masks(f"{remote}")) == 2
    found = load_and_evaluate(f"{remote}/001/best_acc.ckpt")
    assert found == load_and_evaluate(local / "001/best_acc.ckpt")
    assert examination.examine(remote).findings == examination.examine(local).findings


def test_a_ticket_in_a_bucket_is_judged_and_its_predictions_lie_beside_it(chains, monkeypatch, capsys):
    _, remote, _ = chains
    words = ["evaluate.py", f"--ckpt={remote}/001/best_acc.ckpt", f"--against={remote}/000/best_acc.ckpt"]
    monkeypatch.setattr(sys, "argv", words)
    script_module("evaluate").main()
    assert "digits" in capsys.readouterr().out
    assert any((remote / "001/predictions").glob("*/*.npz"))


@pytest.mark.parametrize("name", ["profile", "tensorboard", "wandb"])
def test_files_that_grow_are_refused_in_a_bucket(name, train, bucket):
    with pytest.raises(Refusal, match=rf"placement\.{name} writes files that grow"):
        train(bucket / "run", *CHAIN[:4], f"--config.placement.{name}={dict(profile=5).get(name, 'true')}")
