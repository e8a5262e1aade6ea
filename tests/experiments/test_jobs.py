"""Jobs of two real processes with four devices each, and runs that change their topology on the way."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from etils import epath
from fakes import REPOSITORY, Stopped, dying_at, script_module

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import single
from giung2_ext.storage import locks
from giung2_ext.storage.records import read_metrics
from giung2_ext.storage.tickets import read_ticket

DIGITS = f"--config={REPOSITORY / 'configs/imp/digits.py'}"
RESNET = (
    DIGITS, "--config.model.name=resnet_cifar", "--config.model.depth=8", "--config.model.planes=8",
    "--config.model.group_size=8", "--config.optim.name=sgd", "--optim_lr=0.005", "--batch_size=64",
    "--config.optim.ni=24", "--config.evaluation.every=8", "--config.placement.log_every=4", "--seed=3",
)  # fmt: skip
SOON = ("--config.placement.lost_after=10", "--config.placement.joined_within=60")
Job = script_module("torture").Job
small_imagenet = script_module("make_imagenet")

LOSS, STATE = 2e-3, 5e-3
"""As in test_sharding: relative and absolute; measured here 2e-7 and 5e-7 after 24 steps."""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Starts a script in two processes of four devices; ends what is left of it."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    jobs = []

    def start(name, *words):
        words = {str(word).partition("=")[0]: str(word) for word in (*SOON, *words)}  # a later flag wins
        command = [sys.executable, str(REPOSITORY / "scripts" / f"{name}.py"), *words.values()]
        jobs.append(Job(command, 2, 4, tmp_path / f"job{len(jobs)}"))
        return jobs[-1]

    yield start
    for one in jobs:
        for process in one.running:
            process.kill()
            process.wait()


def finished(one):
    assert one.ends_within(240)
    one.check()
    return one.said()


def losses_of(folder):
    return [(row["split"], row["step"], row["loss"]) for row in read_metrics(epath.Path(folder))]


def assert_close(folder, reference):
    """Every recorded loss, and the last ticket's weights and statistics, to a stated tolerance."""
    found, wanted = losses_of(folder), losses_of(reference)
    assert [row[:2] for row in found] == [row[:2] for row in wanted]
    np.testing.assert_allclose([row[2] for row in found], [row[2] for row in wanted], rtol=LOSS)
    a, b = read_ticket(folder / "last.ckpt"), read_ticket(reference / "last.ckpt")
    for name in ("params", "statistics"):
        left, right = getattr(a, name), getattr(b, name)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=STATE), left, right)


def mask_digests(folder):
    return [read_ticket(folder / name).meta["mask_digest"] for name in ("best_acc.ckpt", "last.ckpt")]


@pytest.fixture
def on_one_device(train, tmp_path):
    train(tmp_path / "one", *RESNET)
    return tmp_path / "one"


def test_two_processes_train_and_prune_as_one_device_does(job, train, on_one_device, tmp_path):
    one, two, cut = on_one_device, tmp_path / "two", tmp_path / "cut"
    said = finished(job("train", *RESNET, f"--save={two}", "--profile=3"))
    assert "on data:8 of 8 cpu device(s) (cpu) in 2 processes" in said
    assert len(list((two / "profile").rglob("*.xplane.pb"))) == 1  # all halt at its steps, one writes
    assert_close(two, one)
    finished(
        job("train", *RESNET, f"--save={cut}", "--mesh=data:2,fsdp:4", "--grad_accum=2", "--save_every=8")
    )
    assert_close(cut, one)
    session = json.loads((cut / "config.json").read_text())["sessions"][0]["placement"]
    assert (session["mesh"], session["micro_batches"], session["processes"]) == ("data:2,fsdp:4", 2, 2)

    prune = (*RESNET, f"--matching_ckpt={one / 'last.ckpt'}", f"--previous_ckpt={one / 'last.ckpt'}")
    prune = (*prune, "--pruning_ratio=0.3", "--config.optim.ni=0")
    train(one / "000", *prune)
    finished(job("train", *prune, f"--save={two / '000'}", "--mesh=fsdp:8"))
    assert mask_digests(two / "000") == mask_digests(one / "000")
    assert read_ticket(two / "000/last.ckpt").meta["kept"] < read_ticket(one / "last.ckpt").meta["kept"]


