"""Compacts a ticket: the same answers from a network without the channels that its mask has killed.

The new ticket is one like any other: its model is the old one's with the channels that are left. What it
costs is printed beside what the old one does. Both are computed densely, so the times are those of smaller
arrays and no more; they are measured, on this machine, and promise nothing about another.
"""

import re
import statistics as averages
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from flax import linen as nn

import giung2_ext.models
from giung2_ext.core import accounting, compaction, discovery, trees
from giung2_ext.core.compaction import Compacted
from giung2_ext.core.errors import Failure, Refusal
from giung2_ext.experiments.evaluate import say
from giung2_ext.experiments.judging import precision_of
from giung2_ext.experiments.setup import build_model, count_uses
from giung2_ext.storage import locks, paths, tickets
from giung2_ext.training.step import network

Tree = Any
WIDTHS = {"channels": "Conv", "widths": "Conv", "hidden": "Dense"}
"""The options of models that say how wide layers of a kind are, in the order of their numbers"""
TOLERANCE = 1e-4  # of the largest logit
BATCHES, RUNS = (1, 32), 20


class Network(NamedTuple):
    """What a ticket computes."""

    options: dict[str, Any]  # of its model, with its name
    params: Tree
    statistics: Tree
    kept: dict[str, int]  # weights that its masks keep, of the leaves that have one


def compact(ckpt: str, to: str, images: int = 64) -> dict[str, Any]:
    """Writes DIR/last.ckpt and says what it saves; of a ticket without dead channels only that."""
    ticket, folder = tickets.read_ticket(ckpt), epath.Path(to)
    check_place(folder, ticket.digest)
    before = network_of(ticket.meta["model"], ticket.params, ticket.statistics, ticket.masks)
    model, shape = build(before, ticket.meta), ticket.meta["image_shape"]
    found = compaction.compact(
        lambda params, statistics, image: network(model, params, statistics, image, train=False),
        *(ticket.params, ticket.statistics, ticket.masks),
        np.zeros((1, *shape), np.float32),
    )
    if not found.removed:
        say([f"{ckpt}: no channel is dead, so there is nothing to take out; nothing is written"])
        return {"removed": 0}
    left = options_left(before.options, found)
    after = network_of(left, found.params, found.statistics, found.masks)
    smaller = build(after, ticket.meta)
    wrong = trees.first_mismatch(count_uses(smaller, shape)[0], after.params)
    if wrong:
        raise Failure(
            f"{ckpt} cannot be compacted: {left['name']} built with what is left is another: {wrong}"
        )
    difference, largest = compare((model, before), (smaller, after), shape, images)
    say(
        [
            f"logits of {images:,} random images differ by at most {difference:.2g}; "
            f"the largest is {largest:.3g}"
        ]
    )
    if not difference <= TOLERANCE * largest:
        raise Failure(
            f"{ckpt}: logits would change by more than {TOLERANCE:g} of the largest; nothing is written"
        )
    lineage = {name: value for name, value in ticket.meta.items() if name != "digest"}
    lineage |= {"model": left, "parents": {"compacted": ticket.digest}}
    with locks.locked([folder]):
        path, meta = tickets.write_ticket(folder, found.params, found.masks, found.statistics, lineage)
        tickets.name_ticket(folder, paths.LAST, path)
    rows = costs(before, after, ticket.meta)
    say([*describe(found), *table(rows), f"written: {folder / paths.LAST} (ticket {meta['digest'][:16]})"])
    return {"removed": found.removed, "difference": difference, "costs": rows, "ticket": meta["digest"]}


def check_place(folder: epath.Path, digest: str) -> None:
    """Refuses a folder that has a ticket of that name which is not what this one was compacted to."""
    tickets.refuse_inside(folder)
    name = folder / paths.LAST
    if name.exists() and tickets.read_meta(name).get("parents", {}).get("compacted") != digest:
        raise Refusal(f"{name} is another ticket, and would be replaced; choose another --to")


def network_of(options: Mapping[str, Any], params: Tree, statistics: Tree, masks: Tree) -> Network:
    named = trees.named_leaves(masks).items()
    kept = {name: int(mask.sum()) for name, mask in named if mask is not None}
    return Network(dict(options), params, statistics, kept)


def build(of: Network, meta: Mapping[str, Any], precision: str = "float32") -> nn.Module:
    options = dict(of.options)
    return build_model(options.pop("name"), meta["num_classes"], precision, options)


