"""A ticket: is it what was written, is it as sparse as it says, and is every layer alive?"""

import functools
import json
import os
from typing import Any

import jax
import numpy as np
from etils import epath

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import importing
from giung2_ext.experiments.building import count_uses, model_of
from giung2_ext.experiments.doctor.findings import Exam, listed, plural
from giung2_ext.experiments.doctor.seen import Seen, look, masked, revived
from giung2_ext.storage import paths, tickets
from giung2_ext.storage.tickets import Ticket

Tree = Any
COUNTED = ("kept", "prunable", "parameters", "mask_digest")


def examine(exam: Exam, name: epath.Path) -> Seen | None:
    """Reads and checks a ticket, once under all of its names; None of a name that leads nowhere."""
    where = exam.place(name)
    try:
        directory = name if paths.is_single(name) else paths.resolve(name)
        if not directory.exists():
            raise Refusal(f"{directory} is not there")
    except (Refusal, UnicodeDecodeError) as error:
        link = not name.exists() and os.path.islink(name)
        why = f"it points at {os.readlink(name)}, which is not there" if link else str(error)
        exam.fault(
            where, f"names no ticket: {why}; restore that folder from a copy, or train this run again"
        )
        exam.digests[where] = "dangling"
        return None
    known = exam.tickets.get(os.fspath(directory))
    if known is None:
        exam.looked["ticket"] += 1
        known = Seen(where, name, _stated(directory))
        with exam.part(where):
            known = _read(exam, known, directory)
        exam.tickets[os.fspath(directory)] = known
    exam.digests[where] = known.digest if known.meta else f"damaged {known.digest}"
    return known._replace(where=where, name=name)


def _read(exam: Exam, damaged: Seen, directory: epath.Path) -> Seen:
    where = damaged.where
    try:
        ticket, _ = importing.open_any(directory, importing.Wishes())
    except Refusal as error:
        if damaged.name != directory and paths.resolve(damaged.name) != directory:
            return _read(exam, damaged, paths.resolve(damaged.name))  # a run that goes on has moved it
        why = str(error).removeprefix(f"{directory} ")
        if paths.is_single(directory):
            exam.fault(where, f"it cannot be read as a ticket: {why}")
            return damaged
        told = f"the ticket {why}: nothing of it can be trusted"
        exam.fault(where, f"{told}; restore {directory.name} from a copy")
        return damaged
    seen = look(where, damaged.name, ticket)
    if directory.parent.name == paths.TICKETS and directory.name != seen.key:
        exam.fault(
            where, f"lies in {directory.name}, and its digest is {seen.key}: give its folder that name"
        )
    with exam.part(where):
        _check_written(exam, where, ticket)
        _check_values(exam, where, ticket)
        _check_layers(exam, seen, ticket)
        _check_network(exam, where, ticket)
    return seen


def _stated(directory: epath.Path) -> str:
    try:
        return str(tickets.read_meta(directory)["digest"])
    except Refusal:
        return directory.name


def _check_written(exam: Exam, where: str, ticket: Ticket) -> None:
    """The counts of ticket.json are those of the arrays."""
    leaves = list(masked(ticket.params, ticket.masks))
    layers = {leaf: [int(mask.sum()), mask.size] for leaf, _, mask in leaves}
    counted: dict[str, Any] = {
        "kept": sum(kept for kept, _ in layers.values()),
        "prunable": sum(size for _, size in layers.values()),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(ticket.params)),
        "mask_digest": masking.digest(ticket.masks),
    }
    said = {key: ticket.meta.get(key) for key in COUNTED}
    stated = ticket.meta.get("layers", {})
    counted |= {f"layers, {leaf}": counts for leaf, counts in layers.items()}
    said |= {f"layers, {leaf}": stated.get(leaf) for leaf in layers.keys() | stated.keys()}
    wrong = [
        f"{key} is {said[key]}, counted {counted.get(key)}" for key in said if said[key] != counted.get(key)
    ]
    if wrong:
        exam.fault(
            where,
            f"{tickets.META} does not say what the arrays hold: {listed(wrong)}; results and tables "
            "made from it are wrong: write this ticket again",
        )


