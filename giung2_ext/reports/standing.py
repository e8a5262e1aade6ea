"""Where one run stands, read from its folder alone; one that cannot be read is shown as damaged.

Nothing is written and JAX is not imported.
"""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.storage import locks, paths, records

STATES = ("finished", "running", "stopped", "failed", "waiting", "damaged")
UNREADABLE = (
    *(Refusal, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError),
    ZeroDivisionError,
)
NO_REASON = "gave no reason: killed, or the machine was lost"


class Best(NamedTuple):
    split: str
    by: str  # accuracy, or loss
    value: float
    step: int


class Standing(NamedTuple):
    folder: str
    kind: str  # run, or chain
    state: str  # one of STATES
    why: str = ""
    step: int | None = None
    steps: int | None = None
    cycle: int | None = None
    cycles: int | None = None  # pruned ones that are planned
    finished: int | None = None  # runs of a chain
    best: Best | None = None  # of a chain the mean over trials, in its newest cycle that has one
    density: float | None = None
    seen: float | None = None  # when it last wrote something, in seconds since 1970
    holder: str | None = None  # who works on it now
    command: str | None = None  # that goes on with what is not finished; of a chain's runs the chain's does
    processes: int = 1  # each of which is to be started with that command
    runs: tuple["Standing", ...] = ()


class Found(NamedTuple):
    """A run's folder as it was read."""

    folder: epath.Path
    standing: Standing
    stored: Mapping[str, Any]  # config.json; empty where it is damaged

    @property
    def sessions(self) -> Sequence[Mapping[str, Any]]:
        return self.stored.get("sessions", ())


def guarded(read: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return read()
    except UNREADABLE:
        return otherwise


def read_run(folder: epath.Path, names: set[str]) -> Found:
    try:
        recipe = records.recorded_recipe(folder) or {}
        stored = records.read_json(folder / records.CONFIG) or {}
        return Found(folder, _run(folder, names, recipe, stored["sessions"]), stored)
    except UNREADABLE as error:
        why = (
            str(error)
            if isinstance(error, Refusal | OSError)
            else f"not as it was written ({type(error).__name__}: {error})"
        )
        return Found(
            folder, Standing(os.fspath(folder), "run", "damaged", why, seen=last_seen(folder, names)), {}
        )


def _run(
    folder: epath.Path, names: set[str], recipe: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]]
) -> Standing:
    evaluation, steps = recipe["evaluation"], recipe["optim"]["ni"]
    split, by = evaluation["select_on"], evaluation.get("select_by", "accuracy")
    result = records.read_result(folder)
    ticket = _ticket(folder, names, paths.best(by))
    density = ticket["kept"] / ticket["prunable"] if ticket and ticket["prunable"] else None
    if result is not None:
        split, by = result["selected_on"], result["selected_by"]
        step = result["steps"]
        best = Best(split, by, result["scores"]["best"][split][by], result["best_step"])
        density = result["kept"] / result["prunable"] if result["prunable"] else density
    else:
        rows = records.read_metrics(folder)
        if rows and all(row["split"] != split for row in rows):
            split = "test"  # what validation is where a source has none
        step = max([0, *(row["step"] for row in rows), *states_in(folder / paths.STATES)])
        at = ticket["step"] if ticket else None
        chosen = [row for row in rows if row["split"] == split and row["step"] == at]
        best = Best(split, by, chosen[-1][by], chosen[-1]["step"]) if chosen else None
    holder = locks.holder(folder)
    state, why = _state(result is not None, holder, sessions)
    return Standing(
        *(os.fspath(folder), "run", state, why, step, steps),
        best=best,
        density=density,
        seen=last_seen(folder, names),
        holder=holder,
        command=command_of(sessions[-1], folder) if sessions and result is None else None,
        processes=processes_of(sessions),
    )


def _state(finished: bool, holder: str | None, sessions: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    if finished:
        return "finished", ""
    if holder:
        return "running", ""
    ended = sessions[-1].get("ended") if sessions else None
    return (ended["how"], ended["why"]) if ended else ("stopped", NO_REASON)


def _ticket(folder: epath.Path, names: set[str], name: str) -> Mapping[str, Any] | None:
    """What the best ticket says of itself; while a run goes on its name may move as it is read."""
    if name not in names:
        return None
    for _ in range(2):
        meta = records.read_json(paths.resolve(folder / name) / paths.META)
        if meta is not None:
            return meta
    raise Refusal(f"{name} points at no ticket")


def states_in(folder: epath.Path) -> list[int]:
    """The steps of which there are resumable states."""
    return [int(p.name) for p in folder.iterdir() if p.name.isdecimal()] if folder.exists() else []


def last_seen(folder: epath.Path, names: set[str]) -> float | None:
    """When something was last written."""
    signs = (records.CONFIG, records.METRICS, records.MOVES, records.RESULT, paths.STATES, locks.LOCK)
    times = [guarded(lambda sign=sign: (folder / sign).stat().mtime, None) for sign in names & {*signs}]
    return max((time for time in times if time is not None), default=None)


def processes_of(sessions: Sequence[Mapping[str, Any]]) -> int:
    return int(sessions[-1].get("placement", {}).get("processes", 1)) if sessions else 1


def command_of(session: Mapping[str, Any], root: epath.Path) -> str | None:
    """The recorded command, to be typed anywhere; --save is where the folder is now, if it was moved."""
    environment = session.get("environment", {})
    words, directory = list(environment.get("command", ())), environment.get("directory")
    if not words:
        return None
    words = [environment.get("executable", "python"), *words]
    at = next((i for i, word in enumerate(words) if word.partition("=")[0] == "--save"), None)
    if at is not None and paths.is_local(root):
        _, equals, save = words[at].partition("=")
        save = save if equals else words[at + 1] if at + 1 < len(words) else ""
        if os.path.realpath(os.path.join(directory or "", save)) != os.path.realpath(root):
            words[at : at + (1 if equals else 2)] = [f"--save={os.path.realpath(root)}"]
    return typed(words, directory)


def typed(words: Sequence[str], directory: str | None) -> str:
    """A command for a shell, from any folder."""
    text = shlex.join(words)
    return f"cd {shlex.quote(directory)} && {text}" if directory else text
