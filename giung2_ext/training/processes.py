"""Several processes as one job: joining it, who speaks and writes, and deciding as one.

JAX finds TPU pods, SLURM, Open MPI and Kubernetes by itself; here it is only decided whether to ask it,
so that a laptop never waits for anybody. Every process runs the same program on the same files; the
first one writes and prints, and decides whatever hangs on a file, a clock or a random number.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from giung2_ext.core.errors import Refusal, unknown

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
        named = [environ.get(name, "") for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
        if named[0] != "1" and not all(text.isdigit() for text in named):
            raise Refusal(
                f"JAX_NUM_PROCESSES={named[0]} and JAX_PROCESS_ID={named[1]} must be numbers: how many "
                "processes there are, and which of them (from 0) this one is"
            )
        return Launch("JAX_NUM_PROCESSES", int(named[0]), number("JAX_PROCESS_ID"))
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
    global _joined
    if mode not in MODES:
        raise unknown("value of --distributed", mode, MODES)
    launch = launched(os.environ) if mode != "off" else None
    if launch is None and mode == "on":
        launch = Launch("--distributed=on")
    if launch is None or (mode == "auto" and launch.processes == 1) or jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", False)  # see signals
    try:
        jax.distributed.initialize(
            num_processes=launch.processes,
            process_id=launch.this,
            initialization_timeout=joined_within,
            heartbeat_timeout_seconds=lost_after,
        )
        _joined = True
    except (RuntimeError, ValueError) as error:
        missing = isinstance(error, ValueError)  # JAX's complaint that nothing names the job
        raise Refusal(
            f"this is to be one of {launch.processes or 'several'} processes ({launch.how}), and "
            + ("nothing says where the first one is" if missing else "they did not find each other")
            + f" ({str(error).splitlines()[0].rstrip('.')}). Start all of them within {joined_within} s, "
            "by a launcher that JAX knows or with JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID; --distributed=off runs this process alone"
        ) from error


_joined = False


def joined() -> bool:
    """Whether this process has joined a job (asks nothing of JAX's devices)."""
    return _joined


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


def check_same(mine: Any, what: str) -> None:
    """Refuses a job whose processes differ in something (a JSON value) that all must have alike."""
    theirs = agree(lambda: mine)
    require(json.dumps(theirs) == json.dumps(mine), f"the processes of this job differ in {what}")


def require(fine: bool, problem: str) -> None:
    """Refuses on all processes what is not fine on one of them."""
    if not all_of(fine):
        error = Refusal(problem)
        error.agreed = True
        raise error


class Ballot:
    """What any process wants, told to all of them one call later, so that nobody waits for an answer."""

    def __init__(self) -> None:
        self._pending: Any = None
        if joined():
            mesh = Mesh(np.array(jax.devices()), ("all",), axis_types=(AxisType.Auto,))
            self._each = NamedSharding(mesh, P("all"))
            self._most = jax.jit(lambda wishes: wishes.max(0), out_shardings=NamedSharding(mesh, P()))

    def __call__(self, *wishes: int) -> tuple[int, ...]:
        """The largest of every wish; what was granted is not asked for again at once."""
        if not joined():
            return wishes
        shape = (jax.device_count(), len(wishes))
        row = np.array([wishes], np.int32)
        mine = jax.make_array_from_callback(shape, self._each, lambda _: row)
        earlier, self._pending = self._pending, self._most(mine)
        granted = (0,) * len(wishes) if earlier is None else tuple(int(n) for n in jax.device_get(earlier))
        if any(granted):
            self._pending = None
        return granted
