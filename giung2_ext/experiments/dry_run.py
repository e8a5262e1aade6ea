"""What a command would do, before it does anything: --dry_run.

Nothing is compiled, trained or written, so it ends in seconds. What a step needs beside its state, and
XLA's estimate of its time, are preflight's to say.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from giung2_ext.core import accounting, allocate, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import flags, imp, single
from giung2_ext.experiments.building import rate_of
from giung2_ext.experiments.config import Config
from giung2_ext.experiments.evaluate import datasets_of
from giung2_ext.experiments.feeding import is_streamed, load_source
from giung2_ext.experiments.forecast import announced_source
from giung2_ext.experiments.lottery import check_counts
from giung2_ext.experiments.progress import clock
from giung2_ext.experiments.setup import Blueprint, describe_devices, draw
from giung2_ext.experiments.single import Run
from giung2_ext.storage import records
from giung2_ext.training import chips

SHARE = 0.4  # of the peak rate: what networks of this kind reach
PLACES = 5  # at which the rate is told


def gib(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**27 else f"{count / 2**20:,.1f} MiB"


def describe(config: Config, save: str, chained: bool) -> list[str]:
    """Config, network, schedule, memory, storage and time, of train.py's run or imp.py's `chained` ones."""
    folder, given, members = epath.Path(save), config, 1
    if chained:
        members = imp.side_by_side(config)
        config, _, planned = imp.prepare(config, folder, start=False)
        runs = [p.run for p in planned]
        config.seed = runs[0].config.seed
    else:
        runs = [single.prepare(config, folder, start=False)]
        config = runs[0].config
    done = sum(result is not None for result in single.results_of(runs))
    source = announced_source(config)
    drawn = draw(config, source.num_classes, source.image_shape, members, members > 1)
    if chained:
        check_counts(config, masking.dense(drawn.shapes, config.masks.prunable))
    new = records.recorded_recipe(runs[0].folder) is None
    told: dict[str, Any] = {"feed.augment": runs[0].config.feed.augment}
    if given.seed is None and new:
        told["seed"] = "drawn at the start"
    if given.precision is None and new and given.mixed_precision:
        told["precision"] = f"{config.precision} here, by the devices elsewhere"
    steps = sum(run.config.optim.ni for run in runs)
    return [
        f"{len(runs)} run{'s' * (len(runs) > 1)} in {save}, {done or 'none'} of them finished, of "
        f"{steps:,} steps together, on {describe_devices(config, members > 1)}; nothing is done",
        *_fields(config, told),
        *_network(drawn, config),
        *(_cycles(drawn, config) if chained else ()),
        *_schedule(config, drawn),
        *_memory(drawn),
        *_storage(drawn, runs),
        *_data(config),
        *_time(drawn, runs),
    ]


def _fields(config: Config, told: Mapping[str, Any]) -> Iterator[str]:
    yield "config:"
    for name, value in {**flags.fields(config), **told}.items():
        yield f"  {name} = {json.dumps(value)}"


def _network(drawn: Blueprint, config: Config) -> Iterator[str]:
    masks = masking.dense(drawn.shapes, config.masks.prunable)
    whole = {name: m.size for name, m in trees.named_leaves(masks).items() if m is not None}
    rows = accounting.layers(drawn.shapes, whole, drawn.uses)
    wide = max(len(row.name) for row in rows)
    yield f"parameters ({config.masks.prunable} have masks):"
    for row in rows:
        mask = "mask" if row.kept is not None else ""
        yield f"  {row.name:<{wide}}  {row.shape!s:<20} {row.size:>13,}  {mask}".rstrip()
    weights, flops = accounting.totals(rows, drawn.uses)
    yield f"  {weights.all:,} in all, {weights.prunable:,} of them with masks; {flops.all:,} FLOPs an image"


def _cycles(drawn: Blueprint, config: Config) -> Iterator[str]:
    chain, size = config.chain, masking.size(masking.dense(drawn.shapes, config.masks.prunable))
    if chain.layer_ratios:
        yield f"cycles: each layer's own ratio, {chain.layer_ratios}"
        return
    rule = ("pruning_ratio", config.start.rounding)
    kept = [allocate.keep_count(chain.pruning_ratio, size, *rule, n) for n in range(1, chain.cycles + 1)]
    yield "cycles keep " + ", ".join(f"{count:,} ({count / size:.2%})" for count in [size, *kept])


def _schedule(config: Config, drawn: Blueprint) -> Iterator[str]:
    ni, rate = config.optim.ni, rate_of(config)
    at = sorted({ni * i // (PLACES - 1) for i in range(PLACES)} | set(config.optim.milestones))
    told = ", ".join(f"{float(rate(np.int32(step))):.4g} at {step:,}" for step in at)
    yield f"schedule: {ni:,} steps of {config.feed.batch_size:,} images; rate {told}"
    due = sum(map(drawn.method.due, range(ni))) if drawn.method.due is not None else 0
    yield (
        f"  {due:,} updates of the mask; measured every {config.evaluation.every:,} steps; saved "
        f"{config.placement.save_every}"
    )


def _state_bytes(drawn: Blueprint) -> int:
    leaves = jax.tree.leaves(drawn.state.replace(step=None, key=None))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _memory(drawn: Blueprint) -> Iterator[str]:
    each = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(drawn.state.replace(step=None, key=None))
    )
    yield (
        f"memory: the state takes {gib(_state_bytes(drawn))}, {gib(each)} of it on each device; what a "
        "step needs beside it: scripts/preflight.py"
    )


def _storage(drawn: Blueprint, runs: Sequence[Run]) -> Iterator[str]:
    """Tickets are not compressed; states are those of the runs that train at one time."""
    each = sum(leaf.size for leaf in jax.tree.leaves(drawn.shapes)) * 4
    each += (
        sum(leaf.size for leaf in jax.tree.leaves(drawn.state.statistics)) * 4 // drawn.population.members
    )
    masks = masking.dense(drawn.shapes, runs[0].config.masks.prunable)
    each += sum(-(-mask.size // 8) for mask in trees.present(masks))
    count = sum(tickets_of(run.config) for run in runs)
    states = max(run.config.placement.keep_states for run in runs) * _state_bytes(drawn)
    yield (
        f"storage: at most {count:,} tickets (best, last and periodic ones) of {gib(each)}, "
        f"{gib(count * each)} in all, and {gib(states)} of resumable states while they are needed"
    )


def _data(config: Config) -> Iterator[str]:
    """Whether streamed images are here; the machine that trains may be another."""
    if not is_streamed(config.data.name):
        return
    try:
        source = load_source(config)
    except Refusal as error:
        yield f"images: not on this machine; {error}"
        return
    yield "images: " + "; ".join(source.about[split] for split in source.splits if split in source.about)
    told: list[str] = []
    datasets_of(config, told.append)
    yield from (f"  {line}" for line in told)


def tickets_of(config: Config) -> int:
    """The most that a run keeps: best, last, and periodic ones."""
    every = config.tickets.every
    periodic = 1 + config.optim.ni // every if config.tickets.periodic and every else 0
    return 2 + periodic


def _time(drawn: Blueprint, runs: Sequence[Run]) -> Iterator[str]:
    _, flops = accounting.totals(accounting.layers(drawn.shapes, {}, drawn.uses), drawn.uses)
    needed = sum(3 * flops.all * run.config.optim.ni * run.config.feed.batch_size for run in runs)
    mesh = drawn.population.mesh
    kind = mesh.devices.flat[0].device_kind
    chip = chips.of(kind)
    yield f"time: {needed:.3g} FLOPs of training, computed densely"
    if chip is None:
        yield f"  the peak rate of a {kind} is not known here: scripts/preflight.py estimates for TPUs"
    else:
        seconds = needed / (chip.flops * mesh.size * SHARE)
        yield f"  {clock(seconds)} at {SHARE:.0%} of the peak rate of {mesh.size} {kind}"


def print_all(config: Config, save: str, chained: bool) -> None:
    print("\n".join(describe(config, save, chained)))
    if epath.Path(save).exists():
        print(f"{save} is there already: the command would go on from what it holds")
