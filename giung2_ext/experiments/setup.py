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
from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.core.method import Method
from giung2_ext.data.source import Source
from giung2_ext.experiments.config import Config, options_of
from giung2_ext.experiments.feeding import Data, load_source, make_data
from giung2_ext.training import accumulation
from giung2_ext.training import step as steps
from giung2_ext.training.hooks import SaveEvery
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


PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def build_model(name: str, num_classes: int, precision: str, options: dict[str, Any]) -> nn.Module:
    dtype = PRECISIONS[precision]
    return discovery.build(
        giung2_ext.models, "model", name, num_classes=num_classes, dtype=dtype, **options
    )


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

POSITIVE = (
    *("feed.batch_size", "evaluation.every", "evaluation.batch_size", "judge.batch_size", "tickets.every"),
    *("placement.num_workers", "placement.prefetch_factor", "placement.log_every", "placement.keep_states"),
    "chain.trials",
)
NOT_NEGATIVE = (
    *("optim.ni", "chain.rewind_ni", "chain.cycles", "feed.randaugment", "placement.worker_processes"),
)
BOUNDS: dict[str, tuple[Callable[[float], bool], str]] = {
    "optim.lr": (lambda v: 0 <= v < math.inf, "a finite number, at least 0"),
    "optim.momentum": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "optim.weight_decay": (lambda v: 0 <= v < math.inf, "a finite number, at least 0"),
    "optim.label_smoothing": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "optim.global_clipping": (lambda v: 0 < v < math.inf, "above 0"),
    "optim.ema": (lambda v: 0 < v < 1, "in (0, 1)"),
    "feed.magnitude": (lambda v: 0 <= v <= 10, "in 0..10"),
    "placement.joined_within": (lambda v: v >= 1, "at least 1"),
    "placement.lost_after": (lambda v: v >= 1, "at least 1"),
    "placement.stalled_after": (lambda v: v >= 0, "at least 0"),
}


def check_config(config: Config) -> None:
    """Values that only make sense within bounds; a refusal names the field."""
    for field in POSITIVE:
        section, key = field.split(".")
        if config[section][key] < 1:
            raise Refusal(f"config.{field} must be at least 1, got {config[section][key]}")
    for field in NOT_NEGATIVE:
        section, key = field.split(".")
        if config[section][key] < 0:
            raise Refusal(f"config.{field} must not be negative, got {config[section][key]}")
    for field, (test, wanted) in BOUNDS.items():
        section, key = field.split(".")
        value = config[section][key]
        if value is not None and not test(value):
            raise Refusal(f"config.{field} must be {wanted}, got {value:g}")
    if config.seed is not None and not 0 <= config.seed < 2**32:
        raise Refusal(f"seed must be in 0..2**32 - 1, got {config.seed}")
    group = options_of(config, "model").get("group_size", 0)
    if group < 0:
        raise Refusal(f"config.model.group_size must be at least 0 (0: the whole batch), got {group}")
    if group and config.feed.batch_size % group:
        raise Refusal(
            f"batch_size {config.feed.batch_size} does not divide into BatchNorm groups of {group} "
            "(config.model.group_size; 0 is the whole batch)"
        )
    if not 0 <= config.feed.mixup < math.inf or (config.feed.mixup and config.feed.batch_size % 2):
        raise Refusal(
            "config.feed.mixup (alpha, 0: none) must be a finite number, at least 0, and mixes pairs of an "
            f"even batch; got {config.feed.mixup:g} with a batch_size of {config.feed.batch_size}"
        )
    if config.evaluation.select_on == "train":
        raise Refusal("config.evaluation.select_on must be a split that is not trained on")
    SaveEvery.read(config.placement.save_every)
    if config.precision is not None and config.precision not in PRECISIONS:
        raise unknown("value of config.precision", config.precision, PRECISIONS)


def rate_of(config: Config) -> schedules.Schedule:
    optim = config.optim
    if optim.constant_lr:
        return schedules.constant(optim.lr)
    return schedules.warmup_cosine(optim.lr, optim.ni)


def make_population(config: Config, members: int, together: bool) -> Population:
    """Members of a chain that has several (`together`) have one device each; any other run the mesh."""
    where = config.placement
    if together:
        return Population(members, where.population)
    return Population(members, where.population, read_mesh(where.mesh or None, config.feed.batch_size))


def check_placement(config: Config, together: bool = False) -> None:
    """Refuses a mesh or a cut that cannot be, before a folder is touched."""
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
    group = options_of(config, "model").get("group_size")
    return accumulation.possible(config.feed.batch_size, devices, group)


def check_cut(config: Config, devices: int) -> int:
    """config.placement.grad_accum as a number; one that would change the recipe is refused."""
    text, allowed = config.placement.grad_accum, cuts(config, devices)
    if not text.isdigit() or int(text) not in allowed:
        group = options_of(config, "model").get("group_size")
        whole = "" if group is None else f" and keeps BatchNorm's groups whole ({group or 'all'} examples)"
        raise Refusal(
            f"--grad_accum={text}: a batch of {config.feed.batch_size} can be cut into "
            f"{', '.join(map(str, allowed))} micro-batches, or auto; "
            f"each divides over {devices} device(s){whole}"
        )
    return int(text)


def make_setup(config: Config, members: int, together: bool = False) -> Setup:
    check_config(config)
    source = load_source(config)
    options = options_of(config, "model")
    model = build_model(config.model.name, source.num_classes, config.precision, options)
    judge = build_model(config.model.name, source.num_classes, judged_in(config.precision), options)
    method = discovery.build(
        giung2_ext.methods, "method", config.method.name, **options_of(config, "method")
    )
    population = make_population(config, members, together)
    layout = population.layout
    optim = config.optim
    optimizer = make_optimizer(optim.name, optim.momentum, optim.weight_decay, optim.global_clipping)
    kinds = {"scaled": config.precision == "float16", "averaged": optim.ema is not None}

    def begin(seed: Any, params: Tree, masks: Tree, statistics: Tree) -> State:
        state = make_state(method, optimizer, seed_key(seed), params, masks, statistics, **kinds)
        return layout.owned(state)

    select_on = source.canonical(config.evaluation.select_on)
    data = make_data(config, source, population, list(dict.fromkeys((select_on, "test"))))

    @functools.cache
    def program_of(micro_batches: int) -> Program:
        group = options.get("group_size")
        pair = steps.make_step(
            model,
            method,
            optimizer,
            rate_of(config),
            smoothing=optim.label_smoothing,
            micro_batches=micro_batches,
            average=optim.ema,
            layout=layout,
            shares=accumulation.shares(config.feed.batch_size, layout.devices, group, micro_batches),
        )
        return make_program(judge, method, pair, data.feed, population, config.feed.mixup)

    shapes, statistics, uses = count_uses(model, source.image_shape)

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
    )


class Setups:
    """Setups by what they depend on, so that cycles share compiled programs."""

    def __init__(self, together: bool = False) -> None:
        self.together = together
        self._made: dict[str, Setup] = {}

    def get(self, config: Config, members: int) -> Setup:
        plain = config.to_dict()
        for key in ("seed", "start", "chain", "judge"):
            del plain[key]
        key = json.dumps([plain, members], sort_keys=True)
        if key not in self._made:
            self._made[key] = make_setup(config, members, self.together)
        return self._made[key]
