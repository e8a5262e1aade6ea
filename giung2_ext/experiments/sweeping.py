"""A sweep being run: finished runs are skipped, the others handed on; in the end what is left is told."""

import contextlib
import datetime
import os
import pathlib
import shlex
import signal
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from etils import epath

from giung2_ext.core.errors import Failure, Refusal, Stopped, unknown
from giung2_ext.experiments import flags, jobs
from giung2_ext.experiments.sweep import Entry, Notes, expand, is_finished, last_line, read_seeds, score
from giung2_ext.storage import locks, paths, records

OWN: dict[str, str | None] = {
    "save": None,
    "script": "train",
    "seeds": "0",
    "cluster": "local",
    "jobs": None,
    "gpus": "0",
    "dry_run": "false",
}
REPEATED = ("config", "over")
CLUSTERS = ("local", "slurm")


def _sorted_out(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str], list[str]]:
    """The values of flags that may come again, the sweep's own words, and those for the runs."""
    repeated: dict[str, list[str]] = {name: [] for name in REPEATED}
    own: list[str] = []
    passed: list[str] = []
    into = passed
    for word in arguments:
        name, equals, value = word[2:].partition("=") if word.startswith("--") else ("", "", "")
        if name in REPEATED:
            if not equals or not value:
                raise Refusal(f"--{name} needs a value: --{name}=VALUE")
            repeated[name].append(value)
            into = []  # a word that follows belongs to nothing
            continue
        if name == "seed":
            raise Refusal("a sweep has --seeds=0..4 or --seeds=0,3 instead of --seed")
        if name:
            into = own if name in OWN or name.startswith("slurm.") else passed
            word = "--dry_run=true" if word == "--dry_run" else word
        elif into is not own and into is not passed:
            raise Refusal(f"unexpected argument {word!r} ({flags.CONTINUATION})")
        into.append(word)
    return repeated, own, passed


