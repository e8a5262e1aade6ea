"""Before a run: its programs are compiled for devices that need not be there, and looked at.

Nothing is computed. Memory, FLOPs, bytes and collectives are those of the programs that would train;
seconds are XLA's own estimate for its TPUs, at the effort that is named, and no measurement.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

import giung2_ext.data.sources
from giung2_ext.core import discovery
from giung2_ext.core.errors import Refusal
from giung2_ext.core.method import Method
from giung2_ext.data import resident
from giung2_ext.data.source import Source, Split
from giung2_ext.experiments.config import Config, options_of
from giung2_ext.experiments.feeding import KIND, batch_shapes, is_streamed, load_source
from giung2_ext.experiments.places import Place, open_place
from giung2_ext.experiments.settling import decide, decided
from giung2_ext.experiments.setup import FITS, Blueprint, check_cut, cuts, draw
from giung2_ext.training import accumulation

Tree = Any
EFFORTS = {"low": -1.0, "full": 0.0}
COLLECTIVES = re.compile(
    r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
DENSE = Method(
    init=lambda key, params, masks: (params, ()), weights=lambda t, s: t, masks=lambda t, s: None
)


class Look(NamedTuple):
    """One compiled program, per device."""

    peak: float  # bytes; infinite if it cannot be compiled
    bytes: float
    flops: float
    seconds: float | None  # XLA's estimate; None where it makes none
    collectives: dict[str, int]


NOTHING = Look(math.inf, 0, 0, None, {})


def look_at(lowered: jax.stages.Lowered) -> Look:
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return NOTHING
        raise
    costs: Any = compiled.cost_analysis()
    seconds = costs.get("optimal_seconds", -1.0)
    return Look(
        accumulation.peak(compiled),
        costs["bytes accessed"],
        costs["flops"],
        seconds if seconds > 0 else None,
        dict(Counter(COLLECTIVES.findall(compiled.as_text()))),
    )


def announced_source(config: Config) -> Source:
    """What a streamed source says of itself before its images are there; a resident one is opened."""
    if not is_streamed(config.data.name):
        return load_source(config)
    options = options_of(config, "data") | {"splits": ()}
    return discovery.build(giung2_ext.data.sources, KIND, config.data.name, root=None, **options)


class Plan(NamedTuple):
    """A config on devices, ready to be compiled."""

    drawn: Blueprint
    micro_batches: int
    feed: resident.Feed | None
    data: Tree  # shapes of what a step takes its batch from
    batch: Tree  # shapes of a batch of evaluation
    seen: dict[int, list[Look]]  # what was compiled, by micro-batches

    def steps(self) -> list[Look]:
        """The ordinary step, and the mask-update step where there is one."""
        count = self.micro_batches
        if count not in self.seen:
            program = self.drawn.program_of(count, self.feed)
            self.seen[count] = [look_at(lowered) for lowered in program.lower(self.drawn.state, self.data)]
        return self.seen[count]

    def evaluation(self) -> Look:
        program = self.drawn.program_of(self.micro_batches, self.feed)
        return look_at(program.lower_evaluation(self.drawn.state, self.batch))


def plan(config: Config, place: Place, source: Source, method: Method | None = None) -> Plan:
    drawn = draw(config, source.num_classes, source.image_shape, devices=place.devices, method=method)
    population = drawn.population
    devices = population.layout.devices
    counted = config.placement.grad_accum == "auto"
    micro_batches = 1 if counted else check_cut(config, devices)
    rows = -(-config.evaluation.batch_size // devices) * devices
    batch = batch_shapes(population, rows, source.image_shape)
    train = source.splits.get("train")
    if isinstance(train, Split):
        feed = resident.make_feed(train, config.feed.batch_size, config.feed.augment)
        data = population.abstract_shared(feed.arrays)
    else:
        feed, data = None, batch_shapes(population, config.feed.batch_size, source.image_shape)
    found = Plan(drawn, micro_batches, feed, data, batch, {})
    if not counted:
        return found
    need = lambda n: max(look.peak for look in found._replace(micro_batches=n).steps())  # noqa: E731
    try:
        fewest = accumulation.fewest(need, cuts(config, devices), FITS * place.memory)
    except accumulation.DoesNotFit:  # told as what was found
        fewest = cuts(config, devices)[-1]
    return found._replace(micro_batches=fewest)


class Found(NamedTuple):
    """What a preflight has found."""

    place: Place
    batch_size: int
    micro_batches: int
    used: int  # devices
    train: Look
    update: Look | None
    evaluation: Look
    overhead: float | None  # of masks, in bytes, against the same step without; None: not asked for

    @property
    def peak(self) -> float:
        return max(look.peak for look in (self.train, self.update, self.evaluation) if look is not None)

    @property
    def fits(self) -> bool:
        return self.peak <= FITS * self.place.memory


def examine(config: Config, place: Place, source: Source, overhead: bool = True) -> Found:
    """Compiles everything that a run would."""
    mine = plan(config, place, source)
    train, *rest = mine.steps()
    evaluation = mine.evaluation()
    ratio = None
    if overhead and math.isfinite(train.peak):
        settled = config.copy_and_resolve_references()
        settled.placement.grad_accum = str(mine.micro_batches)
        dense = plan(settled, place, source, DENSE).steps()[0]
        ratio = train.bytes / dense.bytes - 1 if dense.bytes else None
    used = mine.drawn.population.layout.devices
    update = rest[0] if rest else None
    return Found(place, config.feed.batch_size, mine.micro_batches, used, train, update, evaluation, ratio)


def remedies(config: Config, found: Found) -> Iterator[dict[str, Any]]:
    """Fields of the placement that need less memory than `found`, those that cost least time first."""
    given, devices = config.placement, found.used
    cut: list[dict[str, Any]] = []
    most = found.micro_batches
    for count in cuts(config, devices):
        if count >= 2 * most:
            cut.append({"grad_accum": str(count)})
            most = count
    again = [] if given.remat else [{"remat": True}]
    spread = [] if given.mesh or devices == 1 else [{"mesh": f"fsdp:{devices}"}]
    yield from (*again, *cut, *spread)
    yield from (c | other for other in (*again, *spread) for c in cut)
    yield from (c | r | m for r in again for m in spread for c in ({}, *cut))


def describe(config: Config, found: Found, effort: str) -> list[str]:
    """For people."""
    place, step = found.place, found.train
    hosts = f"{place.hosts} host" + "s" * (place.hosts > 1)
    parts = f"{found.micro_batches} micro-batch" + "es" * (found.micro_batches > 1)
    remat = ", rematerialised" if config.placement.remat else ""
    lines = [
        f"{config.method.name} · {config.model.name} on {config.data.name}, batch {found.batch_size:,} in "
        f"{parts}{remat}, {config.precision or 'float32'}",
        f"{place.name}: {found.used} of {len(place.devices)} {place.kind} on {hosts}, "
        f"{place.memory / 2**30:.2f} GiB each; compiled{f' at {effort} effort' if place.tpu else ''}",
        f"{'per device':<12} {'peak':>16} {'GB a step':>10} {'TFLOP':>8} {'estimated s':>12}  collectives",
    ]
    for name, look in (("step", step), ("mask update", found.update), ("evaluation", found.evaluation)):
        if look is not None:
            lines.append(_row(name, look, place))
    if step.seconds:
        rate = found.batch_size / step.seconds
        lines.append(
            f"{rate:,.0f} images/s by XLA's estimate: each host has to read and decode "
            f"{rate / place.hosts:,.0f} a second"
        )
    if step.seconds and place.chip:
        share = step.flops / step.seconds / place.chip.flops
        lines.append(f"{100 * share:.0f}% of the peak rate of {place.chip.flops / 1e12:g} TFLOP/s")
    if found.overhead is not None:
        lines.append(f"masks: {100 * found.overhead:+.2f}% of the bytes of the same step without any")
    room = f"{found.peak / 2**30:.2f} GiB" if math.isfinite(found.peak) else "more than there is"
    limit = f"{FITS:.0%} of {place.memory / 2**30:.2f} GiB"
    lines.append(f"{'fits' if found.fits else 'does not fit'}: {room}, of {limit} that it may take")
    return lines


def _row(name: str, look: Look, place: Place) -> str:
    if not math.isfinite(look.peak):
        return f"{name:<12} {'too much':>16}"
    peak = f"{look.peak / 2**20:,.0f} MiB ({look.peak / place.memory:.0%})"
    seconds = f"{look.seconds:.4f}" if look.seconds else "none given"
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(look.collectives.items())) or "none"
    return (
        f"{name:<12} {peak:>16} {look.bytes / 1e9:>10.2f} {look.flops / 1e12:>8.3f} {seconds:>12}  {told}"
    )


def find_remedy(config: Config, place: Place, source: Source, first: Found) -> tuple[str, Found] | None:
    """The first that fits, found by compiling; `first` is what was found of the config as it is."""
    tried = [(config.placement.remat, config.placement.mesh, first)]
    for fields in remedies(config, first):
        other = config.copy_and_resolve_references()
        for name, value in fields.items():
            other.placement[name] = value
        where = other.placement
        parts = int(where.grad_accum) if where.grad_accum.isdigit() else first.micro_batches
        if any(
            (remat, mesh) == (where.remat, where.mesh) and _hopeless(seen, parts)
            for remat, mesh, seen in tried
        ):
            continue
        try:
            found = examine(other, place, source, overhead=False)
        except Refusal:  # not for this method, or these devices
            continue
        if found.fits:
            return " ".join(f"--{name}={str(value).lower()}" for name, value in fields.items()), found
        tried.append((where.remat, where.mesh, found))
    return None


def _hopeless(seen: Found, parts: int) -> bool:
    """Memory falls no faster than the micro-batch shrinks."""
    need = seen.peak * seen.micro_batches
    return math.isfinite(need) and need > parts * FITS * seen.place.memory


def to_json(found: Found) -> dict[str, Any]:
    """Per device, of the ordinary step; the other programs by name."""

    def numbers(look: Look) -> dict[str, Any]:
        return {
            "peak_bytes": look.peak if math.isfinite(look.peak) else None,
            "bytes_per_step": look.bytes,
            "flops_per_step": look.flops,
            "estimated_seconds": look.seconds,
            "collectives": look.collectives,
        }

    others: Mapping[str, Look | None] = {"update": found.update, "evaluation": found.evaluation}
    return {
        "fits": found.fits,
        **numbers(found.train),
        "mask_overhead": found.overhead,
        "topology": found.place.name,
        "device_kind": found.place.kind,
        "devices": found.used,
        "hosts": found.place.hosts,
        "memory_bytes": found.place.memory,
        "batch_size": found.batch_size,
        "micro_batches": found.micro_batches,
        "images_per_second": found.batch_size / found.train.seconds if found.train.seconds else None,
        **{name: numbers(look) for name, look in others.items() if look is not None},
    }


def run(config: Config, topology: str | None, effort: str, as_json: bool) -> bool:
    """Prints what was found, and what would help where it does not fit; says whether it fits."""
    place, source = open_place(topology), announced_source(config)
    if place.tpu and config.mixed_precision and config.precision is None:
        config = decided(config, 0, "bfloat16", config.feed.augment)
    config = decided(config, *decide(config, None, 0))
    found = examine(config, place, source)
    if as_json:
        print(json.dumps(to_json(found), indent=1))
        return found.fits
    print("\n".join(describe(config, found, effort)))
    if not found.fits:
        remedy = find_remedy(config, place, source, found)
        if remedy is None:
            print("no micro-batches, --remat or fsdp make it fit: take more devices, or a smaller batch")
        else:
            words, other = remedy
            print(f"with {words} it does, which was tried:")
            print("\n".join(describe(config, other, effort)[3:]))
    return found.fits
