"""Gradual pruning: ever fewer of the weights that are left, until the density is reached.

Zhu & Gupta 2017, https://arxiv.org/abs/1710.01878. After the optimizer's step the lowest scores go, for
good (masks are nested): |w| (`magnitude`), |w * gradient of the batch| (`saliency`, Molchanov et al. 2017,
https://arxiv.org/abs/1611.06440), or a draw (`random`). Counts, allocation and n:m structure are `_ramp`'s.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from giung2_ext.core import criteria
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import unknown
from giung2_ext.core.method import EditSlots, Method
from giung2_ext.methods import _ramp, _swap

Tree = Any
CRITERIA = ("magnitude", "saliency", "random")


class GradualState(NamedTuple):
    masks: Tree
    start: Tree  # int32 weights of every leaf that the starting mask keeps
    updates: Array  # int32 updates done


def build(
    density: float = 0.1,
    begin: int = 0,
    end: int = 25000,
    every: int = 1000,
    schedule: str = "cubic",
    criterion: str = "magnitude",
    allocation: str = "global",
    structure: str = "none",
) -> Method:
    if criterion not in CRITERIA:
        raise unknown("criterion of gradual", criterion, CRITERIA)
    ramp = _ramp.make_ramp("gradual", density, schedule, begin, end, every, allocation, structure)

    def init(key: Array, params: Tree, masks: Tree) -> tuple[Tree, GradualState]:
        ramp.targets(masks)  # refused here, not at the first update
        return masking.apply(masks, params), GradualState(masks, masking.counts(masks), jnp.int32(0))

    def scores_of(trainable: Tree, masks: Tree, dense_grads: Tree, key: Array) -> Tree:
        if criterion == "random":
            return criteria.random(key, masks)
        if criterion == "saliency":
            return criteria.snip(trainable, masks, dense_grads)
        return criteria.magnitude(trainable, masks)

    def update(
        trainable: Tree,
        opt_state: Tree,
        state: GradualState,
        dense_grads: Tree,
        step: Array,
        key: Array,
        edit_slots: EditSlots,
    ) -> tuple[Tree, Tree, GradualState]:
        scores, updates = scores_of(trainable, state.masks, dense_grads, key), state.updates + 1
        new = ramp.choose(scores, state.start, updates, state.masks)
        trainable, opt_state = _swap.move(new, trainable, opt_state, edit_slots)
        return trainable, opt_state, GradualState(new, state.start, updates)

    return Method(
        init=init,
        weights=lambda trainable, state: masking.apply(state.masks, trainable),
        masks=lambda trainable, state: state.masks,
        due=ramp.due,
        update=update,
        settled=ramp.settled,
    )