class Sweep:
    """One call of scripts/sweep.py; `scripts` is where the scripts are that it starts."""

    def __init__(self, arguments: Sequence[str], scripts: pathlib.Path, default_config: str):
        repeated, own, passed = _sorted_out(arguments)
        slurm = [word for word in own if word.startswith("--slurm.")]
        given = flags.parse_own([word for word in own if word not in slurm], OWN)
        self.wishes = {name.removeprefix("slurm."): words[-1] for name, words in flags.split(slurm).items()}
        if not given["save"]:
            raise Refusal("--save=DIR is required")
        if given["cluster"] not in CLUSTERS:
            raise unknown("value of --cluster", str(given["cluster"]), CLUSTERS)
        if self.wishes and given["cluster"] != "slurm":
            raise Refusal(f"--slurm.{next(iter(self.wishes))} is for --cluster=slurm")
        self.scripts, self.cluster = scripts, given["cluster"]
        self.at_once = None if given["jobs"] is None else _count("jobs", given["jobs"], 1)
        self.gpus = _count("gpus", given["gpus"], 0)
        self.dry = flags.convert(str(given["dry_run"]), bool, False, "dry_run")
        self.save = epath.Path(given["save"])
        if not paths.is_local(self.save):
            raise Refusal(
                f"--save={self.save}: a sweep keeps its logs and jobs in a folder, not in a bucket"
            )
        if (self.save / records.CONFIG).exists():
            raise Refusal(f"{self.save} is a run: choose another --save for the sweep")
        configs = repeated["config"] or [default_config]
        seeds = read_seeds(str(given["seeds"]))
        self.entries = expand(
            given["save"], str(given["script"]), configs, seeds, repeated["over"], passed, default_config
        )
        self.script = given["script"]

    def states(self) -> dict[str, str]:
        """What each run is before the start: finished, running by whom, or nothing of the two."""
        notes = Notes(self.save)

        def one(entry: Entry) -> str:
            if is_finished(entry, notes.status(entry.name)):
                return "finished"
            holder = locks.holder(entry.folder)
            return f"running by process {holder}" if holder else ""

        return {entry.name: one(entry) for entry in self.entries}

    def run(self) -> None:
        states = self.states()
        if self.dry:
            for entry in self.entries:
                state, command = states[entry.name], shlex.join(entry.command(self.scripts))
                print(f"# {entry.name}: {state}" if state else command)
            return
        jobs.check()
        with locks.locked([self.save]), _stoppable():
            self._run(states)

    def _run(self, states: dict[str, str]) -> None:
        notes = Notes(self.save)
        here = self._cluster()
        for entry in self.entries:
            notes.add(entry.name, command=entry.command(self.scripts), directory=os.getcwd())
        notes.write()
        earlier = self._queued(notes, states)
        (self.save / paths.LOGS).mkdir(parents=True, exist_ok=True)
        wanted = [entry for entry in self.entries if not states[entry.name] and entry.name not in earlier]
        errands = {
            e.name: jobs.Errand(e.command(self.scripts), os.fspath(self._log(e.name))) for e in wanted
        }
        self._tell_of_start(states, len(wanted), len(earlier))

        def started(name: str, job: Any) -> None:
            place = dict(jobs=os.fspath(here.folder), cluster=self.cluster, tasks=job.num_tasks)
            notes.add(name, job=job.job_id, status=None, **place)
            notes.write()
            print(f"{name}: job {job.job_id}", flush=True)

        ended: dict[str, int | None] = {}
        by_name = {entry.name: entry for entry in self.entries}
        going = (
            here.run(errands, started, earlier) if self.cluster == "slurm" else here.run(errands, started)
        )
        try:
            with contextlib.closing(going):
                for name, status in going:
                    ended[name] = status
                    notes.add(name, status=status)
                    notes.write()
                    print(f"{name}: {_outcome(by_name[name], status)}", flush=True)
        except KeyboardInterrupt as error:
            self._tell_of_end(ended, notes)
            raise _left(error, self.cluster) from error
        if self._tell_of_end(ended, notes):
            raise Failure(
                f"not all runs of {self.save} are finished; the same command goes on with the rest"
            )

    def _cluster(self) -> Any:
        now = datetime.datetime.now(datetime.UTC)
        folder = pathlib.Path(self.save).absolute() / paths.JOBS / f"{now:%Y%m%d-%H%M%S}-{os.getpid()}"
        if self.cluster == "slurm":
            return jobs.Slurm(folder, self.at_once, self.gpus, self.wishes)
        return jobs.Here(folder, self.at_once or 1, self.gpus)

    def _queued(self, notes: Notes, states: dict[str, str]) -> dict[str, tuple[str, str, int]]:
        """{name: (job, its folder, its processes)} of what is in SLURM's queue since an earlier call."""
        if self.cluster != "slurm":
            return {}
        alive = jobs.queue()
        found = {}
        for name in (name for name, state in states.items() if state != "finished"):
            known = notes.runs[name]
            if known.get("cluster") == "slurm" and known.get("job") in alive:
                found[name] = known["job"], known["jobs"], known.get("tasks", 1)
        return found

    def _log(self, name: str) -> pathlib.Path:
        return pathlib.Path(self.save).absolute() / paths.LOGS / f"{name}.log"

    def _tell_of_start(self, states: dict[str, str], wanted: int, earlier: int) -> None:
        finished = sum(state == "finished" for state in states.values())
        parts = [
            f"{len(states)} runs of {self.script}.py",
            f"{finished} finished before",
            f"{wanted} to run",
        ]
        parts += [f"{earlier} in the queue"] if earlier else []
        print(f"{' · '.join(parts)} · {self.cluster} → {self.save}", flush=True)
        for name, state in states.items():
            if state not in ("", "finished"):
                print(f"{name}: {state}: left to it")

    def _tell_of_end(self, ended: dict[str, int | None], notes: Notes) -> int:
        """Says how many runs are finished, failed and left, and why; returns how many are not finished."""
        bad = {name: status for name, status in ended.items() if status not in (0, 75, 130)}
        done = {
            entry.name for entry in self.entries if _unfinished(entry, notes.status(entry.name)) is None
        }
        failed = [entry.name for entry in self.entries if entry.name in bad and entry.name not in done]
        left = len(self.entries) - len(done) - len(failed)
        print(f"{len(done)} finished, {len(failed)} failed, {left} left")
        for name in failed:
            log = self._log(name)
            print(f"  {name}: {jobs.described(bad[name])}: {last_line(log) or 'nothing was said'} ({log})")
        return len(failed) + left


def _unfinished(entry: Entry, status: int | None) -> str | None:
    """Why a run is not finished; a folder that cannot be read now stops no other run."""
    try:
        return None if is_finished(entry, status) else jobs.described(status)
    except (Refusal, OSError) as error:
        return f"{jobs.described(status)}, and its folder cannot be read: {error}"


def _outcome(entry: Entry, status: int | None) -> str:
    return _unfinished(entry, status) or score(entry)


def _count(name: str, text: str | None, least: int) -> int:
    number: int = flags.convert(str(text), int, False, name)
    if number < least:
        raise Refusal(f"--{name} must be at least {least}, got {number}")
    return number


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM here is what Ctrl-C is."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise Stopped("told to stop (SIGTERM)")

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _left(error: KeyboardInterrupt, cluster: str | None) -> Stopped:
    jobs_left = "the jobs are left to SLURM" if cluster == "slurm" else "what ran was told to save"
    stopped = Stopped(f"{str(error) or 'interrupted'}; {jobs_left}; the same command goes on")
    stopped.status = Stopped.status if isinstance(error, Stopped) else 130
    return stopped
