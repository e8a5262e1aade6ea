"""From a config to the things that train: source, network, method, compiled programs.

What a setup depends on is the recipe without seed and checkpoints, so all cycles of a chain share one
and nothing is compiled twice.
"""

import functools
import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from giung2_ext.core import accounting
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.core.method import Method
from giung2_ext.data.resident import Feed
from giung2_ext.data.source import Source
from giung2_ext.experiments.bounds import check_config
from giung2_ext.experiments.building import (
    build_method,
    build_model,
    check_groups,
    count_uses,
    judged_in,
    kinds_of,
    optimizer_of,
    rate_of,
)
from giung2_ext.experiments.config import Config, group_of, options_of
from giung2_ext.experiments.feeding import Data, load_source, make_data
from giung2_ext.training import accumulation
from giung2_ext.training import step as steps
from giung2_ext.training.population import Population
from giung2_ext.training.processes import agree
from giung2_ext.training.program import Program, make_program
from giung2_ext.training.sharding import read_mesh
from giung2_ext.training.state import State, make_state, seed_key

Tree = Any


class Setup(NamedTuple):
    source: Source
    model: nn.Module
    method: Method
    population: Population
    begin: Callable[[Any, Tree, Tree, Tree], State]
    """(seed, params, masks, statistics) -> one member's state at step 0"""
    program: Program
    micro_batches: int
    shapes: Tree  # of the parameters
    uses: accounting.Uses  # how often an image uses each of them, for FLOPs
    data: Data
    select_on: str  # the split that checkpoints are chosen on, as the source calls it
    need: Callable[[], float]
    """The most bytes that its programs need on one device"""


FITS = 0.92  # of a device's memory; evaluation and fragments have the rest


def make_population(
    config: Config,
    members: int,
    together: bool,
    convolutions: bool = False,
    devices: list[Any] | None = None,
) -> Population:
    """Members of a chain that has several (`together`) have one device each; any other run the mesh."""
    where = config.placement
    mesh = None if together else read_mesh(where.mesh or None, config.feed.batch_size, devices)
    return Population(members, where.population, mesh, devices, convolutions)


def check_setup(config: Config, together: bool = False) -> None:
    """Refuses a method, a mesh or a cut that cannot be, before a folder is touched."""
    check_groups(config, build_method(config))
    devices = make_population(config, 1, together).layout.devices
    if config.placement.grad_accum != "auto":
        check_cut(config, devices)


def describe_devices(config: Config, together: bool = False) -> str:
    """What trains: `data:8 of 8 tpu device(s) (TPU v3)`."""
    devices, count = jax.devices(), jax.process_count()
    axes = ""
    if not together:
        mesh = make_population(config, 1, together).mesh
        axes = ",".join(f"{axis}:{size}" for axis, size in mesh.shape.items() if size > 1) or "one"
    return (
        f"{axes and f'{axes} of '}{len(devices)} {devices[0].platform} device(s) "
        f"({devices[0].device_kind}){f' in {count} processes' if count > 1 else ''}"
    )


def cuts(config: Config, devices: int) -> list[int]:
    """The numbers of micro-batches that a batch may be cut into."""
    return accumulation.possible(config.feed.batch_size, devices, group_of(config))


def check_cut(config: Config, devices: int) -> int:
    """config.placement.grad_accum as a number; one that would change the recipe is refused."""
    text, allowed = config.placement.grad_accum, cuts(config, devices)
    if not text.isdigit() or int(text) not in allowed:
        group = group_of(config)
        whole = "" if group is None else f" and keeps BatchNorm's groups whole ({group or 'all'} examples)"
        raise Refusal(
            f"--grad_accum={text}: a batch of {config.feed.batch_size} can be cut into "
            f"{', '.join(map(str, allowed))} micro-batches, or auto; "
            f"each divides over {devices} device(s){whole}"
        )
    return int(text)


def source_of(config: Config, kept: dict[Any, Any]) -> Source:
    origin = json.dumps([config.data.to_dict(), config.placement.data_root])
    if origin not in kept:
        kept[origin] = load_source(config)
    return kept[origin]


class Blueprint(NamedTuple):
    """What a config computes, before there are images."""

    model: nn.Module
    method: Method
    population: Population
    begin: Callable[[Any, Tree, Tree, Tree], State]
    shapes: Tree  # of the parameters
    uses: accounting.Uses
    state: State
    """The shapes and places of all members' states together"""
    program_of: Callable[..., Program]
    """(micro-batches, what cuts batches from resident data, parts of a turn = 1) -> its programs"""
    groups: int
    """Parts of the batch that a mask update takes in turn instead, where the method has such; or 1"""


