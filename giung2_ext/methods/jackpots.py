"""Lottery Jackpots: the weights stay frozen and the mask is learned through scores.

Zhang et al. 2021, https://arxiv.org/abs/2104.08700. Every score gets the straight-through gradient g * W
(pruned ones too); each leaf keeps as many weights as the starting mask does. Its second generation, `swap`:
scores start at 1 where the mask keeps and 1 - `gap` elsewhere, and after each optimizer step a leaf swaps
ceil(r * n) of the n pairs in which a pruned score beats a kept one; equal ones stay. r is the short
restriction: `rate`, 1 as in the published code, or that times (1 - step/ni)^4, `quartic`, which the code
seems to mean (by epoch), or half a cosine. Its first, `threshold`: the highest |scores| are kept, chosen
anew in every forward. Selections take the place of sorts; of equal scores the lowest index is taken.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from giung2_ext.core import masks as masking
from giung2_ext.core import schedules, select, ste, trees
from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.core.method import Method

Tree = Any

GAPS = {"swap": 0.01, "threshold": 0.05}  # the rules, and between the scores that they start from
RESTRICTIONS: dict[str, Callable[[float], float]] = {  # of the fraction of the run that is done
    "constant": lambda done: 1.0,
    "quartic": lambda done: (1 - done) ** 4,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


class JackpotsState(NamedTuple):
    frozen: Tree  # every parameter, never changed
    chosen: Tree  # the masks; by the first generation's rule only their counts


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


def skipped_fractions(restriction: str, rate: float, ni: int) -> np.ndarray:
    """For every step of the run what fraction of the pairs is not swapped, in 2^-31."""
    steps = 1 if restriction == "constant" else ni
    swapped = [rate * RESTRICTIONS[restriction](step / steps) for step in range(steps)]
    return np.array([schedules.to_q31(min(1 - r, 1 - 2**-31)) for r in swapped], np.int32)


def check_options(rule: str, gap: float, restriction: str, rate: float, ni: int | None) -> None:
    if rule not in GAPS:
        raise unknown("rule of jackpots", rule, GAPS)
    if restriction not in RESTRICTIONS:
        raise unknown("restriction of jackpots", restriction, RESTRICTIONS)
    if not 1e-6 <= gap <= 1 or not 0 < rate <= 1:
        raise Refusal(
            f"jackpots needs gap in [1e-6, 1] (0: the rule's own) and rate in (0, 1], got {gap:g} "
            f"and {rate:g}"
        )
    if restriction != "constant" and ni is None:
        raise Refusal(f"jackpots needs ni, the steps of the run, for the restriction {restriction!r}")
    if rule == "threshold" and (restriction != "constant" or rate < 1):
        raise Refusal(
            "jackpots restricts swaps, and rule='threshold' makes none: leave restriction and rate"
        )


def build(
    rule: str = "swap",
    gap: float = 0.0,
    restriction: str = "constant",
    rate: float = 1.0,
    ni: int | None = None,
) -> Method:
    """`ni` is the run's number of steps; a gap of 0 is the rule's own."""
    gap = gap or GAPS.get(rule, 0)
    check_options(rule, gap, restriction, rate, ni)
    skipped, swaps = skipped_fractions(restriction, rate, ni or 1), rule == "swap"

    def init(key: Array, params: Tree, masks: Tree) -> tuple[Tree, JackpotsState]:
        scores = trees.map_present(lambda m: jnp.where(m, jnp.float32(1), jnp.float32(1 - gap)), masks)
        return scores, JackpotsState(params, masks if swaps else masking.counts(masks))

    def masks_of(scores: Tree, state: JackpotsState) -> Tree:
        if swaps:
            return state.chosen
        return select.top_k_each(jax.lax.stop_gradient(trees.map_present(jnp.abs, scores)), state.chosen)

    def weights(scores: Tree, state: JackpotsState) -> Tree:
        def seen(mask: Array | None, weight: Array, score: Array) -> Array:
            if mask is None:
                return weight
            return ste.scores_through(mask, weight, score if swaps else jnp.abs(score))

        return jax.tree.map(seen, masks_of(scores, state), state.frozen, scores, is_leaf=trees.is_none)

    def follow(
        scores: Tree, state: JackpotsState, dense_grads: Tree, step: Array
    ) -> tuple[Tree, JackpotsState]:
        now = jnp.asarray(skipped)[jnp.minimum(step, len(skipped) - 1)]
        new = trees.map_stacked(lambda s, m: swap(s, m, now), scores, state.chosen)
        return scores, JackpotsState(state.frozen, new)

    follows = follow if swaps else None
    kind: dict[str, Any] = dict(
        frozen=True, latent=True, dense_grads="all", averages=False, pretrained=True
    )
    return Method(init, weights, masks_of, follow=follows, **kind)
