"""Resumable states: can they be restored, and is what was pruned 0 in all of their parts?"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.core.method import Method
from giung2_ext.experiments.building import build_method, kinds_of, model_of, optimizer_of
from giung2_ext.experiments.config import Config, with_defaults
from giung2_ext.experiments.doctor import counts
from giung2_ext.experiments.doctor.findings import Exam, listed
from giung2_ext.experiments.doctor.run import Run
from giung2_ext.experiments.doctor.seen import masked, revived
from giung2_ext.storage import tickets
from giung2_ext.storage.checkpoints import Damaged, StateStore, checksums
from giung2_ext.training import state as states
from giung2_ext.training.optimizers import edit_slots
from giung2_ext.training.state import State

Tree = Any
EPSILON = 1e-8  # what adamax's slots are where a weight is pruned


class Member(NamedTuple):
    where: str
    run: Run
    step: int
    best: str  # digest
    state: State  # on the host, without its key


def examine(exam: Exam, folder: epath.Path, runs: Sequence[Run]) -> None:
    """The newest state of a folder that can be restored; those that cannot are faults."""
    if len(runs) == 1 and runs[0].result is not None:
        if folder.exists():
            exam.note(exam.place(folder), "is left of a run that is finished, and not needed: remove it")
        return
    with exam.part(exam.place(folder)):
        store = StateStore(folder, 1)
        try:
            for step in store.steps():
                if _examine_step(exam, store, step, runs):
                    return
        finally:
            store.close()


class Restored(NamedTuple):
    state: State
    method: Method
    recipes: list[dict[str, Any]]  # of its members
    best: list[str]  # digests of their best tickets so far
    stacked: bool  # whether there is an axis of members
    changed: list[str]  # leaves that are not what was saved
    sums: dict[str, int]


def _examine_step(exam: Exam, store: StateStore, step: int, runs: Sequence[Run]) -> bool:
    """Whether this state is whole, as far as can be told."""
    where = f"{exam.place(store.folder)}/{step}"
    exam.looked["state"] += 1
    try:
        found = _restore(exam, store, step)
    except (Damaged, Refusal) as error:
        if step not in store.steps():  # the run goes on, and has newer ones
            return False
        told = f"cannot be restored ({error})"
        exam.fault(where, f"{told}: the run goes on from an older state, or begins anew")
        return False
    if found is None:
        exam.note(where, "is not examined: no ticket beside it tells the shape of the network yet")
        return True
    exam.digests[where] = hashlib.sha256(repr(sorted(found.sums.items())).encode()).hexdigest()
    if found.changed:
        told = f"is not what was saved: {listed(found.changed)} has another checksum"
        exam.fault(where, f"{told}; the run goes on from an older state, or begins anew")
        return False
    _check_members(exam, where, step, found, runs)
    return True


def _restore(exam: Exam, store: StateStore, step: int) -> Restored | None:
    """As the run would; None where nothing tells its shapes."""
    notes, sums = store.notes(step), store.checksums(step)
    recipes = [with_defaults(recorded) for recorded in notes["identity"]]
    known = _network_of(exam, recipes[0])
    if known is None:
        return None
    method, like = abstract_state(recipes[0], *known)
    stacked = notes.get("stacked", len(recipes) > 1)
    axis = (len(recipes),) if stacked else ()
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(axis + x.shape, x.dtype), like)
    state = store.restore(step, target)
    found = checksums(state)
    changed = [name for name in sums if sums[name] != found[name]]
    best = [each["digest"] for each in notes["best"]]
    return Restored(state, method, recipes, best, stacked, changed, found)


def _check_members(exam: Exam, where: str, step: int, found: Restored, runs: Sequence[Run]) -> None:
    host = jax.device_get(found.state.replace(key=None))
    left = list(runs)  # two arms may have one recipe
    for i, recipe in enumerate(found.recipes):
        run = next((run for run in left if run.recipe == recipe), None)
        if run is None:
            told = f"its member {i} is of a run that is not here (seed {recipe['seed']})"
            exam.fault(where, f"{told}: restore that run's folder from a copy, or remove this state")
            continue
        left.remove(run)
        own = jax.tree.map(lambda x: x[i], host) if found.stacked else host  # noqa: B023
        name = f"{where} ({run.where})" if found.stacked else where
        with exam.part(name):
            _check_member(exam, Member(name, run, step, found.best[i], own), found.method)


def _network_of(exam: Exam, recipe: Mapping[str, Any]) -> tuple[int, tuple[int, ...]] | None:
    """Classes and image shape of the recipe's data, of which a ticket tells."""
    for seen in exam.tickets.values():
        if seen.meta is not None and seen.meta.get("data", {}).items() <= recipe["data"].items():
            return seen.meta["num_classes"], tuple(seen.meta["image_shape"])
    return None


