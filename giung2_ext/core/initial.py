"""Weights drawn anew for networks that never train them: Ramanujan et al. 2020, section 3.

https://arxiv.org/abs/1911.13299. A layer's size is that of Kaiming's rule for ReLUs, sqrt(2 / fan_in);
`scale_fan` counts only the inputs that a mask keeps, 1/sqrt(kept fraction) more. "removed" is what the
published code does: it reads its `prune_rate`, which is the kept fraction, as the removed one. The two
are the same at density 0.5 only.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from giung2_ext.core import trees
from giung2_ext.core.errors import unknown

Tree = Any
INITIALS = ("kaiming_normal", "signed_constant")
SCALES = ("kept", "removed")


def fan_in(shape: tuple[int, ...]) -> int:
    return math.prod(shape[:-1])


def leaf_keys(key: Array, masks: Tree) -> Tree:
    """A key of its own for every prunable leaf."""
    leaves, treedef = jax.tree.flatten(masks)
    return jax.tree.unflatten(treedef, list(jax.random.split(key, len(leaves))))


def redraw(key: Array, params: Tree, masks: Tree, how: str) -> Tree:
    """`params` with new draws in every leaf that has a mask, pruned places too."""
    if how not in INITIALS:
        raise unknown("drawing of weights", how, INITIALS)
    draw = jax.random.normal if how == "kaiming_normal" else jax.random.rademacher

    def drawn(mask: Array | None, weight: Array, key: Any) -> Array:
        if mask is None:
            return weight
        return draw(key, weight.shape, weight.dtype) * math.sqrt(2 / fan_in(weight.shape))

    return jax.tree.map(drawn, masks, params, leaf_keys(key, masks), is_leaf=trees.is_none)


def scale_fan(params: Tree, masks: Tree, by: str) -> Tree:
    """Every leaf that has a mask over the square root of its `by` fraction; by nothing if that is 0."""
    if by not in SCALES:
        raise unknown("scaling by fan", by, SCALES)

    def scaled(mask: Array | None, weight: Array) -> Array:
        if mask is None:
            return weight
        chosen = jnp.sum(mask if by == "kept" else ~mask, dtype=jnp.int32)
        part = jnp.where(chosen > 0, chosen, mask.size).astype(jnp.float32) / mask.size
        return (weight / jnp.sqrt(part)).astype(weight.dtype)

    return jax.tree.map(scaled, masks, params, is_leaf=trees.is_none)
