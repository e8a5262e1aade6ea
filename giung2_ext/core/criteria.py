"""Scores that rank weights (higher = keep), and masks chosen by them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from giung2_ext.core import select, trees

Tree = Any


def magnitude(params: Tree, masks: Tree) -> Tree:
    return trees.map_present(lambda m, w: jnp.abs(w), masks, params)


def random(key: Array, masks: Tree) -> Tree:
    leaves, treedef = jax.tree.flatten(masks)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.uniform(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, drawn)


def prune_magnitude(params: Tree, masks: Tree, keep: Array | int) -> Tree:
    """The `keep` survivors of largest magnitude over the whole tree; nested in `masks`."""
    return select.top_k(magnitude(params, masks), keep, among=masks)


def prune_magnitude_each(params: Tree, masks: Tree, counts: Tree) -> Tree:
    """The survivors of largest magnitude of every leaf by itself, as many as `counts` says."""
    return select.top_k_each(magnitude(params, masks), counts, among=masks)


def prune_magnitude_legacy(params: Tree, masks: Tree, keep: Array | int) -> Tree:
    """The original ImageNet suite's rule: scores (|w| + 1) - 1, and every tie at the threshold stays.

    In float32 such scores are multiples of 2^-23, so a few more than `keep` survive. Unlike there, what
    was pruned stays pruned, even at a threshold of 0 (which would bring every weight back).
    """

    def score(mask: Array, weight: Array) -> Array:
        shifted = jax.lax.optimization_barrier(jnp.abs(weight) + jnp.float32(1))
        return select.order_keys(shifted - jnp.float32(1), mask)

    keys = trees.map_present(score, masks, params)
    cut = select.threshold(keys, keep)
    return trees.map_present(lambda mask, key: mask & (key >= cut), masks, keys)
