"""Top-k forward, straight-through backward: the network sees the largest weights, all of them train.

Bengio et al. 2013 (https://arxiv.org/abs/1308.3432) for the estimator; as a pruner Jayakumar et al. 2021
and Lee et al. 2023 (https://arxiv.org/abs/2304.14082). The mask is chosen anew from |w| at every step, so
weights return; what the starting mask prunes starts at 0. With `end` 0 the first step still
sees the starting mask. Counts, allocation and n:m structure (Zhou et al.
2021, https://arxiv.org/abs/2102.04010, without their decay) are `_ramp`'s.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from giung2_ext.core import criteria, trees
from giung2_ext.core import masks as masking
from giung2_ext.core import ste as estimators
from giung2_ext.core.method import EditSlots, Method
from giung2_ext.methods import _ramp

Tree = Any


class SteState(NamedTuple):
    start: Tree  # int32 weights of every leaf that the starting mask keeps
    updates: Array  # int32 updates of the counts done


def build(
    density: float = 0.1,
    begin: int = 0,
    end: int = 0,
    every: int = 1000,
    schedule: str = "cubic",
    allocation: str = "global",
    structure: str = "none",
) -> Method:
    ramp = _ramp.make_ramp("ste", density, schedule, begin, end, every, allocation, structure)

    def init(key: Array, params: Tree, masks: Tree) -> tuple[Tree, SteState]:
        ramp.targets(masks)  # refused here, not at the first update
        return masking.apply(masks, params), SteState(masking.counts(masks), jnp.int32(0))

    def masks_of(trainable: Tree, state: SteState) -> Tree:
        sizes = jax.lax.stop_gradient(criteria.magnitude(trainable, state.start))
        every_one = trees.map_present(lambda size: jnp.ones(size.shape, bool), sizes)
        return ramp.choose(sizes, state.start, state.updates, every_one)

    def weights(trainable: Tree, state: SteState) -> Tree:
        seen = lambda mask, w: w if mask is None else estimators.weights_through(mask, w)  # noqa: E731
        return jax.tree.map(seen, masks_of(trainable, state), trainable, is_leaf=trees.is_none)

    def update(
        trainable: Tree,
        opt_state: Tree,
        state: SteState,
        dense_grads: Tree,
        step: Array,
        key: Array,
        edit_slots: EditSlots,
    ) -> tuple[Tree, Tree, SteState]:
        return trainable, opt_state, state._replace(updates=state.updates + 1)

    return Method(
        init=init,
        weights=weights,
        masks=masks_of,
        due=ramp.due,
        update=update,
        settled=ramp.settled,
        latent=True,
        dense_grads="all",
    )