def abstract_state(
    recipe: dict[str, Any], num_classes: int, image_shape: tuple[int, ...]
) -> tuple[Method, State]:
    """The method of a run, and the shapes of what its states hold."""
    config = Config(recipe)
    method, optimizer = build_method(config), optimizer_of(config)
    model = model_of({"model": recipe["model"], "num_classes": num_classes}, config.precision)

    def begin() -> State:
        key = states.seed_key(0)
        params, statistics = states.init_variables(model, key, image_shape)
        channels = np.zeros(image_shape[-1], np.float32)
        statistics = statistics | {"image_stats": {"m": channels, "s": channels}}
        masks = masking.dense(params, config.masks.prunable)
        return states.make_state(method, optimizer, key, params, masks, statistics, **kinds_of(config))

    return method, jax.eval_shape(begin).replace(step=None)


def _check_member(exam: Exam, member: Member, method: Method) -> None:
    """What holds of the state of one run."""
    where, run = member.where, member.run
    if member.best and not tickets.place_of(run.folder, member.best).exists():
        exam.fault(
            where,
            f"names {member.best[:16]} as the best ticket so far, which is not in {run.where}: the run "
            "cannot go on from here; restore it from a copy, or remove this state",
        )
    bad = [n for n, leaf in trees.named_leaves(member.state).items() if _broken(leaf)]
    if bad:
        exam.fault(where, f"holds NaN or infinity in {listed(bad)}: remove it, to go on from an older one")
    if method.latent:  # its mask is made of scores or of dense weights, which live on
        return
    masks = method.masks(member.state.trainable, member.state.method)
    _check_zeros(exam, member, method, masks)
    _check_tickets(exam, member, masks)
    assert run.recipe is not None
    named = {leaf: mask for leaf, _, mask in masked(member.state.trainable, masks)}
    layers = {leaf: int(mask.sum()) for leaf, mask in named.items()}
    shapes = {leaf: mask.shape for leaf, mask in named.items()}
    before = run.before.layers if run.before is not None else None
    counts.check(exam, where, counts.expected(run.recipe, method, member.step, shapes, before), layers)
    pattern = counts.structure_of(run.recipe, method, member.step)
    counts.check_structure(exam, where, pattern, named)


def _check_zeros(exam: Exam, member: Member, method: Method, masks: Tree) -> None:
    """Parameters, optimizer slots and a moving average are 0 where the mask is."""
    state = member.state
    parts = {"weights": _stale(state.trainable, masks), "optimizer slots": _stale_slots(member, masks)}
    if state.average is not None and method.due is None:  # else it forgets by and by
        parts["moving averages"] = _stale(state.average[0], masks)
    for what, stale in parts.items():
        if stale:
            told = listed([f"{count:,} of {leaf}" for leaf, count in stale.items()])
            exam.fault(
                member.where,
                f"{what} outside the mask should be exactly 0 and are not ({told}): training from here is "
                "not sparse; remove this state, to go on from an older one or anew",
            )
    if state.ever is not None:
        beyond = [leaf for leaf, ever, mask in masked(state.ever, masks) if (mask & ~ever).any()]
        if beyond:
            exam.fault(member.where, f"keeps weights of {listed(beyond)} that no mask is said to have kept")


def _broken(leaf: Any) -> bool:
    return leaf is not None and np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all()


def _stale(params: Tree, masks: Tree) -> dict[str, int]:
    found = {leaf: revived(weight, mask) for leaf, weight, mask in masked(params, masks)}
    return {leaf: count for leaf, count in found.items() if count}


class _Stale(int):
    """A count in the place of a slot."""


def _stale_slots(member: Member, masks: Tree) -> dict[str, int]:
    assert member.run.recipe is not None
    least = EPSILON if member.run.recipe["optim"]["name"].startswith("adamax") else 0.0
    count = lambda slot, mask: _Stale(revived(slot, mask, least))  # noqa: E731
    found = trees.named_leaves(edit_slots(member.state.optimizer, count, masks))
    return {name: int(n) for name, n in found.items() if isinstance(n, _Stale) and n}


def _check_tickets(exam: Exam, member: Member, masks: Tree) -> None:
    """The mask is that of the ticket of this step, or of any where it never changes."""
    mine, run = masking.digest(masks), member.run
    for seen in run.sound:
        if (run.fixed or seen.meta["step"] == member.step) and seen.mask != mine:
            exam.fault(
                member.where,
                f"has another mask than {seen.where} (step {seen.meta['step']}): one of the two is not of "
                "this run; remove this state, to go on from an older one or anew",
            )
            return