def draw(
    config: Config,
    num_classes: int,
    image_shape: tuple[int, ...],
    members: int = 1,
    together: bool = False,
    devices: list[Any] | None = None,
    method: Method | None = None,
) -> Blueprint:
    """`devices` may be such as can only be compiled for; `method` is instead of the config's."""
    check_config(config)
    options = options_of(config, "model")
    model = build_model(config.model.name, num_classes, config.precision, options)
    judge = build_model(config.model.name, num_classes, judged_in(config.precision), options)
    method = method or build_method(config)
    check_groups(config, method)
    shapes, statistics, uses = count_uses(model, image_shape)
    convolutions = any(leaf.ndim == 4 for leaf in jax.tree.leaves(shapes))
    population = make_population(config, members, together, convolutions, devices)
    layout = population.layout
    optimizer, kinds = optimizer_of(config), kinds_of(config)
    groups = config.feed.batch_size // method.abs_over if method.abs_over else 1

    def begin(seed: Any, params: Tree, masks: Tree, statistics: Tree) -> State:
        state = make_state(method, optimizer, seed_key(seed), params, masks, statistics, **kinds)
        return layout.owned(state)

    def program_of(micro_batches: int, feed: Feed | None, unroll: int = 1) -> Program:
        group = group_of(config)
        pair = steps.make_step(
            model,
            method,
            optimizer,
            rate_of(config),
            smoothing=config.optim.label_smoothing,
            micro_batches=micro_batches,
            groups=groups,
            average=config.optim.ema,
            layout=layout,
            shares=accumulation.shares(config.feed.batch_size, layout.devices, group, micro_batches),
            remat=config.placement.remat,
            unroll=unroll,
        )
        return make_program(judge, method, pair, feed, population, config.feed.mixup)

    parts = (shapes, masking.dense(shapes, config.masks.prunable), statistics)
    state = population.abstract_whole(jax.eval_shape(begin, np.uint32(0), *parts))
    return Blueprint(model, method, population, begin, shapes, uses, state, program_of, groups)


def make_setup(
    config: Config, members: int, together: bool = False, kept: dict[Any, Any] | None = None
) -> Setup:
    """`kept` are sources and placed data of setups made before, to be shared."""
    kept = {} if kept is None else kept
    source = source_of(config, kept)
    drawn = draw(config, source.num_classes, source.image_shape, members, together)
    population = drawn.population
    select_on = source.canonical(config.evaluation.select_on)
    cut = json.dumps([config.feed.to_dict(), config.evaluation.to_dict(), config.placement.to_dict()])
    place = (id(source), cut, population.mesh, population.solo)
    if place not in kept:
        kept[place] = make_data(config, source, population, list(dict.fromkeys((select_on, "test"))))
    data = kept[place]
    program_of = functools.cache(functools.partial(drawn.program_of, feed=data.feed))

    def need(micro_batches: int) -> float:
        return accumulation.needed(program_of(micro_batches).lower(drawn.state, data.shapes))

    devices = population.layout.devices
    if config.placement.grad_accum == "auto":
        limit = FITS * agree(accumulation.device_memory)
        counted = accumulation.fewest(need, cuts(config, devices), limit)
        micro_batches = agree(lambda: counted)
    else:
        micro_batches = check_cut(config, devices)

    return Setup(
        source=source,
        model=drawn.model,
        method=drawn.method,
        population=population,
        begin=jax.jit(drawn.begin),
        program=program_of(micro_batches),
        micro_batches=micro_batches,
        shapes=drawn.shapes,
        uses=drawn.uses,
        data=data,
        select_on=select_on,
        need=lambda: need(micro_batches),
    )


def shape_of(config: Config) -> str:
    """What runs have in common that can train in one program."""
    plain = config.to_dict()
    for key in ("seed", "start", "chain", "judge"):
        del plain[key]
    return json.dumps(plain, sort_keys=True)


class Setups:
    """Setups by what they depend on, so that cycles share compiled programs."""

    def __init__(self, together: bool = False) -> None:
        self.together = together
        self._made: dict[tuple[str, int], Setup] = {}
        self._most: dict[tuple[str, int], int] = {}
        self._data: dict[Any, Any] = {}

    def get(self, config: Config, members: int) -> Setup:
        key = (shape_of(config), members)
        if key not in self._made:
            self._made[key] = make_setup(config, members, self.together, self._data)
        return self._made[key]

    def source(self, config: Config) -> Source:
        """Opened once for all."""
        return source_of(config, self._data)

    def dense_masks(self, config: Config) -> Tree:
        """Of the network that such a config trains."""
        source = self.source(config)
        model = build_model(config.model.name, source.num_classes, "float32", options_of(config, "model"))
        return masking.dense(count_uses(model, source.image_shape)[0], config.masks.prunable)

    def most(self, config: Config, members: int) -> int:
        """How many of so many runs of one shape train side by side: as many as fit, in equal parts."""
        if not self.together:
            return 1
        if not config.optim.ni:
            return members
        if config.placement.members != "auto":
            return -(-members // -(-members // int(config.placement.members)))
        key = (shape_of(config), members)
        if key not in self._most:
            limit, parts = FITS * agree(accumulation.device_memory), 1
            while (size := -(-members // parts)) > jax.device_count():
                need = self._need(config, size)
                if agree(lambda need=need: need) <= limit:
                    break
                self._made.pop((shape_of(config), size), None)
                parts += parts
            self._most[key] = size
        return self._most[key]

    def _need(self, config: Config, members: int) -> float:
        try:
            return self.get(config, members).need()
        except accumulation.DoesNotFit:  # in any number of micro-batches
            return math.inf