def test_two_processes_save_in_a_bucket_what_one_saves_on_a_disk(job, train, bucket, tmp_path):
    words = (f"{DIGITS}:smoke", "--seed=3", "--batch_size=64", "--optim_ni=40", "--save_every=20")
    train(tmp_path / "one", *words)
    first = finished(job("train", *words, f"--save={bucket / 'run'}"))
    assert "in 2 processes" in first
    assert_close(bucket / "run", tmp_path / "one")
    assert not (bucket / "run/.lock").exists()


def test_two_processes_stream_the_same_images_and_judge_each_of_them_once(job, train, tmp_path):
    tree = small_imagenet.make(tmp_path / "tree", count=4)
    words = (
        *RESNET, "--data_name=imagenet2012", "--config.data.image_size=16", "--config.data.holdout=20",
        "--config.masks.prunable=conv", "--config.model.group_size=8", "--batch_size=16",
        "--config.optim.ni=8",
        "--config.evaluation.batch_size=24", "--config.judge.batch_size=24", "--num_workers=2",
        "--config.feed.mixup=0.2", "--datasets=imagenet2012,imagenet_a", f"--data_root={tree}",
    )  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, *words)
    finished(job("train", *words, f"--save={two}", "--mesh=data:4,fsdp:2"))
    assert_close(two, one)
    for name in ("imagenet2012", "imagenet_a"):
        mine, theirs = (np.load(next(p.glob(f"predictions/*/{name}.timm.npz"))) for p in (two, one))
        assert np.array_equal(mine["ids"], theirs["ids"])
        assert len(set(mine["ids"].tolist())) == len(mine["ids"]) > 0
        np.testing.assert_allclose(mine["nll"], theirs["nll"], rtol=0.02, atol=0.02)


def test_a_run_goes_on_where_there_are_other_devices(job, train, on_one_device, tmp_path, monkeypatch):
    """Begun on one device in 8 micro-batches, continued on 2 processes of 4, finished on 8 devices."""
    straight, moved = tmp_path / "straight", tmp_path / "moved"
    train(straight, *RESNET, "--mesh=data:8")
    with monkeypatch.context() as dying:
        dying.setattr(single, "run_loop", dying_at(16))
        with pytest.raises(Stopped):
            train(moved, *RESNET, "--grad_accum=8", "--save_every=4")
    two = job("train", *RESNET, f"--save={moved}", "--save_every=4", "--config.tickets.periodic=true")
    assert two.ends_within(240)
    assert "holds a run with another recipe" in two.said()  # placement may change, the recipe may not
    assert [process.returncode for process in two.running] == [2, 2]
    two = job("train", *RESNET, f"--save={moved}", "--save_every=4", "--config.placement.log_every=1")
    while two.said().count("step 16") == 0:
        assert all(process.poll() is None for process in two.running), two.said()
        time.sleep(0.05)
    two.running[1].send_signal(signal.SIGTERM)
    assert two.ends_within(60)
    assert [process.returncode for process in two.running] in ([75, 75], [0, 0])  # or it was faster
    assert "continuing from step" in two.said()
    train(moved, *RESNET, "--mesh=data:8")
    assert_close(moved, straight)
    assert_close(moved, on_one_device)


