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
