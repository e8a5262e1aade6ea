"""From a config to the things that train: source, network, method, compiled programs.

What a setup depends on is the recipe without seed and checkpoints, so all cycles of a chain share one
and nothing is compiled twice.
"""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

import giung2_ext.data.sources
import giung2_ext.methods
import giung2_ext.models
from giung2_ext.core import accounting, discovery, schedules
from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.core.method import Method
from giung2_ext.data import resident
from giung2_ext.data.source import Source
from giung2_ext.experiments.config import Config, options_of
from giung2_ext.training import step as steps
from giung2_ext.training.optimizers import make_optimizer
from giung2_ext.training.population import Population
from giung2_ext.training.program import Program, make_program
from giung2_ext.training.state import State, init_variables, make_state, seed_key

Tree = Any


class Setup(NamedTuple):
    source: Source
    model: nn.Module
    method: Method
    population: Population
    begin: Callable[[Any, Tree, Tree, Tree], State]
    """(key, params, masks, statistics) -> one member's state at step 0"""
    program: Program
    shapes: Tree  # of the parameters
    uses: accounting.Uses  # how often an image uses each of them, for FLOPs
    data: Tree  # the training split, placed
    evaluation: dict[str, Tree]  # padded batches of the splits that are measured, placed


def load_source(config: Config) -> Source:
    root = config.placement.data_root
    options = options_of(config, "data")
    return discovery.build(giung2_ext.data.sources, "data source", config.data.name, root=root, **options)


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


def count_uses(model: nn.Module, image_shape: Sequence[int]) -> tuple[Tree, accounting.Uses]:
    """The shapes of a network's parameters, and how often it uses each of them for one image."""
    shapes, statistics = jax.eval_shape(lambda key: init_variables(model, key, image_shape), seed_key(0))
    channels = jax.ShapeDtypeStruct((image_shape[-1],), jnp.float32)
    statistics = statistics | {"image_stats": {"m": channels, "s": channels}}
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def forward(weights: Tree, example: tuple[Tree, Any]) -> Any:
        return steps.network(model, weights, *example, train=False)

    return shapes, accounting.uses(forward, shapes, (statistics, image))


BOUNDS: dict[str, tuple[Callable[[float], bool], str]] = {
    "optim.lr": (lambda v: 0 <= v < math.inf, "a finite number, at least 0"),
    "optim.momentum": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "optim.weight_decay": (lambda v: 0 <= v < math.inf, "a finite number, at least 0"),
    "optim.label_smoothing": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "optim.global_clipping": (lambda v: 0 < v < math.inf, "above 0"),
    "optim.ema": (lambda v: 0 < v < 1, "in (0, 1)"),
    "placement.save_every_steps": (lambda v: v >= 0, "at least 0"),
    "placement.save_every_seconds": (lambda v: v >= 0, "at least 0"),
}


def check_config(config: Config) -> None:
    """Values that only make sense within bounds; a refusal names the field."""
    positive = ("feed.batch_size", "evaluation.every", "evaluation.batch_size", "tickets.every")
    for field in (*positive, "placement.log_every", "placement.keep_states", "chain.trials"):
        section, key = field.split(".")
        if config[section][key] < 1:
            raise Refusal(f"config.{field} must be at least 1, got {config[section][key]}")
    for field in ("optim.ni", "chain.rewind_ni", "chain.cycles"):
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
    if config.evaluation.select_on == "train":
        raise Refusal("config.evaluation.select_on must be a split that is not trained on")
    if config.precision is not None and config.precision not in PRECISIONS:
        raise unknown("value of config.precision", config.precision, PRECISIONS)


def make_setup(config: Config, members: int) -> Setup:
    check_config(config)
    source = load_source(config)
    options = options_of(config, "model")
    model = build_model(config.model.name, source.num_classes, config.precision, options)
    method = discovery.build(
        giung2_ext.methods, "method", config.method.name, **options_of(config, "method")
    )
    optim = config.optim
    optimizer = make_optimizer(optim.name, optim.momentum, optim.weight_decay, optim.global_clipping)
    rate = (
        schedules.constant(optim.lr) if optim.constant_lr else schedules.warmup_cosine(optim.lr, optim.ni)
    )
    pair = steps.make_step(
        model, method, optimizer, rate, smoothing=optim.label_smoothing, average=optim.ema
    )
    train = source.split("train")
    feed = resident.make_feed(train, config.feed.batch_size, config.feed.augment)
    population = Population(members, config.placement.population)
    evaluation = {
        name: population.share(
            resident.evaluation_batches(source.split(name), config.evaluation.batch_size)
        )
        for name in dict.fromkeys((config.evaluation.select_on, "test"))
    }
    judge = build_model(config.model.name, source.num_classes, judged_in(config.precision), options)
    program = make_program(judge, method, pair, feed, population)
    data = population.share(feed.arrays)
    kinds = {"scaled": config.precision == "float16", "averaged": optim.ema is not None}
    begin = jax.jit(lambda *parts: make_state(method, optimizer, *parts, **kinds))
    shapes, uses = count_uses(model, train.images.shape[1:])
    return Setup(source, model, method, population, begin, program, shapes, uses, data, evaluation)


class Setups:
    """Setups by what they depend on, so that cycles share compiled programs."""

    def __init__(self) -> None:
        self._made: dict[str, Setup] = {}

    def get(self, config: Config, members: int) -> Setup:
        plain = config.to_dict()
        for key in ("seed", "start", "chain"):
            del plain[key]
        key = json.dumps([plain, members], sort_keys=True)
        if key not in self._made:
            self._made[key] = make_setup(config, members)
        return self._made[key]
