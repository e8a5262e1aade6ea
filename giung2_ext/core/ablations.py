"""What is left of a ticket when one of its parts is taken away: its places, or its weights' sizes.

Signs alone: Zhou et al. 2019 (https://arxiv.org/abs/1905.01067), every weight of a layer being plus or
minus the layer's standard deviation. Shuffled masks: Frankle & Carbin 2019
(https://arxiv.org/abs/1803.03635), each layer keeping as many weights as the ticket.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from giung2_ext.core import criteria, select, trees
from giung2_ext.core import masks as masking

Tree = Any
ABLATIONS = ("none", "signs", "shuffle")


def signs(params: Tree, masks: Tree) -> Tree:
    """Prunable leaves with their signs alone; a weight of exactly 0 stays 0."""

    def flatten(mask: Array | None, weight: Array) -> Array:
        return weight if mask is None else jnp.sign(weight) * weight.std()

    return jax.tree.map(flatten, masks, params, is_leaf=trees.is_none)


def shuffle(key: Array, masks: Tree) -> Tree:
    """Masks with the counts of `masks`, at random places of each layer; from one key they are nested."""
    return select.top_k_each(criteria.random(key, masks), masking.counts(masks))
