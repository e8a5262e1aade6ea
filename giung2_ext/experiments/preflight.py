"""Before a run: does it fit, how long does a step take, and what would help where it does not fit?

What `forecast` finds, for people and for programs; remedies are tried by compiling them.
"""

import functools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from giung2_ext.core.errors import Refusal
from giung2_ext.data.source import Source
from giung2_ext.experiments.config import Config
from giung2_ext.experiments.feeding import is_streamed
from giung2_ext.experiments.forecast import Found, Look, announced_source, examine
from giung2_ext.experiments.places import Place, open_place
from giung2_ext.experiments.settling import decide, decided
from giung2_ext.experiments.setup import FITS, cuts, draw
from giung2_ext.training.sharding import owned_axis

EFFORTS = {"low": -1.0, "full": 0.0}


def widest(config: Config, place: Place, source: Source) -> int:
    """Over how many devices an fsdp axis leaves the least of the state on each, of those a batch suits."""
    drawn = draw(config, source.num_classes, source.image_shape, devices=place.devices)
    leaves = jax.tree.leaves(drawn.state.replace(step=None, key=None))

    def share(parts: int) -> float:
        cut = ((leaf, owned_axis(leaf.shape, parts) is not None) for leaf in leaves)
        return sum(leaf.size * leaf.dtype.itemsize / (parts if owned else 1) for leaf, owned in cut)

    counts = [n for n in range(1, len(place.devices) + 1) if config.feed.batch_size % n == 0]
    return min(counts, key=lambda n: (share(n), -n))


def remedies(found: Found, spread_over: int) -> Iterator[dict[str, Any]]:
    """Fields of the placement that need less memory than `found`, those that cost least time first."""
    config, devices = found.config, found.used
    given = config.placement
    cut: list[dict[str, Any]] = []
    most = found.micro_batches
    for count in cuts(config, devices):
        if count >= 2 * most:
            cut.append({"grad_accum": str(count)})
            most = count
    again = [] if given.remat else [{"remat": True}]
    spread = [] if given.mesh or spread_over == 1 else [{"mesh": f"fsdp:{spread_over}"}]
    yield from (*again, *cut, *spread)
    yield from (c | other for other in (*again, *spread) for c in cut)
    yield from (c | r | m for r in again for m in spread for c in ({}, *cut))


def find_remedy(source: Source, first: Found, say: Callable[[str], None]) -> tuple[str, Found] | None:
    """The first that fits, found by compiling; `first` is what was found of the config as it is."""
    config, place = first.config, first.place
    tried = [(config.placement.remat, config.placement.mesh, first)]
    for fields in remedies(first, widest(config, place, source)):
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
        words = " ".join(f"--{name}={str(value).lower()}" for name, value in fields.items())
        say(f"does {words} help? …")
        try:
            found = examine(other, place, source, remedy=True)
        except Refusal:  # not for this method, or these devices
            continue
        if found.fits:
            return words, found
        tried.append((where.remat, where.mesh, found))
    return None


def _hopeless(seen: Found, parts: int) -> bool:
    """Memory falls no faster than the micro-batch shrinks."""
    need = seen.peak * seen.micro_batches
    return math.isfinite(need) and need > parts * seen.limit


def describe(found: Found, effort: str) -> list[str]:
    """For people."""
    config = found.config
    parts = f"{found.micro_batches} micro-batch" + "es" * (found.micro_batches > 1)
    remat = ", rematerialised" if config.placement.remat else ""
    return [
        f"{config.method.name} · {config.model.name} on {config.data.name}, batch "
        f"{config.feed.batch_size:,} in {parts}{remat}, {config.precision or 'float32'}",
        *_devices(found, effort),
        *numbers(found),
    ]


def _devices(found: Found, effort: str) -> Iterator[str]:
    place, config = found.place, found.config
    hosts = f"{place.hosts} host" + "s" * (place.hosts > 1)
    compiled = f"; compiled at {effort} effort" if place.tpu else ""
    yield (
        f"{place.name}: {found.used} of {len(place.devices)} {place.kind} on {hosts}, "
        f"{place.memory / 2**30:.2f} GiB each{compiled}"
    )
    idle = len(place.devices) - found.used
    if idle and not config.placement.mesh:
        yield (
            f"{idle} of the {len(place.devices)} devices would do nothing: {config.feed.batch_size:,} "
            "images do not divide over more; take another --batch_size"
        )
    if not is_streamed(config.data.name):
        yield "this is one run; imp.py has a device for each of a chain's trials and arms"


