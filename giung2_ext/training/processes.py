"""Several processes as one job: joining it, who speaks and writes, and deciding as one.

JAX finds TPU pods, SLURM, Open MPI and Kubernetes by itself; here it is only decided whether to ask it,
so that a laptop never waits for anybody. Every process runs the same program on the same files; the
first one writes and prints, and decides whatever hangs on a file, a clock or a random number.
"""

import contextlib
import faulthandler
import json
import os
import pathlib
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from giung2_ext.core.errors import Failure, Preempted, Refusal, unknown

MODES = ("auto", "on", "off")


class Launch(NamedTuple):
    how: str  # named after what told it
    processes: int | None = None  # None where only JAX can tell
    this: int | None = None


def launched(environ: Mapping[str, str], devices: pathlib.Path = pathlib.Path("/dev")) -> Launch | None:
    """How this process was started as one of several, as far as the environment says."""

    def number(name: str) -> int:
        text = environ.get(name, "")
        return int(text) if text.isdigit() else 0

    if "JAX_NUM_PROCESSES" in environ:
        return Launch("JAX_NUM_PROCESSES", number("JAX_NUM_PROCESSES"), number("JAX_PROCESS_ID"))
    if number("SLURM_STEP_NUM_TASKS") > 1:  # of srun: a batch script alone is one process
        return Launch("SLURM", number("SLURM_STEP_NUM_TASKS"))
    if number("OMPI_COMM_WORLD_SIZE") > 1:
        return Launch("Open MPI", number("OMPI_COMM_WORLD_SIZE"), number("OMPI_COMM_WORLD_RANK"))
    if _has_tpu(environ, devices):
        workers = environ.get("TPU_WORKER_HOSTNAMES", "")
        alone = workers and "," not in workers and number("MEGASCALE_NUM_SLICES") < 2
        return None if alone else Launch("TPU")
    if "JOB_COMPLETION_INDEX" in environ and "KUBERNETES_SERVICE_HOST" in environ:
        return Launch("Kubernetes")
    return None


def _has_tpu(environ: Mapping[str, str], devices: pathlib.Path) -> bool:
    allowed = environ.get("JAX_PLATFORMS", "tpu") or "tpu"
    found = any(devices.glob("accel[0-9]*")) or any(devices.glob("vfio/[0-9]*"))
    return "tpu" in allowed and found and "TPU_SKIP_MDS_QUERY" not in environ


def connect(mode: str, joined_within: int, lost_after: int) -> None:
    """Joins the job that this process is part of, before anything else is asked of JAX.

    The processes wait `joined_within` seconds for each other; later one that dies, or whose heartbeat
    stops, takes the others down within `lost_after` seconds.
    """
    if mode not in MODES:
        raise unknown("value of --distributed", mode, MODES)
    launch = launched(os.environ) if mode != "off" else None
    if launch is None and mode == "on":
        launch = Launch("--distributed=on")
    if launch is None or (mode == "auto" and launch.processes == 1) or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            num_processes=launch.processes,
            process_id=launch.this,
            initialization_timeout=joined_within,
            heartbeat_timeout_seconds=lost_after,
            shutdown_timeout_seconds=lost_after,
        )
    except (RuntimeError, ValueError) as error:
        what = f"{launch.processes or 'several'} processes (told by {launch.how})"
        raise Refusal(
            f"this was started as one of {what}, and they did not find each other: "
            f"{str(error).splitlines()[0]}. Start all of them within {joined_within} s; "
            "JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID name them by hand; "
            "--distributed=off runs this process alone"
        ) from error


def joined() -> bool:
    """Whether this process is one of several (asks nothing of JAX's devices)."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def first() -> bool:
    """Whether this process is the one that writes and prints."""
    return not joined() or jax.process_index() == 0


def agree(decide: Callable[[], Any]) -> Any:
    """What the first process decides (a JSON value), for all; its refusal is everybody's too."""
    if not joined():
        return decide()
    outcome: dict[str, Any] = {}
    refusal: Refusal | None = None
    if first():
        try:
            outcome = {"value": decide()}
        except Refusal as error:
            refusal, outcome = error, {"refused": str(error), "status": error.status}
    outcome = json.loads(_broadcast(json.dumps(outcome).encode()))
    if "refused" in outcome:
        refusal = refusal or Refusal(outcome["refused"])
        refusal.status, refusal.agreed = outcome["status"], True
        raise refusal
    return outcome["value"]


