"""Commands handed to SLURM, or to processes of this machine, through submitit.

What submitit starts is an `Errand`: one command whose output goes to one log. When its time is up, or a
signal says that it will be, the command is told to stop as SIGTERM tells it, so it saves; SLURM then puts
it into the queue again. This module imports no JAX: it is loaded next to every command.
"""

import contextlib
import glob
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

from giung2_ext.core.errors import Refusal, did_you_mean

ALONE, NO_END = 10.0, 60 * 24 * 365 * 10  # seconds that what is stopped has to save; minutes
REQUEUES = 1000  # how often a run may run out of time
TIMES = ("USR1", "USR2")  # signals that are submitit's, of which the command is not to die


class Errand:
    """One command, run where submitit has put it; returns its exit status."""

    def __init__(self, words: Sequence[str], log: str, environment: Mapping[str, str | None] | None = None):
        self.words, self.log, self.environment = list(words), log, dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._told = False

    def __call__(self) -> int:
        rank = os.environ.get("SLURM_PROCID" if os.environ.get("SLURM_JOB_ID") else "", "0")
        log = self.log if rank == "0" else f"{self.log}.{rank}"
        environment = {**os.environ, **self.environment}
        signal.signal(signal.SIGTERM, self._tell)
        with open(log, "ab") as out, _ignored(TIMES):
            out.write(f"$ {shlex.join(self.words)}\n".encode())
            out.flush()
            self._process = subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in environment.items() if value is not None},
            )
        if self._told:  # while it was being started
            self._process.terminate()
        while (status := self._process.poll()) is None:  # wait() would not let a signal's handler wait too
            time.sleep(0.1)
        return status

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self._told = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def checkpoint(self) -> Any:
        """Asked by submitit when the time is nearly up: what is to be done when there is time again."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            with contextlib.suppress(ChildProcessError):  # it has ended, and was waited for
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Errand(self.words, self.log, self.environment))


@contextlib.contextmanager
def _ignored(names: Iterable[str]) -> Iterator[None]:
    """Signals that a process started meanwhile ignores."""
    numbers = [signal.Signals[f"SIG{name}"] for name in names]
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class Ended(NamedTuple):
    name: str
    status: int | None  # None: it ended without a word


def described(status: int | None) -> str:
    """An exit status in words."""
    if status is None:
        return "ended without a word"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return {0: "ended unfinished", 75: "stopped", 130: "stopped", 2: "refused"}.get(
        status, f"failed with status {status}"
    )


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise Refusal("sweeps need submitit: pip install -e '.[sweep]'") from None
    return submitit


def check() -> None:
    """Refuses a sweep where submitit is not there, before a folder is made."""
    _submitit()


class Here:
    """Processes of this machine, at most `at_once`; with `gpus` each has so many devices of its own."""

    def __init__(self, folder: pathlib.Path, at_once: int, gpus: int):
        self.folder, self.at_once, self.gpus = folder, at_once, gpus
        self.visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        named = [device for device in (self.visible or "").split(",") if device]
        if gpus and self.visible is not None and len(named) < gpus * at_once:
            raise Refusal(
                f"--jobs={at_once} runs at once with --gpus={gpus} each need {gpus * at_once} devices, and "
                f"CUDA_VISIBLE_DEVICES={self.visible} names {len(named)}: take a smaller --jobs"
            )
        if gpus and not named and not glob.glob("/dev/nvidia[0-9]*"):
            raise Refusal(f"--gpus={gpus}: this machine has no NVIDIA GPU; leave it out")
        self.devices = named or [str(i) for i in range(gpus * at_once)]
        self.executor = _submitit().LocalExecutor(folder=folder)
        self.executor.update_parameters(timeout_min=NO_END)

    def _devices_of(self, slot: int) -> str | None:
        """For the environment: submitit hides all GPUs from what is not given any."""
        own = self.devices[slot * self.gpus : (slot + 1) * self.gpus]
        return ",".join(own) if self.gpus else self.visible

    def run(self, errands: Mapping[str, Errand], started: Callable[[str, Any], None]) -> Iterator[Ended]:
        waiting, running = list(errands.items()), dict[int, tuple[str, Any]]()
        try:
            while waiting or running:
                for slot in (slot for slot in range(self.at_once) if slot not in running and waiting):
                    name, errand = waiting.pop(0)
                    errand.environment["CUDA_VISIBLE_DEVICES"] = self._devices_of(slot)
                    with _ignored(
                        ["INT"]
                    ):  # Ctrl-C in a terminal reaches everybody; those who save hear it
                        running[slot] = name, self.executor.submit(errand)
                    started(name, running[slot][1])
                for slot in [slot for slot, (_, job) in running.items() if job.done()]:
                    name, job = running.pop(slot)
                    yield Ended(name, status_of(job))
                time.sleep(0.1)
        finally:  # left early: what runs is told to save, and is given time to
            for _, job in running.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(job.job_id), signal.SIGTERM)
            until = time.monotonic() + ALONE
            while time.monotonic() < until and not all(job.done() for _, job in running.values()):
                time.sleep(0.1)


class Slurm:
    """Jobs of SLURM, submitted together as an array; they go on when this process ends."""

    def __init__(self, folder: pathlib.Path, at_once: int | None, gpus: int, wishes: Mapping[str, str]):
        if not all(shutil.which(program) for program in ("sbatch", "srun", "squeue")):
            raise Refusal(
                "--cluster=slurm: there is no sbatch, srun or squeue here; --cluster=local has no need"
            )
        self.folder = folder
        self.executor = _submitit().SlurmExecutor(folder=folder, max_num_timeout=REQUEUES)
        given = self._read(wishes)
        if "time" not in given:
            raise Refusal(
                "--slurm.time=MINUTES (or HH:MM:SS, D-HH:MM:SS) is required: how long a job may run. A run "
                "that needs longer saves, is put into the queue again, and goes on"
            )
        given |= {"gpus_per_node": gpus} if gpus else {}
        given |= {"array_parallelism": at_once} if at_once else {}
        self.executor.update_parameters(**({"job_name": "sweep", "signal_delay_s": 120} | given))

    def _read(self, wishes: Mapping[str, str]) -> dict[str, Any]:
        known = self.executor._valid_parameters()
        given: dict[str, Any] = {}
        for name, text in wishes.items():
            if name not in known:
                listed = ", ".join(sorted(known))
                raise Refusal(f"unknown flag --slurm.{name}{did_you_mean(name, known)}; known: {listed}")
            if name in UNSAID:
                raise Refusal(
                    f"--slurm.{name} cannot be said in a word; --slurm.srun_args takes srun's own flags"
                )
            try:
                given[name] = READ.get(name, str)(text)
            except (KeyError, ValueError):
                wanted = "true or false" if name in ("use_srun", "stderr_to_stdout") else "a whole number"
                raise Refusal(f"--slurm.{name} takes {wanted}, got {text!r}") from None
        return given

    def run(
        self,
        errands: Mapping[str, Errand],
        started: Callable[[str, Any], None],
        earlier: Mapping[str, tuple[str, str, int]],
        every: float = 5.0,
    ) -> Iterator[Ended]:
        """`earlier` are jobs of a sweep before, with their folders, that are waited for too."""
        job_of = _submitit().SlurmJob
        jobs = {
            name: job_of(folder=folder, job_id=job, tasks=range(tasks))
            for name, (job, folder, tasks) in earlier.items()
        }
        if errands:
            new = self.executor.submit_array(list(errands.values()))
            for name, job in zip(errands, new, strict=True):
                started(name, job)
                jobs[name] = job
        while jobs:
            alive = queue(patience=20)
            for name in [name for name, job in jobs.items() if job.job_id not in alive]:
                yield Ended(name, status_of(jobs.pop(name)))
            time.sleep(every if jobs else 0)


def queue(patience: int = 0) -> set[str]:
    """The ids of this user's jobs that wait or run; sacct, which submitit asks, is not everywhere.

    A controller that does not answer is asked again, `patience` times, with half a minute between.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    done = subprocess.run(command, capture_output=True, text=True)
    for _ in range(patience if done.returncode else 0):
        time.sleep(30)
        done = subprocess.run(command, capture_output=True, text=True)
        if not done.returncode:
            break
    if done.returncode:
        raise Refusal(f"squeue does not answer: {done.stderr.strip()}; jobs that were submitted go on")
    return set(done.stdout.split())


