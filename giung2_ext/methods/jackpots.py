"""Lottery Jackpots: the weights stay frozen and the mask is learned through scores.

Zhang et al. 2021, https://arxiv.org/abs/2104.08700, second generation. Scores start at 1 where the
starting mask keeps and at 1 - `gap` where it does not, every score gets the straight-through gradient
g * W (pruned ones too), and after each optimizer step every leaf swaps ceil(rate * n) of the n pairs
in which a pruned score beats a kept one, by selections instead of sorts. Ties keep what is kept.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from giung2_ext.core import schedules, select, ste, trees
from giung2_ext.core.errors import Refusal
from giung2_ext.core.method import Method

Tree = Any


class JackpotsState(NamedTuple):
    frozen: Tree  # every parameter, never changed
    masks: Tree


def beaten_pairs(scores: Array, mask: Array) -> Array:
    """n = #{i: i-th best pruned score > i-th worst kept score}, from one threshold."""
    keys = select.order_keys(scores)
    cut = select.threshold(keys, jnp.sum(mask, dtype=jnp.int32))
    better = jnp.sum(~mask & (keys > cut), dtype=jnp.int32)
    worse = jnp.sum(mask & (keys < cut), dtype=jnp.int32)
    return jnp.maximum(better, worse)


def swap(scores: Array, mask: Array, skipped_q31: Array) -> Array:
    """Swaps all but floor(skipped * n) of the n beaten pairs, best pruned against worst kept."""
    pairs = beaten_pairs(scores, mask)
    pairs = pairs - schedules.fraction_of(pairs, skipped_q31)  # = ceil(rate * n)
    revived = select.top_k(scores, pairs, among=~mask)
    dropped = select.top_k(-scores, pairs, among=mask)
    return (mask | revived) & ~dropped


def build(gap: float = 0.01, rate: float = 1.0) -> Method:
    if not 0 < rate <= 1:
        raise Refusal(f"jackpots needs rate in (0, 1], got {rate:g}")
    skipped_q31 = schedules.to_q31(1 - rate)

    def init(key: Array, params: Tree, masks: Tree) -> tuple[Tree, JackpotsState]:
        scores = trees.map_present(lambda m: jnp.where(m, jnp.float32(1), jnp.float32(1 - gap)), masks)
        return scores, JackpotsState(params, masks)

    def weights(scores: Tree, state: JackpotsState) -> Tree:
        return jax.tree.map(
            lambda m, w, s: w if m is None else ste.scores_through(m, w, s),
            state.masks,
            state.frozen,
            scores,
            is_leaf=trees.is_none,
        )

    def follow(
        scores: Tree, state: JackpotsState, dense_grads: Tree, step: Array
    ) -> tuple[Tree, JackpotsState]:
        skipped = jnp.int32(skipped_q31)
        new = trees.map_present(lambda m, s: swap(s, m, skipped), state.masks, scores)
        return scores, JackpotsState(state.frozen, new)

    return Method(init, weights, lambda scores, state: state.masks, follow=follow, pretrained=True)