@pytest.mark.parametrize(
    ("number", "status", "why"),
    [(signal.SIGTERM, 75, "told to stop (SIGTERM)"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_to_any_process_saves_and_ends_them_all(number, status, why, job, tmp_path):
    """States are saved at every boundary too: nothing else may answer the signal first."""
    long = (DIGITS, f"--save={tmp_path / 'run'}", "--optim_ni=2000000", "--batch_size=64", "--seed=1")
    one = job("train", *long, "--config.placement.log_every=20", "--save_every=20")
    while not (tmp_path / "run/metrics.jsonl").exists() or "step 100" not in one.said():
        assert all(process.poll() is None for process in one.running), one.said()
        time.sleep(0.1)
    began = time.monotonic()
    one.running[1].send_signal(number)
    assert one.ends_within(30)
    assert time.monotonic() - began < 30
    assert [process.returncode for process in one.running] == [status, status]
    newest = max(int(state.name) for state in (tmp_path / "run/states").iterdir())
    assert f"error: {why}; saved at step {newest:,}" in one.said(0)
    assert why not in one.said(1)  # the first one speaks for all


def test_a_process_that_hangs_takes_the_job_down_within_the_stated_time(job, tmp_path):
    long = (DIGITS, f"--save={tmp_path / 'run'}", "--optim_ni=2000000", "--batch_size=64", "--seed=1")
    one = job("train", *long)
    while not (tmp_path / "run/metrics.jsonl").exists():
        assert all(process.poll() is None for process in one.running), one.said()
        time.sleep(0.1)
    one.running[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    one.running[0].wait(60)
    assert time.monotonic() - began < 10 + 20  # lost_after, and what a busy machine adds
    assert one.running[0].returncode != 0
    assert "another task died" in one.said(0) or "another process of the job has ended" in one.said(0)


def test_a_refusal_is_said_once_and_ends_both(job, tmp_path):
    with locks.locked([epath.Path(tmp_path / "run")]):
        one = job("train", DIGITS, f"--save={tmp_path / 'run'}", "--batch_size=64")
        assert one.ends_within(120)
    assert [process.returncode for process in one.running] == [2, 2]
    assert f"is in use by process {os.getpid()}" in one.said(0)
    assert "error" not in one.said(1)


def test_a_folder_that_the_processes_do_not_share_is_refused(job, tmp_path):
    """Each process starts in a folder of its own, and the name is relative."""
    path = str(REPOSITORY / "scripts/train.py")
    code = (
        "import os, runpy, sys; "
        "os.makedirs(sys.argv[1] + os.environ['JAX_PROCESS_ID']); "
        "os.chdir(sys.argv[1] + os.environ['JAX_PROCESS_ID']); "
        f"sys.argv[:2] = [{path!r}]; runpy.run_path({path!r}, run_name='__main__')"
    )
    words = [
        sys.executable,
        "-c",
        code,
        str(tmp_path / "own"),
        DIGITS,
        "--save=run",
        "--batch_size=64",
        *SOON,
    ]
    one = Job(words, 2, 4, tmp_path / "apart")
    assert one.ends_within(120)
    assert [process.returncode for process in one.running] == [2, 2]
    assert "the processes of this job do not all see run: name a --save on a shared" in one.said(0)


def test_a_run_without_progress_says_where_it_hangs_and_ends():
    code = """
import sys, time
from giung2_ext.training import processes, signals
processes.joined = lambda: True
with signals.watched(0.5) as alive:
    for _ in range(4):
        time.sleep(0.3)
        alive()
    print("so far so good", flush=True)
    time.sleep(60)
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 1
    assert time.monotonic() - began < 30
    assert done.stdout == "so far so good\n"
    assert "Timeout" in done.stderr
    assert "line 10" in done.stderr


def test_a_chain_of_several_members_takes_no_mesh(chain, tmp_path):
    with pytest.raises(Refusal, match=r"the 6 members of this chain .* have a device each"):
        chain(tmp_path, DIGITS, "--mesh=data:2")
    with pytest.raises(Refusal, match="write data:N"):
        chain(tmp_path, DIGITS, "--mesh=model:2")


@pytest.mark.parametrize("flag", ["--save_every=5m", "--grad_accum=7", "--mesh=data:7", "--mesh=model:2"])
def test_a_wrong_placement_is_refused_before_a_folder_is_touched(flag, train, tmp_path):
    with pytest.raises(Refusal, match=flag):
        train(tmp_path / "run", DIGITS, flag)
    assert not (tmp_path / "run").exists()


def test_a_chain_in_two_processes_survives_kills_of_either(tmp_path):
    """The full form is in the README: 50 kills and more."""
    words = (
        "--save=t", "--kills=4", "--processes=2", "--devices=4", "--save_every=25", "--seed=2",
        "--within=14", f"{DIGITS}:smoke",
        "--flags=--config.chain.trials=1 --config.chain.arms= --batch_size=64 "
        "--config.placement.log_every=25 --config.chain.cycles=1 --optim_ni=100",
    )  # fmt: skip
    path = str(REPOSITORY / "scripts/torture.py")
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, path, *words], capture_output=True, text=True, cwd=tmp_path, env=environment,
        timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills in" in done.stdout
    assert "nothing lost" in done.stdout