def _broadcast(content: bytes) -> bytes:
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    buffer = np.zeros(1 << max(size, 256).bit_length(), np.uint8)  # few sizes: each is compiled
    if first():
        buffer[:size] = np.frombuffer(content, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer), np.uint8)[:size])


def all_of(mine: bool) -> bool:
    """Whether it is true in every process."""
    return bool(multihost_utils.process_allgather(np.bool_(mine)).all()) if joined() else mine


def together(where: str) -> None:
    """Waits until every process is here: what the first one has written can be read by all."""
    if joined():
        multihost_utils.sync_global_devices(where)


def check_shared(probe: Callable[[str], None], seen: Callable[[], str | None]) -> None:
    """Refuses a place that the processes do not share: `probe` writes a mark there, `seen` reads it."""
    if not joined():
        return
    mark = agree(lambda: os.urandom(8).hex())
    if first():
        probe(mark)
    together("mark")
    if not all_of(seen() == mark):
        error = Failure(
            "the processes of this job do not see the same --save directory: name one on a shared file "
            "system or in an object store (gs://bucket/...)"
        )
        error.agreed = True
        raise error
    together("mark seen")


class Ballot:
    """What any process wants, told to all of them one call later, so that nobody waits for an answer."""

    def __init__(self) -> None:
        self._pending: Any = None
        if joined():
            mesh = Mesh(np.array(jax.devices()), ("all",), axis_types=(AxisType.Auto,))
            self._each = NamedSharding(mesh, P("all"))
            self._count = jax.jit(lambda wishes: wishes.sum(), out_shardings=NamedSharding(mesh, P()))

    def __call__(self, wish: bool) -> bool:
        if not joined():
            return wish
        shape = (jax.device_count(),)
        wishes = jax.make_array_from_callback(shape, self._each, lambda _: np.array([wish], np.int32))
        earlier, self._pending = self._pending, self._count(wishes)
        return earlier is not None and int(earlier) > 0


class _Notice:
    """A signal that asked this process to stop, and where it finds it."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.in_loop = False
        self.asked = 0  # how often, in a job of several processes


_notice = _Notice()


def listen() -> None:
    """SIGTERM and Ctrl-C let a training loop save and leave; elsewhere they end the process at once.

    In a job of several processes SIGTERM is JAX's, whose preemption service tells all of them.
    """

    def on_signal(number: int, frame: Any) -> None:
        if _notice.in_loop and _notice.signal is None:
            _notice.signal = number
        elif number == signal.SIGINT or not _notice.in_loop:
            _notice.signal = number
            raise stopped("there was nothing to save")

    signal.signal(signal.SIGINT, on_signal)
    if not joined():
        signal.signal(signal.SIGTERM, on_signal)


@contextlib.contextmanager
def in_loop() -> Iterator[None]:
    """Here a signal waits until the loop asks for it; a second Ctrl-C does not."""
    _notice.in_loop = True
    try:
        yield
    finally:
        _notice.in_loop = False


def told_to_stop() -> bool:
    """Whether all processes are to save and leave now; each asks at the same moments of its program."""
    if not joined():
        return _notice.signal is not None
    _notice.asked += 1
    return multihost_utils.reached_preemption_sync_point(_notice.asked)


def stopped(outcome: str) -> Preempted:
    """What to raise when leaving because of a signal."""
    interrupted = _notice.signal == signal.SIGINT
    error = Preempted(
        f"{'interrupted' if interrupted else 'told to stop (SIGTERM)'}; {outcome}; "
        "the same command goes on from the newest saved state"
    )
    error.status = 130 if interrupted else Preempted.status
    return error


@contextlib.contextmanager
def watched(seconds: float) -> Iterator[Callable[[], None]]:
    """Ends a process of a job that has not called what this yields for so long (0: never).

    It says in which line every thread hangs.
    """

    def alive() -> None:
        if seconds and joined():
            faulthandler.dump_traceback_later(seconds, exit=True)

    alive()
    try:
        yield alive
    finally:
        faulthandler.cancel_dump_traceback_later()