def options_left(options: Mapping[str, Any], found: Compacted) -> dict[str, Any]:
    """The model's options with the channels that are left."""
    name = options["name"]
    accepted = discovery.options(giung2_ext.models, "model", name)
    narrower = {leaf for leaf, (left, before) in found.layers.items() if left != before}
    chosen = dict(options)
    for option, kind in WIDTHS.items():
        matches = filter(None, (re.fullmatch(rf"{kind}_(\d+)/kernel", leaf) for leaf in found.layers))
        own = [match.group() for match in sorted(matches, key=lambda match: int(match.group(1)))]
        if option in accepted and narrower.intersection(own):
            chosen[option] = [found.layers[leaf][0] for leaf in own]
            narrower.difference_update(own)
    if narrower:
        raise Refusal(
            f"{name} has no option for the channels that are left of {', '.join(sorted(narrower))}: "
            f"{found.removed:,} channels are dead and cannot be taken out"
        )
    return chosen


def compare(
    ours: tuple[nn.Module, Network], theirs: tuple[nn.Module, Network], shape: Any, images: int
) -> tuple[float, float]:
    """(the largest difference of two networks' logits, the largest logit) on random images."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, *shape), dtype=np.uint8)
    a, b = (np.asarray(forward(model, of)(pixels), np.float64) for model, of in (ours, theirs))
    return float(np.abs(a - b).max()), float(np.abs(a).max())


def forward(model: nn.Module, of: Network) -> Any:
    """images -> logits, compiled."""
    weights = jax.device_put((of.params, of.statistics))
    run = jax.jit(lambda weights, images: network(model, *weights, images, train=False))
    return lambda images: run(weights, images)


def costs(before: Network, after: Network, meta: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """{what: (before, after)}."""
    rows: dict[str, list[float]] = {}
    for of in (before, after):
        shapes, _, uses = count_uses(build(of, meta), meta["image_shape"])
        weights, flops = accounting.totals(accounting.layers(shapes, of.kept, uses), uses)
        rows.setdefault("parameters", []).append(weights.all)
        rows.setdefault("kept weights", []).append(weights.kept)
        rows.setdefault("FLOPs of an image, computed densely", []).append(flops.all)
    precision = precision_of(meta)
    runs = [forward(build(of, meta, precision), of) for of in (before, after)]
    for batch in BATCHES:
        images = jax.device_put(np.zeros((batch, *meta["image_shape"]), np.uint8))
        rows[f"ms a batch of {batch} ({where(precision)})"] = latencies(runs, images)
    return {name: (row[0], row[1]) for name, row in rows.items()}


def where(precision: str) -> str:
    device = jax.devices()[0]
    return f"{precision}, {device.platform}, {device.device_kind}"


def latencies(runs: list[Any], images: Any) -> list[float]:
    """The median milliseconds of each, measured in turns, compiled before."""
    found: list[list[float]] = [[] for _ in runs]
    for turn in range(RUNS + 2):
        for run, times in zip(runs, found, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(run(images))
            if turn > 1:  # the first compiles, the second warms
                times.append(1000 * (time.perf_counter() - began))
    return [averages.median(times) for times in found]


def describe(found: Compacted) -> list[str]:
    total = sum(before for _, before in found.layers.values())
    narrower = [(leaf, *pair) for leaf, pair in found.layers.items() if pair[0] != pair[1]]
    listed = ", ".join(f"{leaf.removesuffix('/kernel')} {left} of {of}" for leaf, left, of in narrower)
    return [f"channels: {found.removed:,} of {total:,} are taken out; left are {listed}"]


def table(rows: Mapping[str, tuple[float, float]]) -> list[str]:
    """Before and after, side by side; times are said to be measured."""
    wide = max(map(len, rows))
    lines = [f"{'':<{wide}} {'before':>16} {'after':>16} {'after/before':>13}"]
    for name, (before, after) in rows.items():
        a, b = (f"{n:,.3f}" if name.startswith("ms") else f"{n:,}" for n in (before, after))
        lines.append(f"{name:<{wide}} {a:>16} {b:>16} {after / before:>13.3f}")
    note = (
        f"times are the median of {RUNS} runs, measured on this machine just now; no speed-up is promised"
    )
    return [*lines, note]
