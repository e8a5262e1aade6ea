"""Straight-through estimators: the value of one thing, the gradient of another.

The pair in brackets is exactly 0 for finite scores, so pruned weights stay exactly 0.
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
