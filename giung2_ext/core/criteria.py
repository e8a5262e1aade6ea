"""Scores that rank weights (higher = keep), and masks chosen by them.

Of a network before its first step: `snip`, Lee et al. 2019 (https://arxiv.org/abs/1810.02340); `grasp`,
Wang et al. 2020 (https://arxiv.org/abs/2002.07376), who remove the largest -w (Hg); `synflow`, Tanaka et
al. 2020 (https://arxiv.org/abs/2006.05467), which keeps ever fewer in `ROUNDS` rounds. GraSP's code
divides the logits by `TEMPERATURE`, as is done here; it also draws the classifier anew for the scores and
takes as many examples of every class, which is not.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from giung2_ext.core import masks as masking
from giung2_ext.core import select, trees

Tree = Any
TEMPERATURE = 200.0  # of grasp: all classes are about as likely
ROUNDS = 100  # of synflow


def magnitude(params: Tree, masks: Tree) -> Tree:
    return trees.map_present(lambda m, w: jnp.abs(w), masks, params)


def random(key: Array, masks: Tree) -> Tree:
    leaves, treedef = jax.tree.flatten(masks)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.uniform(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, drawn)


def snip(params: Tree, masks: Tree, grads: Tree) -> Tree:
    """|w g|: what a weight's removal changes the loss by, to first order."""
    return trees.map_present(lambda m, w, g: jnp.abs(w * g), masks, params, grads)


def hessian_gradient(gradient: Callable[[Tree], Tree], params: Tree, direction: Tree) -> Tree:
    """H d of the loss whose gradient is `gradient`, by reverse over reverse mode.

    With d = gradient(params) it is Hg. H is linear in the loss: a sum over batches is the sum of theirs.
    """

    def slope(weights: Tree) -> Array:
        products = jax.tree.map(jnp.vdot, gradient(weights), direction)
        return jax.tree.reduce(jnp.add, products)

    return jax.grad(slope)(params)


def grasp(params: Tree, masks: Tree, hessian_grads: Tree) -> Tree:
    """w (Hg): half of what a weight's removal takes from |g|^2, to first order; it may be negative."""
    return trees.map_present(lambda m, w, h: w * h, masks, params, hessian_grads)


def synflow(flow: Callable[[Tree], Array], params: Tree, masks: Tree) -> Tree:
    """|w dR/dw| / |R| at the absolute values of what is kept; `flow` gives R, the sum of the logits.

    In a plain chain of layers without biases those of every layer sum to 1. R grows with every layer: it
    is 1e72 for a ResNet-50, so this is for float64.
    """
    sizes = jax.tree.map(jnp.abs, masking.apply(masks, params))
    total, slopes = jax.value_and_grad(flow)(sizes)
    total = jnp.where(total == 0, jnp.ones_like(total), jnp.abs(total))  # all scores are 0 then
    return trees.map_present(lambda m, w, g: jnp.abs(w * g) / total, masks, sizes, slopes)


def remaining(kept: int, size: int, rounds: int = ROUNDS) -> np.ndarray:
    """int32: how many of `size` are left after round 1, 2, …: the density is D^(round / rounds)."""
    falling = size * (kept / size) ** (np.arange(1, rounds + 1) / rounds)
    counts = np.maximum(np.floor(falling), kept).astype(np.int32)
    counts[-1] = kept
    return counts


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