def status_of(job: Any) -> int | None:
    """What the command of a job that is over returned: of several processes the first that is not 0."""
    tasks = [job.task(i) for i in range(job.num_tasks)]
    if not all(task.paths.result_pickle.exists() for task in tasks):
        return None
    if any(task.exception() is not None for task in tasks):
        return None
    return next((status for task in tasks if (status := task.result())), 0)


def status_in(folder: str, job: str, tasks: int) -> int | None:
    """The same of a job of so many processes of which only folder and id are known."""
    return status_of(_submitit().Job(folder=folder, job_id=job, tasks=range(tasks)))


def minutes(text: str) -> int:
    """SLURM's times in whole minutes: `90`, `1:30:00`, `2-12:00:00`."""
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdecimal() for part in (*parts, days or "0")) or len(parts) > 3 or (dash and not days):
        raise Refusal(f"--slurm.time takes minutes, MM:SS, HH:MM:SS or D-HH:MM:SS, got {text!r}")
    units = (60, 1, 1 / 60) if dash or len(parts) == 3 else (1, 1 / 60)  # D-HH:MM, but MM:SS
    whole = int(days or 0) * 1440 + sum(int(part) * unit for part, unit in zip(parts, units, strict=False))
    if whole < 1:
        raise Refusal(f"--slurm.time must be at least a minute, got {text!r}")
    return int(whole)


SWITCH = {"true": True, "false": False}
READ: dict[str, Callable[[str], Any]] = {  # what submitit does not take as text
    **dict.fromkeys(("nodes", "ntasks_per_node", "cpus_per_task", "cpus_per_gpu", "num_gpus"), int),
    **dict.fromkeys(("gpus_per_node", "gpus_per_task", "signal_delay_s", "array_parallelism"), int),
    **dict.fromkeys(("use_srun", "stderr_to_stdout"), SWITCH.__getitem__),
    "exclusive": lambda text: SWITCH.get(text, text),
    **dict.fromkeys(("setup", "teardown"), lambda text: [text]),
    "srun_args": shlex.split,
    "time": minutes,
}
UNSAID = ("additional_parameters", "map_count")
