"""What RigL, SET and SNFS share: every so often a leaf drops its smallest weights and grows as many.

Evci et al. 2020, https://arxiv.org/abs/1911.11134. Every `every` steps from `begin` and before `stop` each
leaf drops floor(kept * fraction(step)) weights, the fraction falling from `drop` to 0 at `stop` as `decay`
says, and grows as many of the highest score among those not kept; a weight dropped and grown at once keeps
its value. Deviations: ties go to the lowest index instead of noise of 1e-5, the fraction is rounded up to
2^-31, so that counts are exact integers, the cosine starts at `begin`, and
`stop` itself has no update.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from giung2_ext.core import masks as masking
from giung2_ext.core import schedules, select, trees
from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.core.method import EditSlots, Method

Tree = Any


class SwapState(NamedTuple):
    masks: Tree
    updates: Array  # int32 updates done
    average: Tree = None  # of the dense gradients, where the score is made of it


class Times(NamedTuple):
    every: int
    begin: int
    stop: int
    fractions: np.ndarray
    """int32, in 2^-31: what each update drops"""

    def due(self, step: int) -> bool:
        return self.begin <= step < self.stop and (step - self.begin) % self.every == 0


def make_times(name: str, every: int, begin: int, stop: int, drop: float, decay: str) -> Times:
    if decay not in schedules.FALLS:
        raise unknown(f"decay of {name}", decay, schedules.FALLS)
    if every < 1 or not 0 <= begin < stop or not 0 <= drop < 1:
        raise Refusal(
            f"{name} needs every >= 1, 0 <= begin < stop and drop in [0, 1), got {every}, {begin}, {stop} "
            f"and {drop:g}"
        )
    done = [(step - begin) / (stop - begin) for step in range(begin, stop, every)]
    q31 = [schedules.to_q31(drop * schedules.FALLS[decay](part)) for part in done]
    return Times(every, begin, stop, np.array(q31, np.int32))


def swap(weight: Array, mask: Array, score: Array, dropped: Array) -> Array:
    """The new mask of one leaf: `dropped` kept weights go, as many come by their score."""
    count = jnp.sum(mask, dtype=jnp.int32)
    keep = select.top_k(jnp.abs(weight), count - dropped, among=mask)
    return keep | select.top_k(score, dropped, among=~keep)


def swap_all(masks: Tree, trainable: Tree, scores: Tree, fraction_q31: Array) -> Tree:
    """Every leaf's new mask, floor(kept * fraction) of its weights swapped."""

    def one(mask: Array, weight: Array, score: Array) -> Array:
        dropped = schedules.fraction_of(jnp.sum(mask, dtype=jnp.int32), fraction_q31)
        return swap(weight, mask, score, dropped)

    return trees.map_stacked(one, masks, trainable, scores)


def move(stayed: Tree, trainable: Tree, opt_state: Tree, edit_slots: EditSlots) -> tuple[Tree, Tree]:
    """Weights and slots of 0 wherever a mask was or is off: what is new starts at 0 and empty."""
    empty = lambda slot, mask: jnp.where(mask, slot, 0)  # noqa: E731
    return masking.apply(stayed, trainable), edit_slots(opt_state, empty, stayed)


def build_swapping(times: Times, score: Callable[[SwapState, Tree, Array], Tree], **fields: Any) -> Method:
    """A method that grows by `score(state, dense_grads, key)`; `fields` are more of the method's."""

    def init(key: Array, params: Tree, masks: Tree) -> tuple[Tree, SwapState]:
        return masking.apply(masks, params), SwapState(masks, jnp.int32(0))

    def update(
        trainable: Tree,
        opt_state: Tree,
        state: SwapState,
        dense_grads: Tree,
        step: Array,
        key: Array,
        edit_slots: EditSlots,
    ) -> tuple[Tree, Tree, SwapState]:
        fraction = jnp.asarray(times.fractions)[jnp.minimum(state.updates, len(times.fractions) - 1)]
        new = swap_all(state.masks, trainable, score(state, dense_grads, key), fraction)
        stayed = trees.map_present(jnp.logical_and, new, state.masks)
        trainable, opt_state = move(stayed, trainable, opt_state, edit_slots)
        return trainable, opt_state, state._replace(masks=new, updates=state.updates + 1)

    usual: dict[str, Any] = dict(
        init=init,
        weights=lambda trainable, state: masking.apply(state.masks, trainable),
        masks=lambda trainable, state: state.masks,
        due=times.due,
        update=update,
        given_density=True,
    )
    return Method(**(usual | fields))
