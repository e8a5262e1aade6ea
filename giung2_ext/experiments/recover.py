"""Going on from a saved state: the newest that can be read and is what was saved, on any topology.

Every process reads for itself, then all decide together whether a state will do.
"""

from typing import Any, NamedTuple

import jax
from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments.config import with_defaults
from giung2_ext.experiments.progress import Progress
from giung2_ext.storage.checkpoints import Damaged, StateStore, checksums
from giung2_ext.training import processes
from giung2_ext.training.population import Population
from giung2_ext.training.state import State

Tree = Any


class Found(NamedTuple):
    """A state to go on from: the wanted members, and which of the saved members they are."""

    step: int
    members: list[State]
    rows: list[int]
    notes: dict[str, Any]
    older: dict[int, dict[str, Any]]  # the notes of the states that are retained behind it


def recover(
    store: StateStore, population: Population, like: State, identity: list[Any], progress: Progress
) -> Found | None:
    """The newest good state; the members may be some of those that were saved."""
    steps, damaged = processes.agree(store.steps), []
    state = None
    for step in steps:
        try:
            problem, (state, notes, sums) = "", _read(store, step, population, like, identity)
        except Damaged as error:
            problem, state = str(error), None
        if processes.all_of(not problem):
            found = checksums(state)
            wrong = [name for name in sums if sums[name] != found[name]]
            problem = f"{wrong[0]} is not what was saved" if wrong else ""
        if processes.all_of(not problem):
            break
        reason = problem or "for another process"
        progress.line(f"{store.folder}: the state of step {step:,} is damaged ({reason}); trying older")
        damaged.append(step)
    else:
        state = None
    if processes.first():
        store.set_aside(damaged)
    processes.together("damaged states are set aside")
    if state is None:
        return None
    saved = [with_defaults(recorded) for recorded in notes["identity"]]
    rows = [saved.index(recipe) for recipe in identity]
    members = [jax.tree.map(lambda x: x[i], state) if _stacked(notes) else state for i in rows]  # noqa: B023
    older = _older(store, [s for s in steps if s < step], notes["identity"]) if processes.first() else {}
    return Found(step, members, rows, notes, older)


def saved_recipes(folder: epath.Path) -> list[dict[str, Any]]:
    """Of the members of the newest state there whose notes can be read."""
    store = StateStore(folder, 1)
    for step in store.steps():
        try:
            return [with_defaults(recorded) for recorded in store.notes(step)["identity"]]
        except Damaged:
            continue
    return []


def _stacked(notes: dict[str, Any]) -> bool:
    """Whether a state has an axis of members; before it was noted, several members told it."""
    return notes.get("stacked", len(notes["identity"]) > 1)


def _read(
    store: StateStore, step: int, population: Population, like: State, identity: list[Any]
) -> tuple[State, dict[str, Any], dict[str, int]]:
    notes, sums = store.notes(step), store.checksums(step)
    saved = [with_defaults(recorded) for recorded in notes["identity"]]
    if any(recipe not in saved for recipe in identity):
        raise Refusal(
            f"{store.folder} holds the running state of other runs, at step {step:,}; finish them "
            "with the flags they were started with, or delete it"
        )
    if _stacked(notes):
        axis = (len(saved),)
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(axis + x.shape, x.dtype), like)
    else:
        target = population.abstract(like)
    return store.restore(step, target), notes, sums


def _older(store: StateStore, steps: list[int], identity: list[Any]) -> dict[int, dict[str, Any]]:
    found = {}
    for step in steps:
        try:
            notes = store.notes(step)
        except Damaged:
            continue
        if notes["identity"] == identity:
            found[step] = notes
    return found
