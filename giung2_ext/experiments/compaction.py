"""Compacts a ticket: the same answers from a network without the channels that its mask has killed.

The new ticket is one like any other: its model is the old one's with the channels that are left. What it
costs is printed beside what the old one does. Both are computed densely, so the times are those of smaller
arrays and no more; they are measured, on this machine, and promise nothing about another.
"""

import re
import statistics as averages
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

import giung2_ext.models
from giung2_ext.core import compaction, discovery, trees
from giung2_ext.core.compaction import Compacted
from giung2_ext.core.errors import Failure, Refusal
from giung2_ext.experiments import importing
from giung2_ext.experiments.building import count_uses, model_of, totals_of
from giung2_ext.experiments.evaluate import say
from giung2_ext.experiments.judging import precision_of
from giung2_ext.storage import tickets
from giung2_ext.storage.tickets import Ticket
from giung2_ext.training.step import network

WIDTHS = {"channels": "Conv", "widths": "Conv", "hidden": "Dense"}
"""The options of models that say how wide layers of a kind are, in the order of their numbers"""
TOLERANCE = 1e-4  # of the largest logit
BATCHES, RUNS = (1, 32), 20


def compact(ckpt: str, to: str, images: int = 64) -> dict[str, Any]:
    """Writes DIR/last.ckpt and says what it saves; of a ticket without dead channels only that."""
    before, folder = tickets.read_ticket(ckpt), epath.Path(to)

    def ours(meta: Mapping[str, Any]) -> bool:
        return meta.get("parents", {}).get("compacted") == before.digest

    importing.check_place(folder, ours)
    model = model_of(before.meta)
    found = compaction.compact(
        lambda params, statistics, image: network(model, params, statistics, image, train=False),
        *(before.params, before.statistics, before.masks),
        np.zeros((1, *before.meta["image_shape"]), np.float32),
    )
    if not found.removed:
        say([f"{ckpt}: no channel is dead, so there is nothing to take out; nothing is written"])
        return {"removed": 0}
    after = ticket_of(before, found)
    difference = check_logits(ckpt, before, after, images)
    last, rows = importing.write(folder, after, ours), costs(before, after)
    say([*describe(found), *table(rows), f"written: {last} (ticket {after.digest[:16]})"])
    return {"removed": found.removed, "difference": difference, "costs": rows, "ticket": after.digest}


def ticket_of(before: Ticket, found: Compacted) -> Ticket:
    """What is left of a ticket, of which it is the child."""
    left = {"model": options_left(before.meta["model"], found), "parents": {"compacted": before.digest}}
    return tickets.make_ticket(found.params, found.masks, found.statistics, before.meta | left)


def options_left(options: Mapping[str, Any], found: Compacted) -> dict[str, Any]:
    """The model's options with the channels that are left."""
    narrower = {leaf for leaf, (left, before) in found.layers.items() if left != before}
    chosen = dict(options)
    for option in width_options(options["name"]):
        of_kind = re.compile(rf"{WIDTHS[option]}_(\d+)/kernel")
        matches = filter(None, map(of_kind.fullmatch, found.layers))
        own = [match.group() for match in sorted(matches, key=lambda match: int(match.group(1)))]
        if narrower.intersection(own):
            chosen[option] = [found.layers[leaf][0] for leaf in own]
            narrower.difference_update(own)
    if narrower:
        known = {name: ", ".join(width_options(name)) for name in discovery.names(giung2_ext.models)}
        listed = ", ".join(f"{name} ({theirs})" for name, theirs in known.items() if theirs)
        raise Refusal(
            f"{options['name']} has no option for the channels that are left of "
            f"{', '.join(sorted(narrower))}: {found.removed:,} channels are dead and cannot be taken out; "
            f"nothing is written. Such options have {listed}"
        )
    return chosen


def width_options(name: str) -> list[str]:
    """The options of a model that say how wide its layers are."""
    accepted = discovery.options(giung2_ext.models, "model", name)
    return [option for option in WIDTHS if option in accepted]


def check_logits(ckpt: str, before: Ticket, after: Ticket, images: int) -> float:
    """The largest difference of the two tickets' logits on random images; more than rounding is refused."""
    model, shape = after.meta["model"]["name"], after.meta["image_shape"]
    wrong = trees.first_mismatch(count_uses(model_of(after.meta), shape)[0], after.params)
    if wrong:
        raise Failure(f"{ckpt} cannot be compacted: {model} built with what is left is another: {wrong}")
    pixels = np.random.default_rng(0).integers(0, 256, (images, *shape), dtype=np.uint8)
    a, b = (np.asarray(forward(ticket)(pixels), np.float64) for ticket in (before, after))
    if not np.isfinite(a).all():
        raise Refusal(f"{ckpt}: the network's logits are not finite: it diverged; nothing is written")
    difference, largest = float(np.abs(a - b).max()), float(np.abs(a).max())
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
    return difference


def forward(ticket: Ticket, precision: str = "float32") -> Any:
    """images -> logits, compiled."""
    model, weights = model_of(ticket.meta, precision), jax.device_put((ticket.params, ticket.statistics))
    run = jax.jit(lambda weights, images: network(model, *weights, images, train=False))
    return lambda images: run(weights, images)


def costs(before: Ticket, after: Ticket) -> dict[str, tuple[float, float]]:
    """{what: (before, after)}."""
    (weights, flops), (weights_left, flops_left) = (totals_of(ticket.meta) for ticket in (before, after))
    rows: dict[str, tuple[float, float]] = {
        "parameters": (weights.all, weights_left.all),
        "kept weights": (weights.kept, weights_left.kept),
        "FLOPs of an image, computed densely": (flops.all, flops_left.all),
    }
    precision = precision_of(before.meta)
    runs = [forward(ticket, precision) for ticket in (before, after)]
    for batch in BATCHES:
        images = jax.device_put(np.zeros((batch, *before.meta["image_shape"]), np.uint8))
        rows[f"ms a batch of {batch} ({where(precision)})"] = latencies(runs, images)
    return rows


def where(precision: str) -> str:
    device = jax.devices()[0]
    return f"{precision}, {device.platform}, {device.device_kind}"


def latencies(runs: list[Any], images: Any) -> tuple[float, float]:
    """The median milliseconds of two, measured in turns, compiled before."""
    found: list[list[float]] = [[] for _ in runs]
    for turn in range(RUNS + 2):
        for run, times in zip(runs, found, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(run(images))
            if turn > 1:  # the first compiles, the second warms
                times.append(1000 * (time.perf_counter() - began))
    first, second = (averages.median(times) for times in found)
    return first, second


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
