"""Everything that a run carries from step to step, as one pytree; a population stacks its leaves."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import Array

from giung2_ext.core.method import Method
from giung2_ext.training.loss_scale import LossScale, initial

Tree = Any

INIT, DATA, UPDATE, CRITERION, METHOD, MIX, WEIGHTS = range(7)
"""What a run's key is folded with for each use: no two uses share random bits."""


class State(struct.PyTreeNode):
    step: Any  # int32, batches consumed in this run; one for all members of a population
    key: Array
    trainable: Tree
    method: Tree
    optimizer: Tree
    statistics: Tree  # flax collections that are no parameters: image_stats, and batch_stats if any
    loss_scale: LossScale | None = None  # of float16
    ever: Tree = None  # bool: what a mask has kept so far, where updates change it
    average: Tree = None  # moving average of trainables and batch_stats, where the recipe keeps one


def seed_key(seed: int) -> Array:
    """Threefry, whatever the default: the faster generator breaks under vmap."""
    return jax.random.key(seed, impl="threefry2x32")


def init_variables(model: nn.Module, key: Array, image_shape: tuple[int, ...]) -> tuple[Tree, Tree]:
    """Fresh parameters and the fresh remaining collections of a network."""
    variables = dict(model.init(jax.random.fold_in(key, INIT), jnp.zeros((1, *image_shape))))
    return variables.pop("params"), variables


def averaged_part(trainable: Tree, statistics: Tree) -> Tree:
    """What a moving average of the weights runs over."""
    return trainable, {k: v for k, v in statistics.items() if k != "image_stats"}


def make_state(
    method: Method,
    optimizer: optax.GradientTransformation,
    key: Array,
    params: Tree,
    masks: Tree,
    statistics: Tree,
    *,
    scaled: bool = False,
    averaged: bool = False,
) -> State:
    trainable, method_state = method.init(jax.random.fold_in(key, METHOD), params, masks)
    changes = method.due is not None and not method.latent
    return State(
        jnp.int32(0),
        key,
        trainable,
        method_state,
        optimizer.init(trainable),
        statistics,
        initial() if scaled else None,
        jax.tree.map(jnp.copy, method.masks(trainable, method_state)) if changes else None,  # donated
        averaged_part(trainable, statistics) if averaged else None,
    )
