"""A run's programs, compiled for devices that need not be there, and looked at.

Nothing is computed. Memory, FLOPs, bytes and collectives are those of the programs that would train;
seconds are XLA's own estimate for its TPUs, at the effort that is set, and no measurement.
"""

import math
import re
from collections import Counter
from typing import Any, NamedTuple

import jax

import giung2_ext.data.sources
from giung2_ext.core import discovery
from giung2_ext.core.method import Method
from giung2_ext.data import resident
from giung2_ext.data.source import Source, Split
from giung2_ext.experiments.config import Config, options_of
from giung2_ext.experiments.feeding import KIND, batch_shapes, is_streamed, load_source
from giung2_ext.experiments.places import Place
from giung2_ext.experiments.setup import FITS, Blueprint, check_cut, cuts, draw
from giung2_ext.training import accumulation

Tree = Any
COLLECTIVES = re.compile(
    r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
ASKED = re.compile(r"\(([\d.]+)([KMG])\) exceeds|Used ([\d.]+)([KMG]) of")  # by what is not compiled
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
COSTS = ("bytes", "flops", "seconds")
DENSE = Method(
    init=lambda key, params, masks: (params, ()), weights=lambda t, s: t, masks=lambda t, s: None
)


class Look(NamedTuple):
    """One compiled program, per device."""

    peak: float  # bytes; infinite if it cannot be compiled
    bytes: float | None  # None: not known
    flops: float | None
    seconds: float | None  # XLA's estimate; None where it makes none
    collectives: dict[str, int]
    asked: float | None = None  # bytes that XLA names of what it cannot compile

    def all_turns(self, unrolled: "Look", turns: int) -> "Look":
        """With the costs of all `turns` of its loop over parts of the batch, of which XLA counts one.

        `unrolled` is the same program with two parts a turn, where an odd last part is no turn.
        """
        more = 1 + turns % 2  # parts that XLA counts there and not here

        def total(once: float | None, there: float | None) -> float | None:
            return None if once is None or there is None else once + (turns - 1) / more * (there - once)

        costs = {name: total(getattr(self, name), getattr(unrolled, name)) for name in COSTS}
        return self._replace(**costs)


def _too_much(said: str) -> Look:
    found = ASKED.search(said)
    amount, unit = [part for part in found.groups() if part] if found else ("0", "K")
    return Look(math.inf, None, None, None, {}, float(amount) * UNITS[unit] or None)


def look_at(lowered: jax.stages.Lowered) -> Look:
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return _too_much(str(error))
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

    def lowered(self, unroll: int = 1) -> list[jax.stages.Lowered]:
        program = self.drawn.program_of(self.micro_batches, self.feed, unroll)
        return program.lower(self.drawn.state, self.data)

    def steps(self) -> list[Look]:
        """The ordinary step, and the mask-update step where there is one, as XLA counts them."""
        count = self.micro_batches
        if count not in self.seen:
            self.seen[count] = [look_at(lowered) for lowered in self.lowered()]
        return self.seen[count]

    def all_turns(self) -> list[Look]:
        """The same with every turn of the loop over the batch's parts counted."""
        turns = [self.micro_batches, self.drawn.groups if self.drawn.groups > 1 else self.micro_batches]
        if max(turns[: len(self.steps())]) == 1:
            return self.steps()
        pairs = zip(self.steps(), self.lowered(2), turns, strict=False)
        return [look.all_turns(look_at(two), count) if count > 1 else look for look, two, count in pairs]

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

    config: Config
    place: Place
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
    def limit(self) -> float:
        return FITS * self.place.memory

    @property
    def fits(self) -> bool:
        return self.peak <= self.limit


def examine(config: Config, place: Place, source: Source, remedy: bool = False) -> Found:
    """Compiles everything that a run would; of a remedy no more than is told of it."""
    mine = plan(config, place, source)
    used = mine.drawn.population.layout.devices
    train, update = (*mine.steps(), None)[:2]
    found = Found(config, place, mine.micro_batches, used, train, update, mine.evaluation(), None)
    if remedy and not found.fits:
        return found
    train, update = (*mine.all_turns(), None)[:2]
    found = found._replace(train=train, update=update)
    return found if remedy else found._replace(overhead=overhead(mine, found, source))


def overhead(mine: Plan, found: Found, source: Source) -> float | None:
    """Masks are applied once a step, outside of the loop over micro-batches."""
    settled = found.config.copy_and_resolve_references()
    settled.placement.grad_accum = str(mine.micro_batches)
    if not math.isfinite(found.train.peak):
        return None
    dense, own = plan(settled, found.place, source, DENSE).steps()[0].bytes, mine.steps()[0].bytes
    if not dense or not own or found.train.bytes is None:
        return None
    return (own - dense) / (found.train.bytes - (own - dense))
