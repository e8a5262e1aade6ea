"""Where the kept weights go: one global budget, or a count for every leaf.

Frankle & Carbin 2019 (https://arxiv.org/abs/1803.03635) prune every layer by itself, at its kind's rate.

ERK (Evci et al. 2020, https://arxiv.org/abs/1911.11134, after Mocanu et al. 2018) scales a leaf's
density with (sum of its axes) / (product of its axes), leaves that would exceed 1 becoming dense.
Counts are computed on the host in exact integers and sum to the budget to the last weight.
"""

from fractions import Fraction
from math import floor, prod
from typing import Any

import jax
import numpy as np

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal, unknown

Tree = Any
ROUNDINGS = ("floor", "nearest", "cutoff")


def keep_count(
    ratio: float, alive: int, name: str = "pruning_ratio", rounding: str = "floor", rounds: int = 1
) -> int:
    """How many of `alive` weights `rounds` prunings keep, with `ratio` read as the decimal that was typed.

    `floor` keeps floor(ratio * alive); `nearest` removes round((1 - ratio) * alive), halves to even, as
    PyTorch's pruning does; `cutoff` one more: that of code which removes the weight of this rank too.
    """
    check_fraction(ratio, name)
    if rounding not in ROUNDINGS:
        raise unknown("rounding of counts", rounding, ROUNDINGS)
    kept, exact = alive, Fraction(repr(float(ratio)))
    for _ in range(rounds if ratio < 1 else 0):
        if rounding == "floor":
            kept = floor(exact * kept)
        else:
            kept -= round((1 - exact) * kept) + (rounding == "cutoff")
    if kept < 1:
        often = f", {rounds} times," if rounds > 1 else ""
        raise Refusal(f"{name}={ratio:g} of {alive:,} weights{often} keeps none")
    return kept


def read_ratios(text: str, name: str = "layer_ratios") -> dict[str, float]:
    """{kind of layer: kept fraction} of `conv:0.9,dense:0.8,cls:0.9`."""
    ratios: dict[str, float] = {}
    for part in text.split(","):
        kind, _, number = part.strip().partition(":")
        try:
            ratio = float(number)
        except ValueError:
            ratio = 0.0
        if kind not in masking.KINDS or kind in ratios or not 0 < ratio <= 1:
            raise Refusal(
                f"{name}={text!r}: write the kept fraction in (0, 1] of each kind of layer, such as "
                f"conv:0.9,dense:0.8,cls:0.9; kinds: {', '.join(masking.KINDS)}"
            )
        ratios[kind] = ratio
    return ratios


def pruned_counts(masks: Tree, alive: Tree, text: str, rounding: str = "floor", rounds: int = 1) -> Tree:
    """What `rounds` prunings keep of every layer by itself, by the ratio of its kind (int32 scalars)."""
    ratios, kinds = read_ratios(text), masking.kinds(masks)
    missing = {kind for kind in trees.present(kinds) if kind not in ratios}
    if missing:
        more = ",".join(f"{kind}:RATIO" for kind in sorted(missing))
        raise Refusal(f"layer_ratios={text!r} says nothing of {', '.join(sorted(missing))}: add {more}")

    def count(kind: str, left: Any) -> np.int32:
        return np.int32(keep_count(ratios[kind], int(left), f"layer_ratios, {kind}", rounding, rounds))

    return trees.map_present(count, kinds, alive)


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
