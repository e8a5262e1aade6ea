"""RPG: prune by magnitude, grow by the dense gradient of the loss and of an adversarial rank loss.

Tian et al. 2023, https://arxiv.org/abs/2311.17493, as in the published code. Every `every` steps of the
first `stop` of a run the smallest weights of all leaves go, down to density^(update / updates of the first
`ramp`), then every leaf swaps a falling part of what it has (`_swap`) by the gradient; the update stands in
for the optimizer's step. The rank loss (`core.rank`) of all kernels but the classifier joins the gradient
of updates alone (`rank_in=grow`, the published code: it moves no weight, it chooses which ones grow) or of
every step (`loss`, the paper's text). Deviations: exactly round((1 - density) * n) weights are pruned
(published: one fewer, `off_by_one`); what grows has empty slots; the score is |gradient of the batch|, with
`group` the mean over groups of that many examples (published: over GPUs).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from giung2_ext.core import allocate, criteria, rank, schedules, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.core.method import EditSlots, Method
from giung2_ext.methods import _swap

Tree = Any
RANK_IN = ("grow", "loss")


class RPGState(NamedTuple):
    masks: Tree
    updates: Array  # int32 updates done


class Times(NamedTuple):
    """When a run of `ni` steps updates its mask, in steps counted from 1 as the published code does."""

    every: int
    stop: int  # no update from here on
    rounds: int  # updates until the density is reached

    @property
    def updates(self) -> int:
        return (self.stop - 1) // self.every

    def due(self, step: int) -> bool:
        return (step + 1) % self.every == 0 and step + 1 < self.stop

    def settled(self, consumed: int) -> bool:
        return consumed >= (self.rounds + 1) * self.every


def make_times(ni: int, every: int, stop: float, ramp: float) -> Times:
    if every < 1 or not 0 < ramp <= stop <= 1:
        raise Refusal(f"rpg needs every >= 1 and 0 < ramp <= stop <= 1, got {every}, {ramp:g} and {stop:g}")
    times = Times(every, int(stop * ni), int(ramp * ni) // every)
    if times.rounds < 1 or times.updates <= times.rounds:
        raise Refusal(
            f"rpg with every={every}, ramp={ramp:g} and stop={stop:g} does not come to its density in "
            f"{ni:,} steps: it takes {times.rounds + 1:,} updates after the first and there are "
            f"{times.updates:,}; lower every or ramp"
        )
    return times


def density_at(update: int, density: float, rounds: int) -> float:
    """The density that the update of this number, from 0, prunes to."""
    return density ** (update / rounds) if update < rounds else density


def kept_counts(size: int, density: float, times: Times, off_by_one: bool = False) -> np.ndarray:
    """Of `size` weights, what each update leaves."""
    pruned = [round((1 - density_at(r, density, times.rounds)) * size) for r in range(times.updates)]
    return np.array([size - max(count - off_by_one, 0) for count in pruned], np.int32)


def build(
    density: float = 0.1,
    every: int = 100,
    ramp: float = 0.9,
    stop: float = 0.901,
    swap: float = 0.3,
    rank_weight: float = 0.5,
    tolerance: float = 0.1,
    rank_in: str = "grow",
    group: int = 0,
    off_by_one: bool = False,
    ni: int = 0,
) -> Method:
    """`ni` is the run's number of steps; a `swap` of 0 prunes only, and the optimizer steps every time."""
    allocate.check_fraction(density, "the density of rpg")
    if rank_in not in RANK_IN:
        raise unknown("value of rank_in of rpg", rank_in, RANK_IN)
    if not 0 <= swap < 1 or not 0 <= tolerance <= 1 or rank_weight < 0:
        raise Refusal(
            "rpg needs swap in [0, 1), tolerance in [0, 1] and rank_weight >= 0, got "
            f"{swap:g}, {tolerance:g} and {rank_weight:g}"
        )
    times = make_times(ni, every, stop, ramp)
    parts = [(r + 1) * every / times.stop for r in range(times.updates)]
    swapped = np.array(
        [schedules.to_q31(swap * schedules.FALLS["cosine"](part)) for part in parts], np.int32
    )

    def init(key: Array, params: Tree, masks: Tree) -> tuple[Tree, RPGState]:
        return masking.apply(masks, params), RPGState(masks, jnp.int32(0))

    def penalty(weights: Tree, state: RPGState) -> Array:
        ranked = lambda kind, weight: None if kind == "cls" else weight  # noqa: E731
        kernels = trees.map_present(ranked, masking.kinds(state.masks), weights)
        return rank_weight * rank.adversarial_loss(kernels, tolerance)

    def update(
        trainable: Tree,
        opt_state: Tree,
        state: RPGState,
        dense_grads: Tree,
        step: Array,
        key: Array,
        edit_slots: EditSlots,
    ) -> tuple[Tree, Tree, RPGState]:
        keep = jnp.asarray(kept_counts(masking.size(state.masks), density, times, off_by_one))[
            state.updates
        ]
        new = left = criteria.prune_magnitude(trainable, state.masks, keep)
        if swap:
            grads = dense_grads[1] if group else dense_grads
            scores = trees.map_present(lambda mask, grad: jnp.abs(grad), state.masks, grads)
            new = _swap.swap_all(left, trainable, scores, jnp.asarray(swapped)[state.updates])
        stayed = trees.map_present(jnp.logical_and, new, left)
        trainable, opt_state = _swap.move(stayed, trainable, opt_state, edit_slots)
        return trainable, opt_state, RPGState(new, state.updates + 1)

    return Method(
        init=init,
        weights=lambda trainable, state: masking.apply(state.masks, trainable),
        masks=lambda trainable, state: state.masks,
        penalty=penalty if rank_weight and (swap or rank_in == "loss") else None,
        penalty_on="due" if rank_in == "grow" else "all",
        due=times.due,
        update=update,
        settled=times.settled,
        replaces_step=swap > 0,
        dense_grads="due" if swap else "no",
        abs_over=group if swap else 0,
    )
