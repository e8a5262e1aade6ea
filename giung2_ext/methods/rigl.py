"""RigL: drop the smallest weights, grow where the dense gradient is largest.

Evci et al. 2020, https://arxiv.org/abs/1911.11134. Every `every` steps before `stop`, each leaf
drops floor(kept * alpha(step)) weights, alpha a cosine from `drop` to 0 at `stop`, and grows as many
among those not kept; a weight dropped and grown at once keeps its value. The update replaces the
optimizer's step. Deviation: ties go to the lowest index instead of noise of 1e-5, and alpha is
rounded up to 2^-31, so that counts are exact integers.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from giung2_ext.core import masks as masking
from giung2_ext.core import schedules, select, trees
from giung2_ext.core.errors import Refusal
from giung2_ext.core.method import EditSlots, Method

Tree = Any


class RigLState(NamedTuple):
    masks: Tree
    counts: Tree  # int32 kept weights of every leaf, constant
    updates: Array  # int32 updates done


def swap(weight: Array, mask: Array, grad: Array, dropped: Array) -> Array:
    """The new mask of one leaf: `dropped` kept weights go, as many come by |grad|."""
    count = jnp.sum(mask, dtype=jnp.int32)
    keep = select.top_k(jnp.abs(weight), count - dropped, among=mask)
    grow = select.top_k(jnp.abs(grad), dropped, among=~keep)
    return keep | grow


def build(every: int = 100, stop: int = 25000, drop: float = 0.3) -> Method:
    if every < 1 or stop < 1 or not 0 <= drop < 1:
        raise Refusal(
            f"rigl needs every >= 1, stop >= 1 and drop in [0, 1), got {every}, {stop} and {drop:g}"
        )
    table = np.array(
        [schedules.to_q31(schedules.cosine_fraction(drop, s, stop)) for s in range(0, stop, every)],
        np.int32,
    )

    def init(key: Array, params: Tree, masks: Tree) -> tuple[Tree, RigLState]:
        state = RigLState(masks, masking.counts(masks), jnp.int32(0))
        return masking.apply(masks, params), state

    def update(
        trainable: Tree,
        opt_state: Tree,
        state: RigLState,
        dense_grads: Tree,
        step: Array,
        key: Array,
        edit_slots: EditSlots,
    ) -> tuple[Tree, Tree, RigLState]:
        alpha = jnp.asarray(table)[jnp.minimum(state.updates, len(table) - 1)]

        def new_mask(mask: Array, weight: Array, grad: Array, count: Array) -> Array:
            return swap(weight, mask, grad, schedules.fraction_of(count, alpha))

        new = trees.map_present(new_mask, state.masks, trainable, dense_grads, state.counts)
        stayed = trees.map_present(jnp.logical_and, new, state.masks)
        trainable = masking.apply(stayed, trainable)  # newly grown weights start at 0 ...
        opt_state = edit_slots(opt_state, lambda slot, m: jnp.where(m, slot, 0), stayed)  # ... empty
        return trainable, opt_state, RigLState(new, state.counts, state.updates + 1)

    return Method(
        init=init,
        weights=lambda trainable, state: masking.apply(state.masks, trainable),
        masks=lambda trainable, state: state.masks,
        due=lambda step: step % every == 0 and step < stop,
        update=update,
        replaces_step=True,
    )
