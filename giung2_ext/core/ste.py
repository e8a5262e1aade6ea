"""Straight-through estimators: the value of one thing, the gradient of another.

The pair in brackets is exactly 0 where it is finite, so pruned weights stay exactly 0. `binary` is the
activation of Bi-Real Net (https://arxiv.org/abs/1808.00278) and of Multi-Prize tickets, but it is 1 at
0, where theirs is 0 and a network so ternary.
"""

import jax
import jax.numpy as jnp
from jax import Array


def scores_through(mask: Array, weight: Array, score: Array) -> Array:
    """Value where(mask, weight, 0); d/dscore = weight everywhere, pruned places included."""
    hard = jnp.where(mask, weight, jnp.zeros((), weight.dtype))
    return hard + (score - jax.lax.stop_gradient(score)) * weight


def weights_through(mask: Array, weight: Array) -> Array:
    """Value where(mask, weight, 0); d/dweight = 1 everywhere, pruned places included."""
    fixed = jax.lax.stop_gradient(weight)
    return jnp.where(mask, fixed, jnp.zeros((), weight.dtype)) + (weight - fixed)


def binary(x: Array) -> Array:
    """Value 1 where x >= 0, else -1; gradient that of 2x - x|x| within [-1, 1], 2 (1 - |x|), else 0."""
    inside = jnp.clip(x, -1, 1)
    soft = inside * (2 - jnp.abs(inside))
    hard = jnp.where(x >= 0, 1, -1).astype(x.dtype)
    return hard + (soft - jax.lax.stop_gradient(soft))
