"""A SLURM of one node, started for these tests: jobs as they are queued, killed and queued again by it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from fakes import REPOSITORY
from sweeps import check_swept, swept

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import jobs

pytest.importorskip("submitit", reason="the extra [sweep] is not installed")
PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "squeue", "scancel", "scontrol")
DIGITS = f"--config={REPOSITORY / 'configs/imp/digits.py'}:smoke"

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores}
PartitionName=all Nodes=ALL Default=YES
SlurmUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
KillWait=60
ReturnToService=2
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
"""


def free_ports(count):
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def ask(*words):
    return subprocess.run(words, capture_output=True, text=True, timeout=60).stdout.strip()


def wait_until(true, seconds=180):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Its controller and its node daemon, in processes that end with the module."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    cores = len(os.sched_getaffinity(0))
    if missing or os.geteuid() != 0 or cores < 2:
        why = f"no {missing[0]}" if missing else "not root, or one core"
        pytest.skip(f"needs SLURM (Debian's slurm-wlm 22.05, 2026-11-27), root and two cores: {why}")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    host = os.uname().nodename.partition(".")[0]
    configuration.write_text(
        CONFIGURATION.format(host=host, cores=os.cpu_count(), ports=free_ports(2), folder=folder)
    )
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(configuration)
    running = []
    try:
        for program in ("slurmctld", "slurmd"):
            with (folder / f"{program}.log").open("w") as log:
                running.append(subprocess.Popen([program, "-D"], stdout=log, stderr=subprocess.STDOUT))
        until = time.monotonic() + 30
        while "idle" not in ask("sinfo", "--noheader", "--format=%T"):
            if time.monotonic() > until or any(process.poll() is not None for process in running):
                said = [(folder / f"{name}.log").read_text()[-300:] for name in ("slurmctld", "slurmd")]
                pytest.skip(f"SLURM does not start here (2026-11-27: it did on Debian 12): {said}")
            time.sleep(0.2)
        yield folder
    finally:
        for job in jobs.queue() if len(running) == 2 else ():
            ask("scancel", job)
        if len(running) == 2:
            wait_until(lambda: not ask("squeue", "--noheader"))
        for process in reversed(running):
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


def test_two_processes_that_are_told_to_stop_save_and_go_on_once_they_are_queued_again(
    slurm, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    log = tmp_path / "log"
    sbatch = ("sbatch", "--parsable", "--ntasks=2", "--time=60", f"--output={log}", f"--chdir={REPOSITORY}")
    job = ask(
        *(*sbatch, "scripts/launch/slurm.sh", "train.py", DIGITS, f"--save={tmp_path / 'run'}", "--seed=0"),
        *("--batch_size=64", "--optim_ni=2000000", "--save_every=never", "--config.evaluation.every=20"),
        *("--config.placement.log_every=5", "--config.model.hidden=(20,)"),
    )
    wait_until(lambda: log.exists() and (tmp_path / "run/metrics.jsonl").exists())
    assert "in 2 processes" in log.read_text()
    ask("scancel", "--signal=TERM", f"{job}.0")
    wait_until(lambda: "Restarts=1" in ask("scontrol", "show", "job", job))
    assert "told to stop (SIGTERM); saved at step" in log.read_text()
    assert "Exited with exit code 75" in log.read_text()
    time.sleep(3)  # the node takes no job of the second in which it was told to end it
    ask("scontrol", "update", f"JobId={job}", "StartTime=now")  # SLURM would wait for two minutes
    wait_until(lambda: "continuing from step" in log.read_text())
    ask("scancel", job)
    wait_until(lambda: not ask("squeue", "--noheader"))


def test_runs_of_a_sweep_are_jobs_and_one_that_is_killed_is_finished_by_the_same_command(slurm, tmp_path):
    found = swept(tmp_path, 2, "--cluster=slurm", "--slurm.time=1:00:00", "--slurm.signal_delay_s=60")
    check_swept(tmp_path, *found)
    assert "job " in found[1]


def test_what_slurm_does_not_know_is_refused_before_anything_is_submitted(slurm, tmp_path):
    for wishes, said in (
        ({"partitoin": "all", "time": "5"}, "unknown flag --slurm.partitoin; did you mean 'partition'"),
        ({}, "--slurm.time=MINUTES .* is required"),
    ):
        with pytest.raises(Refusal, match=said):
            jobs.Slurm(tmp_path / "jobs", None, 0, wishes)
    assert not jobs.queue()


def test_words_of_the_command_line_are_what_submitit_takes(slurm, tmp_path):
    wishes = dict(time="90", account="0123", nodes="2", use_srun="false", exclusive="user", gres="gpu:1")
    wishes |= dict(setup="module load x", teardown="echo done", srun_args="--mpi=none '--label'")
    read = jobs.Slurm(tmp_path, None, 0, wishes).executor.parameters
    assert (read["time"], read["account"], read["nodes"], read["use_srun"]) == (90, "0123", 2, False)
    assert (read["exclusive"], read["gres"], read["setup"]) == ("user", "gpu:1", ["module load x"])
    assert (read["teardown"], read["srun_args"]) == (["echo done"], ["--mpi=none", "--label"])
    for name, value in (("use_srun", "no"), ("nodes", "two")):
        with pytest.raises(Refusal, match=rf"--slurm\.{name} takes"):
            jobs.Slurm(tmp_path, None, 0, {"time": "90", name: value})
    with pytest.raises(Refusal, match="cannot be said in a word"):
        jobs.Slurm(tmp_path, None, 0, {"time": "90", "additional_parameters": "x"})


def test_without_slurm_it_is_said_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refusal, match="there is no sbatch, srun or squeue here"):
        jobs.Slurm(tmp_path / "jobs", None, 0, {"time": "5"})
