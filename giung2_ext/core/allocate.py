"""Where the kept weights go: one global budget, or a count for every leaf.

ERK (Evci et al. 2020, https://arxiv.org/abs/1911.11134, after Mocanu et al. 2018) scales a leaf's
density with (sum of its axes) / (product of its axes), leaves that would exceed 1 becoming dense.
Counts are computed on the host in exact integers and sum to the budget to the last weight.
"""

from fractions import Fraction
from math import floor, prod
from typing import Any

import jax
import numpy as np

from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal, unknown

Tree = Any


def keep_count(ratio: float, alive: int, name: str = "pruning_ratio") -> int:
    """floor(ratio * alive), exactly, with `ratio` read as the decimal number that was typed."""
    check_fraction(ratio, name)
    count = floor(Fraction(repr(float(ratio))) * alive)
    if count < 1:
        raise Refusal(f"{name}={ratio:g} of {alive:,} weights keeps none")
    return count


def keep_count_legacy(ratio: float, alive: int, free: int) -> int:
    """The original ImageNet suite's k: one float32 sum with the `free` parameters it never prunes."""
    total = np.float32(free) + np.float32(alive) * np.float32(ratio)
    return max(int(total) - free, 1)


def check_fraction(value: float, name: str) -> None:
    if not 0 < value <= 1:
        raise Refusal(f"{name} must be in (0, 1], got {value:g}")


def _spread(shares: list[Fraction], sizes: list[int], budget: int) -> list[int]:
    """Integers near share * size that sum to `budget`, by largest remainder (ties: first leaf)."""
    exact = [share * size for share, size in zip(shares, sizes, strict=True)]
    counts = [floor(e) for e in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: budget - sum(counts)]:
        counts[i] += 1
    return counts


def _erk_shares(shapes: list[tuple[int, ...]], sizes: list[int], budget: int) -> list[Fraction]:
    raw = [Fraction(sum(shape), prod(shape)) for shape in shapes]
    full: set[int] = set()
    while True:
        free = [i for i in range(len(shapes)) if i not in full]
        if not free:
            return [Fraction(1)] * len(shapes)
        left = budget - sum(sizes[i] for i in full)
        scale = Fraction(left) / sum(raw[i] * sizes[i] for i in free)
        over = {i for i in free if scale * raw[i] > 1}
        if not over:
            return [Fraction(1) if i in full else scale * raw[i] for i in range(len(shapes))]
        full |= {i for i in over if raw[i] == max(raw[j] for j in over)}


def layer_counts(masks: Tree, density: float, how: str) -> Tree:
    """Per-leaf kept counts (int32 scalars) for `how` in uniform | erk; their sum is exact."""
    check_fraction(density, "density")
    leaves = trees.present(masks)
    shapes, sizes = [leaf.shape for leaf in leaves], [leaf.size for leaf in leaves]
    budget = keep_count(density, sum(sizes), "density")
    if how == "uniform":
        shares = [Fraction(budget, sum(sizes))] * len(sizes)
    elif how == "erk":
        shares = _erk_shares(shapes, sizes, budget)
    else:
        raise unknown("allocation", how, ["global", "uniform", "erk"])
    counts = [np.int32(count) for count in _spread(shares, sizes, budget)]
    return jax.tree.unflatten(jax.tree.structure(masks), counts)
