"""Float16's dynamic loss scale: halved by an overflow, doubled after 2,000 steps without one.

Micikevicius et al. 2018 (https://arxiv.org/abs/1710.03740). Scales are powers of two between 1 and 2^24,
so scaling and unscaling in float32 are exact. An overflow at a scale of 1 has no remedy: it is a step
whose loss is not finite.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Tree = Any
START, MOST, PATIENCE = 2.0**16, 2.0**24, 2000


class LossScale(NamedTuple):
    scale: Array  # float32
    good: Array  # int32, steps without an overflow since it last changed


def initial() -> LossScale:
    return LossScale(jnp.float32(START), jnp.int32(0))


def all_finite(tree: Tree) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def adjust(now: LossScale, finite: Array) -> LossScale:
    """The scale for the next step."""
    grown = finite & (now.good + 1 >= PATIENCE)
    larger = jnp.minimum(now.scale * 2, MOST)
    smaller = jnp.maximum(now.scale / 2, 1)
    scale = jnp.where(grown, larger, jnp.where(finite, now.scale, smaller))
    return LossScale(scale, jnp.where(finite & ~grown, now.good + 1, 0))


def retry(
    attempt: Callable[[Array], Tree], finite: Callable[[Tree], Array], now: LossScale
) -> tuple[Tree, LossScale]:
    """`attempt(scale)` with the scale halved until its result is finite, or at 1.

    One traced copy of `attempt`; members of a population that are finite wait unchanged.
    """
    empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(attempt, now.scale))

    def overflowed(carry: tuple[Array, Array, Tree]) -> Array:
        scale, done, _ = carry
        return ~done & (scale > 1)

    def again(carry: tuple[Array, Array, Tree]) -> tuple[Array, Array, Tree]:
        result = attempt(carry[0] / 2)
        return carry[0] / 2, finite(result), result

    scale, _, result = jax.lax.while_loop(overflowed, again, (now.scale * 2, jnp.bool(False), empty))
    return result, LossScale(scale, jnp.where(scale < now.scale, 0, now.good))
