"""Whether a process is one of several, as launchers tell it; what is decided by one of them."""

import os
import subprocess
import sys
import time

import pytest
from fakes import REPOSITORY

from giung2_ext.core.errors import Refusal
from giung2_ext.training import processes
from giung2_ext.training.loop import SaveEvery
from giung2_ext.training.processes import Launch, launched

SLURM = dict(SLURM_JOB_ID="7", SLURM_NTASKS="4", SLURM_PROCID="1", SLURM_STEP_NODELIST="n[1-4]")
LAUNCHERS = {
    "a laptop": ({}, None),
    "a shell with odd variables": (dict(SLURM_STEP_NUM_TASKS="", OMPI_COMM_WORLD_SIZE="many"), None),
    "srun": (SLURM | dict(SLURM_STEP_NUM_TASKS="4"), Launch("SLURM", 4)),
    "srun of one task": (SLURM | dict(SLURM_STEP_NUM_TASKS="1"), None),
    "a batch script of four tasks, without srun": (SLURM, None),
    "mpirun": (dict(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="1"), Launch("Open MPI", 2, 1)),
    "mpirun of one": (dict(OMPI_COMM_WORLD_SIZE="1", OMPI_COMM_WORLD_RANK="0"), None),
    "an indexed job": (
        dict(KUBERNETES_SERVICE_HOST="10.0.0.1", JOB_COMPLETION_INDEX="3"),
        Launch("Kubernetes"),
    ),
    "a lone pod": (dict(KUBERNETES_SERVICE_HOST="10.0.0.1"), None),
    "by hand": (
        dict(JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1", JAX_COORDINATOR_ADDRESS="a:1"),
        Launch("JAX_NUM_PROCESSES", 2, 1),
    ),
    "by hand, over srun": (
        SLURM | dict(SLURM_STEP_NUM_TASKS="4", JAX_NUM_PROCESSES="1"),
        Launch("JAX_NUM_PROCESSES", 1, 0),
    ),
}
TPUS = {
    "a TPU host": ({}, Launch("TPU")),
    "the only worker": (dict(TPU_WORKER_HOSTNAMES="localhost"), None),
    "one of several workers": (dict(TPU_WORKER_HOSTNAMES="t-0,t-1"), Launch("TPU")),
    "the only worker of one of two slices": (
        dict(TPU_WORKER_HOSTNAMES="t-0", MEGASCALE_NUM_SLICES="2"),
        Launch("TPU"),
    ),
    "told to use the CPU": (dict(JAX_PLATFORMS="cpu"), None),
}


HALVES = [dict(JAX_NUM_PROCESSES="2"), dict(JAX_NUM_PROCESSES="two", JAX_PROCESS_ID="0")]


@pytest.mark.parametrize("named", HALVES)
def test_a_process_named_by_halves_is_refused(named, tmp_path):
    with pytest.raises(Refusal, match="must be numbers: how many processes there are, and which of them"):
        launched(named, tmp_path)


@pytest.mark.parametrize("where", LAUNCHERS)
def test_a_launcher_is_known_by_its_variables(where, tmp_path):
    environ, expected = LAUNCHERS[where]
    assert launched(environ, tmp_path) == expected


@pytest.mark.parametrize("where", TPUS)
@pytest.mark.parametrize("device", ["accel0", "vfio/0"])
def test_a_tpu_host_is_known_by_its_devices(where, device, tmp_path):
    environ, expected = TPUS[where]
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).touch()
    assert launched(environ, tmp_path) == expected


def connect(mode, **environ):
    """`connect` in a process of its own: what it prints, and how long it takes."""
    code = (
        "from giung2_ext.core.errors import Refusal\n"
        "from giung2_ext.training import processes\n"
        "import jax\n"
        "try:\n"
        f"    processes.connect({mode!r}, 5, 30)\n"
        "    print(processes.joined(), processes.first(), jax.process_count())\n"
        "except Refusal as error:\n"
        "    print(error)\n"
    )
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OMPI", "JAX"))}
    environ = plain | {"JAX_PLATFORMS": "cpu"} | environ
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environ, capture_output=True, text=True
    )
    assert time.monotonic() - began < 60
    return done.stdout.strip() or done.stderr


def test_one_process_is_never_part_of_a_job():
    assert connect("auto") == "False True 1"
    assert connect("off", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="0") == "False True 1"
    assert connect("auto", JAX_NUM_PROCESSES="1") == "False True 1"


def test_others_that_do_not_come_are_not_waited_for_without_end():
    """Process 1 of 2, without a process 0."""
    alone = dict(JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1", JAX_COORDINATOR_ADDRESS="localhost:1")
    said = connect("auto", **alone)
    assert "did not find each other" in said or "DEADLINE_EXCEEDED" in said, said


def test_a_job_that_cannot_be_found_is_refused_with_what_to_do():
    said = connect("on")
    assert "(--distributed=on), and nothing says where the first one is" in said
    assert "JAX_COORDINATOR_ADDRESS=HOST:PORT" in said
    with pytest.raises(Refusal, match="unknown value of --distributed 'maybe'; known: auto, off, on"):
        processes.connect("maybe", 5, 30)


def test_a_process_alone_decides_at_once():
    assert processes.agree(lambda: (1, None)) == (1, None)
    assert processes.first()
    assert not processes.joined()
    assert processes.all_of(True)
    assert not processes.all_of(False)
    vote = processes.Ballot()
    assert [vote(wish, 0) for wish in (0, 1, 0)] == [(0, 0), (1, 0), (0, 0)]
    with pytest.raises(Refusal, match="no"):
        processes.agree(refuse)


def refuse():
    raise Refusal("no")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1000", SaveEvery(1000, 0.0)),
        ("300s", SaveEvery(0, 300.0)),
        ("0.5s", SaveEvery(0, 0.5)),
        ("1000,300s", SaveEvery(1000, 300.0)),
        ("never", SaveEvery()),
    ],
)
def test_states_are_saved_by_steps_or_seconds(text, expected):
    assert SaveEvery.read(text) == expected


@pytest.mark.parametrize("text", ["", "often", "0", "0s", "10,20", "1.5", "-3", "5m", "s"])
def test_other_times_to_save_are_refused(text):
    with pytest.raises(Refusal, match=f"--save_every={text}: write 1000"):
        SaveEvery.read(text)