def _check_values(exam: Exam, where: str, ticket: Ticket) -> None:
    """Weights are exactly 0 where the mask is, and everything is a finite number."""
    leaves = list(masked(ticket.params, ticket.masks))
    alive = {leaf: count for leaf, weight, mask in leaves if (count := revived(weight, mask))}
    if alive:
        parts = listed([f"{count:,} of {leaf}" for leaf, count in alive.items()])
        exam.fault(
            where,
            f"{plural(sum(alive.values()), 'weight')} outside the mask should be exactly 0 and are not "
            f"({parts}): the network is denser than it is said to be; train this run again",
        )
    arrays = trees.named_leaves({"params": ticket.params, "statistics": ticket.statistics})
    bad = {leaf: int(np.count_nonzero(~np.isfinite(values))) for leaf, values in arrays.items()}
    parts = [f"{count:,} in {leaf}" for leaf, count in bad.items() if count]
    if parts:
        exam.fault(
            where,
            f"holds NaN or infinity ({listed(parts)}): the run diverged; train it again at a lower rate",
        )
    zero = {leaf: int(np.count_nonzero(mask & (weight == 0))) for leaf, weight, mask in leaves}
    parts = [f"{count:,} of {leaf}" for leaf, count in zero.items() if count]
    if parts:
        exam.note(where, f"{plural(sum(zero.values()), 'kept weight')} exactly 0 ({listed(parts)})")


def _check_layers(exam: Exam, seen: Seen, ticket: Ticket) -> None:
    """Said once of a mask, however many tickets have it."""
    if any(other.mask == seen.mask for other in exam.tickets.values()):
        return
    dead = []
    for leaf, _, mask in masked(ticket.params, ticket.masks):
        if not mask.any():
            exam.fault(
                seen.where,
                f"the mask keeps no weight of {leaf} ({mask.size:,}): nothing passes through this layer; "
                "prune less, or every layer by itself",
            )
        elif mask.ndim > 1:
            used = [
                mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))
                for axis in (-1 % mask.ndim, -2 % mask.ndim)
            ]
            lost = [int(np.count_nonzero(~each)) for each in used]
            words = [f"{lost[0]:,} of {used[0].size:,} output channels have no weight"] * (lost[0] > 0)
            words += [f"{lost[1]:,} of {used[1].size:,} inputs are used by none"] * (lost[1] > 0)
            dead += [f"{leaf}: {' and '.join(words)}"] * bool(words)
    if dead:
        exam.note(seen.where, f"dead channels: {listed(dead)}")


@functools.cache
def network_shapes(described: str, num_classes: int, image_shape: tuple[int, ...]) -> Tree:
    model = model_of({"model": json.loads(described), "num_classes": num_classes})
    params, statistics, _ = count_uses(model, image_shape)
    return {"params": params, "statistics": statistics}


def _check_network(exam: Exam, where: str, ticket: Ticket) -> None:
    """The arrays are those of the network that is named, and what has a mask is what its rule names."""
    meta = ticket.meta
    if not {"model", "num_classes", "image_shape", "prunable_rule"} <= meta.keys():
        return
    described = json.dumps(meta["model"], sort_keys=True)
    shapes = network_shapes(described, meta["num_classes"], tuple(meta["image_shape"]))
    found = {"params": ticket.params, "statistics": ticket.statistics}
    problem = trees.first_mismatch(shapes, found)
    if problem:
        exam.fault(where, f"is no {described}: {problem}; it cannot be evaluated: write it again")
        return
    wanted, masks = masking.dense(ticket.params, meta["prunable_rule"]), trees.named_leaves(ticket.masks)
    other = [n for n, leaf in trees.named_leaves(wanted).items() if (leaf is None) != (masks[n] is None)]
    if other:
        exam.fault(
            where,
            f"says masks.prunable={meta['prunable_rule']}, by which {listed(other)} should "
            f"{'have no' if masks[other[0]] is not None else 'have a'} mask: write it again",
        )