def numbers(found: Found) -> list[str]:
    place, step = found.place, found.train
    lines = [
        f"{'per device':<12} {'peak':>16} {'GB a step':>10} {'TFLOP':>9} {'estimated s':>12}  collectives",
    ]
    for name, look in (("step", step), ("mask update", found.update), ("evaluation", found.evaluation)):
        if look is not None:
            lines.append(_row(name, look, place))
    if step.seconds:
        rate = found.config.feed.batch_size / step.seconds
        told = f"{rate:,.0f} images/s by XLA's estimate"
        if is_streamed(found.config.data.name):
            told += f": each host has to read and decode {rate / place.hosts:,.0f} a second"
        lines.append(told)
    if step.seconds and step.flops and place.chip:
        share = step.flops / step.seconds / place.chip.flops
        lines.append(f"{_short(100 * share, 0)}% of the peak rate of {place.chip.flops / 1e12:g} TFLOP/s")
    if found.overhead is not None:
        lines.append(f"masks: {100 * found.overhead:+.2f}% of the bytes of the same step without any")
    return [*lines, _verdict(found)]


def _verdict(found: Found) -> str:
    looks = [look for look in (found.train, found.update, found.evaluation) if look is not None]
    asked = max((look.asked or 0 for look in looks), default=0)
    room = f"{found.peak / 2**20:,.0f} MiB"
    if not math.isfinite(found.peak):
        room = f"XLA asks for {asked / 2**20:,.0f} MiB at once" if asked else "XLA finds no way"
    limit = f"{found.limit / 2**20:,.0f} MiB that it may take ({FITS:.0%} of the memory)"
    return f"{'fits' if found.fits else 'does not fit'}: {room}, of {limit}"


def _short(number: float, places: int) -> str:
    """So many places, or two digits of what is too small for them."""
    return f"{number:.{places}f}" if number >= 10**-places or not number else f"{number:.2g}"


def _row(name: str, look: Look, place: Place) -> str:
    if not math.isfinite(look.peak):
        return f"{name:<12} {'too much':>16}"
    peak = f"{look.peak / 2**20:,.0f} MiB ({_short(100 * look.peak / place.memory, 0)}%)"
    seconds = _short(look.seconds, 4) if look.seconds else "none given"
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(look.collectives.items())) or "none"
    size = "not known" if look.bytes is None else _short(look.bytes / 1e9, 2)
    work = "not known" if look.flops is None else _short(look.flops / 1e12, 3)
    return f"{name:<12} {peak:>16} {size:>10} {work:>9} {seconds:>12}  {told}"


def to_json(found: Found, effort: str) -> dict[str, Any]:
    """Per device, of the ordinary step; the other programs by name."""

    def one(look: Look) -> dict[str, Any]:
        return {
            "peak_bytes": look.peak if math.isfinite(look.peak) else None,
            "asked_bytes": look.asked,
            "bytes_per_step": look.bytes,
            "flops_per_step": look.flops,
            "estimated_seconds": look.seconds,
            "collectives": look.collectives,
        }

    others: Mapping[str, Look | None] = {"update": found.update, "evaluation": found.evaluation}
    config, place, seconds = found.config, found.place, found.train.seconds
    return {
        "fits": found.fits,
        **one(found.train),
        "mask_overhead": found.overhead,
        "topology": place.name,
        "device_kind": place.kind,
        "devices": found.used,
        "devices_there": len(place.devices),
        "hosts": place.hosts,
        "memory_bytes": place.memory,
        "limit_bytes": int(found.limit),
        "batch_size": config.feed.batch_size,
        "micro_batches": found.micro_batches,
        "remat": config.placement.remat,
        "mesh": config.placement.mesh,
        "precision": config.precision or "float32",
        "effort": effort if place.tpu else None,
        "compiler": place.compiler,
        "images_per_second": config.feed.batch_size / seconds if seconds else None,
        **{name: one(look) for name, look in others.items() if look is not None},
    }


def run(config: Config, topology: str | None, effort: str, as_json: bool) -> bool:
    """Prints what was found, and what would help where it does not fit; says whether it fits."""
    place, source = open_place(topology), announced_source(config)
    if place.tpu and config.mixed_precision and config.precision is None:
        config = decided(config, 0, "bfloat16", config.feed.augment)
    config = decided(config, *decide(config, None, 0))
    say = functools.partial(print, file=sys.stderr, flush=True)
    say(f"compiling for {place.name} …")
    found = examine(config, place, source)
    if not as_json:
        print("\n".join(describe(found, effort)), flush=True)
    trains = max(look.peak for look in (found.train, found.update) if look) <= found.limit
    remedy = None if found.fits or trains else find_remedy(source, found, say)
    if as_json:
        other = None if remedy is None else {"flags": remedy[0], **to_json(remedy[1], effort)}
        print(json.dumps({**to_json(found, effort), "remedy": other}, indent=1))
    elif remedy is not None:
        print(f"with {remedy[0]} it does, which was tried:")
        print("\n".join(numbers(remedy[1])))
    elif trains and not found.fits:
        print("evaluation alone does not fit: take a smaller --config.evaluation.batch_size")
    elif not found.fits:
        judged = found.evaluation.peak <= found.limit
        also = "" if judged else ", and of --config.evaluation.batch_size"
        print(f"no micro-batches, --remat or fsdp make it fit: take more devices, or a smaller batch{also}")
    return found.fits
