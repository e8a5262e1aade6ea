"""n:m patterns: of every m consecutive weights along the reduction axis n are kept.

Zhou et al. 2021, https://arxiv.org/abs/2102.04010; 2:4 is what hardware computes faster. The axis is the
last but one of every kernel: input channels of convolutions, inputs of dense layers. A pattern is no
criterion: it puts the n best of every m out of reach, so it goes with any scores and any selection that
keeps n/m of a leaf or more, and one that keeps n/m exactly keeps the pattern and nothing else.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from giung2_ext.core import select, trees
from giung2_ext.core.errors import Refusal

Tree = Any


def parse(pattern: str) -> tuple[int, int]:
    """(n, m) of `n:m`."""
    kept, _, of = pattern.partition(":")
    if not (kept.isdecimal() and of.isdecimal() and 0 < int(kept) < int(of)):
        raise Refusal(f"a structure is none or n:m with 0 < n < m, such as 2:4; got {pattern!r}")
    return int(kept), int(of)


def check(masks: Tree, pattern: str) -> None:
    """Refuses leaves that do not divide into groups."""
    _, of = parse(pattern)
    for name, mask in trees.named_leaves(masks).items():
        if mask is not None and mask.shape[-2] % of:
            raise Refusal(
                f"the structure {pattern} needs inputs in multiples of {of}, and {name} has "
                f"{mask.shape[-2]}: leave it out (config.masks.prunable=inner is all but the first layer)"
            )


def grouped(leaf: Array, pattern: str) -> Array:
    """[..., groups, m, outputs]."""
    _, of = parse(pattern)
    *outer, inputs, outputs = leaf.shape
    return leaf.reshape(*outer, inputs // of, of, outputs)


def favourites(scores: Array, pattern: str) -> Array:
    """Which weights are the n best of their group; of equal ones the first, and a NaN is the worst."""
    kept, of = parse(pattern)
    keys = grouped(select.order_keys(scores), pattern)
    mine, other = jnp.expand_dims(keys, -2), jnp.expand_dims(keys, -3)
    pairs = (*keys.shape[:-1], of, keys.shape[-1])
    place = [jax.lax.broadcasted_iota(jnp.int32, pairs, len(pairs) - axis) for axis in (3, 2)]
    beaten = (other > mine) | ((other == mine) & (place[1] < place[0]))
    return (jnp.sum(beaten, -2, dtype=jnp.int32) < kept).reshape(scores.shape)


def protect(scores: Tree, pattern: str) -> Tree:
    """Scores with those of the favourites at infinity."""
    return trees.map_present(lambda s: jnp.where(favourites(s, pattern), jnp.inf, s), scores)
