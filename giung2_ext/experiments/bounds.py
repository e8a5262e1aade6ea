"""Values of a config that make sense by themselves; a refusal names the field."""

import math
from collections.abc import Callable

import jax.numpy as jnp

from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.experiments.config import Config, group_of
from giung2_ext.storage.paths import BESTS
from giung2_ext.training.loop import SaveEvery
from giung2_ext.training.optimizers import DECAY_ON, check_optimizer

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
POSITIVE = (
    *("feed.batch_size", "evaluation.every", "evaluation.batch_size", "judge.batch_size", "tickets.every"),
    *("placement.num_workers", "placement.prefetch_factor", "placement.log_every", "placement.keep_states"),
    "chain.trials",
)
NOT_NEGATIVE = (
    *("optim.ni", "chain.rewind_ni", "chain.cycles", "chain.late_ni", "evaluation.test_every"),
    *("feed.randaugment", "placement.worker_processes", "placement.profile"),
)
BOUNDS: dict[str, tuple[Callable[[float], bool], str]] = {
    "optim.lr": (lambda v: 0 <= v < math.inf, "a finite number, at least 0"),
    "chain.finetune_lr": (lambda v: 0 <= v < math.inf, "a finite number, at least 0"),
    "optim.warmup": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "optim.momentum": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "optim.weight_decay": (lambda v: 0 <= v < math.inf, "a finite number, at least 0"),
    "optim.decay_factor": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "optim.label_smoothing": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "optim.global_clipping": (lambda v: 0 < v < math.inf, "above 0"),
    "optim.ema": (lambda v: 0 < v < 1, "in (0, 1)"),
    "feed.magnitude": (lambda v: 0 <= v <= 10, "in 0..10"),
    "placement.joined_within": (lambda v: v >= 1, "at least 1"),
    "placement.lost_after": (lambda v: v >= 1, "at least 1"),
    "placement.lease": (lambda v: 1 <= v < math.inf, "at least 1"),
    "placement.stalled_after": (lambda v: v >= 0, "at least 0"),
}


def check_config(config: Config) -> None:
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
    check_optimizer(config.optim.name, config.optim.momentum, config.optim.nesterov)
    if config.optim.decay_on not in DECAY_ON:
        raise unknown("value of config.optim.decay_on", config.optim.decay_on, DECAY_ON)
    if config.optim.milestones and config.optim.constant_lr:
        raise Refusal("--constant_lr and config.optim.milestones both say how the rate goes: leave one out")
    if any(type(step) is not int or step < 1 for step in config.optim.milestones):
        raise Refusal(f"config.optim.milestones are steps, from 1; got {config.optim.milestones}")
    group = group_of(config) or 0
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
    if config.evaluation.select_by not in BESTS:
        raise unknown("config.evaluation.select_by", config.evaluation.select_by, BESTS)
    members = config.placement.members
    if members != "auto" and (not members.isdigit() or int(members) < 1):
        raise Refusal(f"config.placement.members must be auto or a number from 1, got {members}")
    SaveEvery.read(config.placement.save_every)
    if config.precision is not None and config.precision not in PRECISIONS:
        raise unknown("value of config.precision", config.precision, PRECISIONS)
