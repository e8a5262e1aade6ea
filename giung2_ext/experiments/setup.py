"""From a config to the things that train: source, network, method, compiled programs.

What a setup depends on is the recipe without seed and checkpoints, so all cycles of a chain share one
and nothing is compiled twice.
"""

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen as nn

import giung2_ext.data.sources
import giung2_ext.methods
import giung2_ext.models
from giung2_ext.core import discovery, schedules
from giung2_ext.core.errors import Refusal
from giung2_ext.core.method import Method
from giung2_ext.data import resident
from giung2_ext.data.source import Source
from giung2_ext.experiments.config import Config, options_of
from giung2_ext.training import step as steps
from giung2_ext.training.optimizers import make_optimizer
from giung2_ext.training.population import Population
from giung2_ext.training.program import Program, make_program
from giung2_ext.training.state import State, make_state

Tree = Any


class Setup(NamedTuple):
    source: Source
    model: nn.Module
    method: Method
    population: Population
    begin: Callable[[Any, Tree, Tree, Tree], State]
    """(key, params, masks, statistics) -> one member's state at step 0"""
    program: Program
    data: Tree  # the training split, placed
    evaluation: dict[str, Tree]  # padded batches of the splits that are measured, placed


def load_source(config: Config) -> Source:
    root = config.placement.data_root
    options = options_of(config, "data")
    return discovery.build(giung2_ext.data.sources, "data source", config.data.name, root=root, **options)


def build_model(config: Config, num_classes: int) -> nn.Module:
    options = options_of(config, "model")
    return discovery.build(
        giung2_ext.models, "model", config.model.name, num_classes=num_classes, **options
    )


BOUNDS: dict[str, tuple[Callable[[float], bool], str]] = {
    "optim.lr": (lambda v: 0 <= v < math.inf, "a finite number, at least 0"),
    "optim.momentum": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "optim.weight_decay": (lambda v: 0 <= v < math.inf, "a finite number, at least 0"),
    "optim.label_smoothing": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "optim.global_clipping": (lambda v: 0 < v < math.inf, "above 0"),
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
    if group and config.feed.batch_size % group:
        raise Refusal(
            f"batch_size {config.feed.batch_size} does not divide into BatchNorm groups of {group} "
            "(config.model.group_size)"
        )
    if config.evaluation.select_on == "train":
        raise Refusal("config.evaluation.select_on must be a split that is not trained on")
    if config.mixed_precision and jax.default_backend() != "cpu":
        raise Refusal(
            "mixed_precision=true is float32 on CPU and not yet supported on "
            f"{jax.default_backend()}: leave it out to train in float32"
        )


def make_setup(config: Config, members: int) -> Setup:
    check_config(config)
    source = load_source(config)
    model = build_model(config, source.num_classes)
    method = discovery.build(
        giung2_ext.methods, "method", config.method.name, **options_of(config, "method")
    )
    optim = config.optim
    optimizer = make_optimizer(optim.name, optim.momentum, optim.weight_decay, optim.global_clipping)
    rate = (
        schedules.constant(optim.lr) if optim.constant_lr else schedules.warmup_cosine(optim.lr, optim.ni)
    )
    pair = steps.make_step(model, method, optimizer, rate, smoothing=optim.label_smoothing)
    feed = resident.make_feed(source.split("train"), config.feed.batch_size, config.feed.augment)
    population = Population(members, config.placement.population)
    evaluation = {
        name: population.share(
            resident.evaluation_batches(source.split(name), config.evaluation.batch_size)
        )
        for name in dict.fromkeys((config.evaluation.select_on, "test"))
    }
    program = make_program(model, method, pair, feed, population)
    data = population.share(feed.arrays)
    begin = jax.jit(lambda *parts: make_state(method, optimizer, *parts))
    return Setup(source, model, method, population, begin, program, data, evaluation)


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
