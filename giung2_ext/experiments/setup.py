"""From a config to the things that train: source, network, method, compiled programs.

What a setup depends on is the recipe without seed and checkpoints, so all cycles of a chain share one
and nothing is compiled twice.
"""

import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import giung2_ext.methods
import giung2_ext.models
from giung2_ext.core import accounting, discovery, schedules
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.core.method import Method
from giung2_ext.data.source import Source
from giung2_ext.experiments.bounds import PRECISIONS, check_config
from giung2_ext.experiments.config import Config, group_of, options_of
from giung2_ext.experiments.feeding import Data, load_source, make_data
from giung2_ext.training import accumulation
from giung2_ext.training import step as steps
from giung2_ext.training.optimizers import make_optimizer
from giung2_ext.training.population import Population
from giung2_ext.training.processes import agree
from giung2_ext.training.program import Program, make_program
from giung2_ext.training.sharding import read_mesh
from giung2_ext.training.state import State, init_variables, make_state, seed_key

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


def build_model(name: str, num_classes: int, precision: str, options: dict[str, Any]) -> nn.Module:
    dtype = PRECISIONS[precision]
    return discovery.build(
        giung2_ext.models, "model", name, num_classes=num_classes, dtype=dtype, **options
    )


def build_method(config: Config) -> Method:
    name, options = config.method.name, options_of(config, "method")
    if "ni" in discovery.options(giung2_ext.methods, "method", name):
        options["ni"] = config.optim.ni
    return discovery.build(giung2_ext.methods, "method", name, **options)


def check_groups(config: Config, method: Method) -> None:
    """The groups that |gradient| is averaged over are whole, and made of whole groups of BatchNorm."""
    size, batch, norm = method.abs_over, config.feed.batch_size, group_of(config)
    if size and (size < 0 or batch % size or (norm is not None and size % (norm or batch))):
        whole = (
            ""
            if norm is None
            else f", in whole BatchNorm groups of {norm or batch} (config.model.group_size)"
        )
        raise Refusal(f"config.method.group={size} does not divide a batch of {batch}{whole}; 0: the batch")


def judged_in(precision: str) -> str:
    """What a network trained in `precision` is evaluated in: nothing scales float16's activations there."""
    return "float32" if precision == "float16" else precision


def mixed_precision() -> str:
    """What `mixed_precision=true` means on this machine."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return "float32"
    capability = str(getattr(device, "compute_capability", ""))  # of NVIDIA: "7.5", "9.0"
    old = capability.replace(".", "").isdigit() and float(capability) < 8
    return "float16" if old else "bfloat16"


def count_uses(model: nn.Module, image_shape: Sequence[int]) -> tuple[Tree, Tree, accounting.Uses]:
    """The shapes of a network's parameters and statistics, and how often an image uses each parameter."""
    shapes, statistics = jax.eval_shape(lambda key: init_variables(model, key, image_shape), seed_key(0))
    channels = jax.ShapeDtypeStruct((image_shape[-1],), jnp.float32)
    statistics = statistics | {"image_stats": {"m": channels, "s": channels}}
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def forward(weights: Tree, example: tuple[Tree, Any]) -> Any:
        return steps.network(model, weights, *example, train=False)

    return shapes, statistics, accounting.uses(forward, shapes, (statistics, image))


FITS = 0.92  # of a device's memory; evaluation and fragments have the rest


def rate_of(config: Config) -> schedules.Schedule:
    optim = config.optim
    if optim.constant_lr:
        return schedules.constant(optim.lr)
    if optim.milestones:
        how = (optim.warmup, optim.milestones, optim.decay_factor)
        return schedules.warmup_stairs(optim.lr, optim.ni, *how)
    return schedules.warmup_cosine(optim.lr, optim.ni, optim.warmup)


def make_population(config: Config, members: int, together: bool, convolutions: bool = False) -> Population:
    """Members of a chain that has several (`together`) have one device each; any other run the mesh."""
    where = config.placement
    if together:
        return Population(members, where.population, convolutions=convolutions)
    return Population(members, where.population, read_mesh(where.mesh or None, config.feed.batch_size))


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


def make_setup(
    config: Config, members: int, together: bool = False, kept: dict[Any, Any] | None = None
) -> Setup:
    """`kept` are sources and placed data of setups made before, to be shared."""
    check_config(config)
    kept = {} if kept is None else kept
    source = source_of(config, kept)
    options = options_of(config, "model")
    model = build_model(config.model.name, source.num_classes, config.precision, options)
    judge = build_model(config.model.name, source.num_classes, judged_in(config.precision), options)
    method = build_method(config)
    check_groups(config, method)
    shapes, statistics, uses = count_uses(model, source.image_shape)
    convolutions = any(leaf.ndim == 4 for leaf in jax.tree.leaves(shapes))
    population = make_population(config, members, together, convolutions)
    layout = population.layout
    optim = config.optim
    optimizer = make_optimizer(
        optim.name,
        optim.momentum,
        optim.weight_decay,
        optim.global_clipping,
        nesterov=optim.nesterov,
        decay_on=optim.decay_on,
    )
    kinds = {"scaled": config.precision == "float16", "averaged": optim.ema is not None}

    def begin(seed: Any, params: Tree, masks: Tree, statistics: Tree) -> State:
        state = make_state(method, optimizer, seed_key(seed), params, masks, statistics, **kinds)
        return layout.owned(state)

    select_on = source.canonical(config.evaluation.select_on)
    cut = json.dumps([config.feed.to_dict(), config.evaluation.to_dict(), config.placement.to_dict()])
    place = (id(source), cut, population.mesh, population.solo)
    if place not in kept:
        kept[place] = make_data(config, source, population, list(dict.fromkeys((select_on, "test"))))
    data = kept[place]

    @functools.cache
    def program_of(micro_batches: int) -> Program:
        group = group_of(config)
        pair = steps.make_step(
            model,
            method,
            optimizer,
            rate_of(config),
            smoothing=optim.label_smoothing,
            micro_batches=micro_batches,
            groups=config.feed.batch_size // method.abs_over if method.abs_over else 1,
            average=optim.ema,
            layout=layout,
            shares=accumulation.shares(config.feed.batch_size, layout.devices, group, micro_batches),
        )
        return make_program(judge, method, pair, data.feed, population, config.feed.mixup)

    def need(micro_batches: int) -> float:
        parts = (shapes, masking.dense(shapes, config.masks.prunable), statistics)
        state = population.abstract_whole(jax.eval_shape(begin, np.uint32(0), *parts))
        return accumulation.needed(lambda: program_of(micro_batches).compile(state, data.shapes))

    if config.placement.grad_accum == "auto":
        limit = FITS * agree(accumulation.device_memory)
        counted = accumulation.fewest(need, cuts(config, layout.devices), limit)
        micro_batches = agree(lambda: counted)
    else:
        micro_batches = check_cut(config, layout.devices)

    return Setup(
        source=source,
        model=model,
        method=method,
        population=population,
        begin=jax.jit(begin),
        program=program_of(micro_batches),
        micro_batches=micro_batches,
        shapes=shapes,
        uses=uses,
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

    def dense_masks(self, config: Config) -> Tree:
        """Of the network that such a config trains."""
        source = source_of(config, self._data)
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
