"""Prune, rewind, train again, within one run: the cycles of the student "binary tickets" experiment.

Frankle & Carbin 2019, https://arxiv.org/abs/1803.03635, in the form of public student code. Every `every`
steps each tensor loses its `percent` smallest weights (or scores) by what np.percentile would cut: of n
alive ones ceil(percent / 100 * (n - 1)), so the last one stays. With `rewind` all parameters start anew
from where they began with a fresh optimizer, and that batch trains nothing; without, the same weights go
on and a step is followed by the pruning. `binarise`: sign times the root mean square of what a kernel
keeps. Deviations: only kernels are pruned and binarised, biases and normalisation never; ties go by index;
scores get every dense gradient of what is alive. BatchNorm's running averages go on, as there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from giung2_ext.core import initial, schedules, select, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.core.method import EditSlots, Method

Tree = Any


class CyclesState(NamedTuple):
    masks: Tree
    begun: Tree  # every parameter as it was at first; None without rewinding
    scores: Tree  # None where weights are ranked; 0 where pruned


def binary(mask: Array, weight: Array) -> Array:
    """Value gain * sign(weight) where kept; d/dweight = 1 there, 0 elsewhere."""
    fixed = jax.lax.stop_gradient(weight)
    kept = jnp.where(mask, fixed, 0)
    gain = jnp.sqrt(jnp.sum(kept**2) / jnp.maximum(jnp.sum(mask), 1))
    return jnp.where(mask, gain * jnp.sign(fixed) + (weight - fixed), 0)


def draw_scores(key: Array, masks: Tree) -> Tree:
    """Glorot normal, one for every weight that can be pruned."""
    draw = jax.nn.initializers.glorot_normal()
    keys = initial.leaf_keys(key, masks)
    return masking.apply(masks, trees.map_present(lambda m, k: draw(k, m.shape), masks, keys))


def shrink(masks: Tree, ranked: Tree, kept_q31: int) -> Tree:
    """Masks without each leaf's smallest |ranked|: of n alive ones 1 + floor(kept * (n - 1)) stay."""

    def survivors(mask: Array) -> Array:
        others = jnp.sum(mask, dtype=jnp.int32) - 1  # of an empty one nothing can be chosen
        return 1 + schedules.fraction_of(others, jnp.int32(kept_q31))

    sizes = trees.map_present(lambda mask, r: jnp.abs(r), masks, ranked)
    return select.top_k_each(sizes, trees.map_present(survivors, masks), masks)


def make_due(every: int, rewind: bool, ni: int) -> tuple[Callable[[int], bool], int]:
    """When a run of `ni` steps (0: without end) prunes, and the last time that it does, or -1."""

    def due(step: int) -> bool:
        """With rewinding at a cycle's first batch, which it replaces; else after a cycle's last."""
        within = step < ni or not ni
        return within and (step > 0 and step % every == 0 if rewind else (step + 1) % every == 0)

    return due, max((step for step in range(max(ni - every, 0), ni) if due(step)), default=-1)


def build(
    every: int = 1000,
    percent: float = 5.0,
    by: str = "weights",
    binarise: bool = False,
    rewind: bool = True,
    score_rate: float = 1.2e-3,
    ni: int = 0,
) -> Method:
    if every < 1 + rewind or not 0 < percent <= 100 or by not in ("weights", "scores") or ni < 0:
        raise Refusal(
            "cycles needs every >= 1 (2 with rewind, which takes a step), percent (removed of what is "
            "alive) in (0, 100], by weights or scores and ni >= 0; "
            f"got {every}, {percent:g}, {by!r} and {ni}"
        )
    kept_q31 = schedules.to_q31(1 - percent / 100)

    due, last = make_due(every, rewind, ni)

    def init(key: Array, params: Tree, masks: Tree) -> tuple[Tree, CyclesState]:
        begun = jax.tree.map(jnp.copy, params) if rewind else None  # steps donate: no shared buffers
        scores = draw_scores(key, masks) if by == "scores" else None
        return masking.apply(masks, params), CyclesState(masks, begun, scores)

    def weights(trainable: Tree, state: CyclesState) -> Tree:
        if not binarise:
            return masking.apply(state.masks, trainable)
        seen = lambda mask, weight: weight if mask is None else binary(mask, weight)  # noqa: E731
        return jax.tree.map(seen, state.masks, trainable, is_leaf=trees.is_none)

    def follow(
        trainable: Tree, state: CyclesState, dense_grads: Tree, step: Array
    ) -> tuple[Tree, CyclesState]:
        move = lambda m, s, g: jnp.where(m, s - score_rate * g, 0)  # noqa: E731
        return trainable, state._replace(
            scores=trees.map_present(move, state.masks, state.scores, dense_grads)
        )

    def update(
        trainable: Tree,
        opt_state: Tree,
        state: CyclesState,
        dense_grads: Tree,
        step: Array,
        key: Array,
        edit_slots: EditSlots,
    ) -> tuple[Tree, Tree, CyclesState]:
        new = shrink(state.masks, trainable if by == "weights" else state.scores, kept_q31)
        scores = None if by == "weights" else masking.apply(new, state.scores)
        if rewind:  # all zeros is how every optimizer here begins, its count too
            trainable, opt_state = state.begun, jax.tree.map(jnp.zeros_like, opt_state)
        else:
            opt_state = edit_slots(opt_state, lambda slot, m: jnp.where(m, slot, 0), new)
        return masking.apply(new, trainable), opt_state, CyclesState(new, state.begun, scores)

    return Method(
        init=init,
        weights=weights,
        masks=lambda trainable, state: state.masks,
        follow=follow if by == "scores" else None,
        due=due,
        update=update,
        settled=lambda step: step > last,
        replaces_step=rewind,
        averages=not rewind,
    )
