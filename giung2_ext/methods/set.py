"""SET: drop the smallest weights, grow at random.

Mocanu et al. 2018, https://arxiv.org/abs/1707.04780, in the form of Evci et al. 2020 (`_swap`): dropped by
size and not by sign, ever fewer. A step of the optimizer comes first.
"""

from typing import Any

from jax import Array

from giung2_ext.core import criteria
from giung2_ext.core.method import Method
from giung2_ext.methods import _swap

Tree = Any


def build(
    every: int = 100, begin: int = 0, stop: int = 25000, drop: float = 0.3, decay: str = "cosine"
) -> Method:
    def score(state: _swap.SwapState, dense_grads: Tree, key: Array) -> Tree:
        return criteria.random(key, state.masks)

    return _swap.build_swapping(_swap.make_times("set", every, begin, stop, drop, decay), score)
