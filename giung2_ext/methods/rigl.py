"""RigL: drop the smallest weights, grow where the dense gradient is largest.

Evci et al. 2020, https://arxiv.org/abs/1911.11134; when and how many is in `_swap`. The update replaces the
optimizer's step. The score is |gradient of the batch|; with `group` the mean of |gradient| over groups of
that many examples, which PyTorch ports take by the rank.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from giung2_ext.core import trees
from giung2_ext.core.method import Method
from giung2_ext.methods import _swap

Tree = Any


def build(
    every: int = 100,
    begin: int = 0,
    stop: int = 25000,
    drop: float = 0.3,
    decay: str = "cosine",
    group: int = 0,
) -> Method:
    def score(state: _swap.SwapState, dense_grads: Tree, key: Array) -> Tree:
        grads = dense_grads[1] if group else dense_grads
        return trees.map_present(lambda mask, grad: jnp.abs(grad), state.masks, grads)

    times = _swap.make_times("rigl", every, begin, stop, drop, decay)
    return _swap.build_swapping(times, score, replaces_step=True, dense_grads="due", abs_over=group)
