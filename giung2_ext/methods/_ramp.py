"""What gradual pruning and its straight-through form share: how many weights are kept, and which.

Counts fall from those of the starting mask to those of `density`: of all prunable weights together
(allocation `global`), or of every leaf (`uniform`, `erk`). Every `every` steps after `begin`, and at `end`,
kept = target + floor(part * (start - target)), the part falling as the schedule says, in exact integers.
With a structure the n best of every m weights are out of reach, so what is left at last is the pattern.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from giung2_ext.core import allocate, schedules, select, structure, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal, unknown

Tree = Any
SCHEDULES = ("cubic", "exponential", "linear")
ALLOCATIONS = ("global", "uniform", "erk")


class Ramp(NamedTuple):
    due: Callable[[int], bool]
    settled: Callable[[int], bool]
    targets: Callable[[Tree], Tree]
    """(starting masks) -> int32 counts of every leaf, or of all together; refuses what cannot be"""
    choose: Callable[..., Tree]
    """(scores, counts of the starting mask, updates done, among) -> masks"""


def update_steps(begin: int, end: int, every: int) -> list[int]:
    """The steps after which less is kept: `end` is always one."""
    return [*range(begin + every, end, every), end]


def make_ramp(
    name: str,
    density: float,
    schedule: str,
    begin: int,
    end: int,
    every: int,
    allocation: str,
    pattern: str,
) -> Ramp:
    allocate.check_fraction(density, f"the density of {name}")
    for kind, value, known in (("schedule", schedule, SCHEDULES), ("allocation", allocation, ALLOCATIONS)):
        if value not in known:
            raise unknown(f"{kind} of {name}", value, known)
    if every < 1 or not 0 <= begin <= end:
        raise Refusal(f"{name} needs every >= 1 and 0 <= begin <= end, got {every}, {begin} and {end}")
    if pattern != "none":
        kept, of = structure.parse(pattern)
        if abs(density - kept / of) > 1e-3:
            raise Refusal(
                f"{name} with the structure {pattern} ends at density {kept / of:g}, got {density:g}: "
                f"set config.method.density={kept / of:g}"
            )
        if allocation == "erk":
            raise Refusal(
                f"{name} with the structure {pattern} keeps {kept / of:g} of every layer, and "
                "config.method.allocation=erk does not: use global or uniform"
            )
    steps = update_steps(begin, end, every)
    done = [(step - begin) / (end - begin) if end > begin else 1.0 for step in steps]
    left = [schedules.to_q31(schedules.excess(schedule, density, part)) for part in done]

    def budget(start: Array, target: Any, updates: Array) -> Array:
        over = jnp.maximum(start - target, 0)
        part = jnp.asarray(np.array(left, np.int32))[jnp.clip(updates - 1, 0, len(left) - 1)]
        return jnp.where(
            updates == 0, start, jnp.minimum(start, target) + schedules.fraction_of(over, part)
        )

    def targets(masks: Tree) -> Tree:
        if pattern != "none":
            kept, of = structure.parse(pattern)
            structure.check(masks, pattern)
            counts = trees.map_present(lambda mask: np.int32(mask.size // of * kept), masks)
            return sum(trees.present(counts)) if allocation == "global" else counts
        if allocation == "global":
            return allocate.keep_count(density, masking.size(masks), "density")
        return allocate.layer_counts(masks, density, allocation)

    def choose(scores: Tree, start: Tree, updates: Array, among: Tree) -> Tree:
        """`among` is a tree of masks, all True where every weight may come back."""
        if pattern != "none":
            low = lambda mask, score: jnp.where(mask, score, -jnp.inf)  # noqa: E731
            scores = structure.protect(trees.map_present(low, among, scores), pattern)
        if allocation == "global":
            total = sum(trees.present(start), jnp.int32(0))
            return select.top_k(scores, budget(total, targets(among), updates), among)
        counts = jax.tree.map(lambda own, target: budget(own, target, updates), start, targets(among))
        return select.top_k_each(scores, counts, among)

    within = frozenset(steps)
    return Ramp(within.__contains__, lambda consumed: consumed > end, targets, choose)
