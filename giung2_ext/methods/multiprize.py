"""Multi-Prize tickets (biprop): frozen random weights, of which the kept ones are seen as +-alpha.

Diffenderfer & Kailkhura 2021, https://arxiv.org/abs/2103.09377; without `binarise` edge-popup, Ramanujan
et al. 2020, https://arxiv.org/abs/1911.13299. The largest |scores| of each leaf are kept, or of all
("global", Diffenderfer et al. 2021, "A Winning Hand": |s| starts as 1/sqrt(fan_in), so thin layers are
favoured). The score gradient is g * W * sign(s) everywhere. Deviations: alpha is the mean kept |W|
(published: over int(k n), which may be 0), the sign of 0 is +, no layer is emptied. The layer threshold
starts from the very mask it is given; the global one takes the order in each leaf and the total.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from giung2_ext.core import initial, schedules, select, ste, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.core.method import Method

Tree = Any
THRESHOLDS = ("layer", "global")


class MultiprizeState(NamedTuple):
    frozen: Tree  # the parameters that are not trained, never changed
    counts: Tree  # int32 weights of every leaf that the starting mask keeps
    total: Array  # int32 weights kept in all; above the sum of counts during a ramp


def ranked(uniform: Array, mask: Array, bound: float) -> Array:
    """Sizes in (0, bound) from uniform draws in (0, 1), with every kept one above every other.

    As if drawn freely and the largest kept. cut + x >= cut > uniform * cut in floats as well.
    """
    pruned = jnp.sum(~mask, dtype=jnp.int32).astype(jnp.float32)
    cut = bound * (pruned / mask.size)
    return jnp.where(mask, cut + uniform * (bound - cut), uniform * cut)


@jax.jit  # one program a shape, not one for each of its operations
def start_scores(key: Array, mask: Array) -> Array:
    """What kaiming_uniform(a=sqrt(5)) draws, given that the mask keeps the largest."""
    size, sign = jax.random.split(key)
    uniform = jax.random.uniform(size, mask.shape) + jnp.float32(2**-24)  # never 0, whose sign is 0
    scores = ranked(uniform, mask, 1 / math.sqrt(initial.fan_in(mask.shape)))
    return scores * jax.random.rademacher(sign, mask.shape, jnp.float32)


def crowned(size: Array) -> Array:
    """The first of the largest is raised to infinity, so that a global threshold keeps it."""
    index = select.flat_index(size.shape)
    first = jnp.min(jnp.where(size == jnp.max(size), index, size.size))
    return jnp.where(index == first, jnp.inf, size)


def signed_gain(mask: Array, weight: Array) -> Array:
    """+-alpha where the mask keeps, alpha the mean |W| there."""
    kept = jnp.sum(mask, dtype=jnp.int32)
    alpha = jnp.sum(jnp.where(mask, jnp.abs(weight), 0)) / jnp.maximum(kept, 1)
    return jnp.where(mask, jnp.where(weight < 0, -alpha, alpha), 0)


def binary_through(mask: Array, weight: Array, score: Array) -> Array:
    """Value +-alpha; d/dscore = weight everywhere."""
    return signed_gain(mask, weight) + (score - jax.lax.stop_gradient(score)) * weight


def make_ramp(ramp: float, stairs: int, ni: int) -> tuple[Callable[[Array, Array, int], Array], int]:
    """(step, target, size) -> how many of `size` weights are kept; and the step from which it is `target`.

    target + (size // 2 - target) * (1 - stair/stairs)^3; a target of over half of all is not ramped.
    """
    length = Fraction(repr(float(ramp))) * ni
    starts = np.array([math.ceil(stair * length / stairs) for stair in range(1, stairs + 1)], np.int32)
    left = [schedules.to_q31((stairs - s) ** 3 / stairs**3) for s in range(1, stairs + 1)]
    left_q31 = np.array([0, *left], np.int32)  # of the first, all is left: no q31

    def total(step: Array, target: Array, size: int) -> Array:
        stair = jnp.sum(jnp.asarray(starts) <= step, dtype=jnp.int32)
        over = jnp.maximum(size // 2 - target, 0)
        part = schedules.fraction_of(over, jnp.asarray(left_q31)[stair])
        return target + jnp.where(stair == 0, over, part)

    return total, int(starts[-1])


def check(threshold: str, ramp: float, stairs: int, ni: int) -> None:
    if threshold not in THRESHOLDS:
        raise unknown("threshold", threshold, THRESHOLDS)
    if not 0 <= ramp < 1 or stairs < 1:
        raise Refusal(f"multiprize needs ramp in [0, 1) and stairs >= 1, got {ramp:g} and {stairs}")
    if ramp and threshold != "global":
        raise Refusal(f"multiprize ramps a global threshold only, got {threshold!r}: set ramp to 0")
    if ramp and ni < 1:
        raise Refusal(f"multiprize needs the number of steps for a ramp, got ni={ni}")


def begin(key: Array, params: Tree, masks: Tree) -> tuple[Tree, MultiprizeState]:
    scores = trees.map_present(lambda m, k: start_scores(k, m), masks, initial.leaf_keys(key, masks))
    return scores, MultiprizeState(params, masking.counts(masks), masking.kept(masks))


def sizes(trainable: Tree, state: MultiprizeState) -> Tree:
    """|scores|, of which the mask is no smooth function."""
    found = trees.map_present(lambda count, score: jnp.abs(score), state.counts, trainable)
    return jax.lax.stop_gradient(found)


def build(
    binarise: bool = True,
    threshold: str = "layer",
    others: bool = False,
    ramp: float = 0.0,
    stairs: int = 10,
    ni: int = 0,
) -> Method:
    """`others`: the leaves without a mask train too (published: +BN). `ramp`: over that part of `ni`."""
    check(threshold, ramp, stairs, ni)
    ramped, end = make_ramp(ramp, stairs, ni)
    through = binary_through if binarise else ste.scores_through

    def init(key: Array, params: Tree, masks: Tree) -> tuple[Tree, MultiprizeState]:
        scores, state = begin(key, params, masks)
        if others:
            scores = jax.tree.map(lambda s, w: w if s is None else s, scores, params, is_leaf=trees.is_none)
            state = state._replace(frozen=trees.map_present(lambda m, w: w, masks, params))
        return scores, state._replace(total=ramped(jnp.int32(0), state.total, masking.size(masks)))

    def masks(trainable: Tree, state: MultiprizeState) -> Tree:
        found = sizes(trainable, state)
        if threshold == "layer":
            return select.top_k_each(found, state.counts)
        return select.top_k(trees.map_present(crowned, found), state.total)

    def weights(trainable: Tree, state: MultiprizeState) -> Tree:
        def seen(mask: Array | None, frozen: Any, trained: Any) -> Array:
            if mask is None:
                return frozen if trained is None else trained
            return through(mask, frozen, jnp.abs(trained))

        kept = masks(trainable, state)
        return jax.tree.map(seen, kept, state.frozen, trainable, is_leaf=trees.is_none)

    def follow(
        trainable: Tree, state: MultiprizeState, dense_grads: Tree, step: Array
    ) -> tuple[Tree, MultiprizeState]:
        target = sum(trees.present(state.counts), jnp.int32(0))
        total = ramped(step + 1, target, masking.size(sizes(trainable, state)))
        return trainable, state._replace(total=total)

    found = Method(init, weights, masks, frozen=True, latent=True, dense_grads="all", averages=False)
    if not ramp:
        return found
    # a step more, should the ramp's last one overflow in float16
    return found._replace(follow=follow, settled=lambda steps: steps > end)
