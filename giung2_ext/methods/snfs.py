"""SNFS: drop the smallest weights, grow where the moving average of the dense gradient is largest.

Dettmers & Zettlemoyer 2019, https://arxiv.org/abs/1907.04840, in the form of Evci et al. 2020 (`_swap`):
layers keep their counts. A step of the optimizer comes first. The average is m <- momentum * m +
(1 - momentum) * gradient, of every step, and is not reset.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.core.method import Method
from giung2_ext.methods import _swap

Tree = Any


def build(
    every: int = 100,
    begin: int = 0,
    stop: int = 25000,
    drop: float = 0.3,
    decay: str = "cosine",
    momentum: float = 0.9,
) -> Method:
    if not 0 <= momentum < 1:
        raise Refusal(f"snfs needs momentum in [0, 1), got {momentum:g}")

    def score(state: _swap.SwapState, dense_grads: Tree, key: Array) -> Tree:
        return trees.map_present(lambda mask, mean: jnp.abs(mean), state.masks, state.average)

    def follow(
        trainable: Tree, state: _swap.SwapState, dense_grads: Tree, step: Array
    ) -> tuple[Tree, _swap.SwapState]:
        mix = lambda mask, mean, grad: momentum * mean + (1 - momentum) * grad  # noqa: E731
        average = trees.map_present(mix, state.masks, state.average, dense_grads)
        return trainable, state._replace(average=average)

    method = _swap.build_swapping(
        _swap.make_times("snfs", every, begin, stop, drop, decay), score, follow=follow, dense_grads="all"
    )

    def init(key: Array, params: Tree, masks: Tree) -> tuple[Tree, _swap.SwapState]:
        trainable, state = method.init(key, params, masks)
        return trainable, state._replace(
            average=trees.map_present(lambda m, w: jnp.zeros_like(w), masks, params)
        )

    return method._replace(init=init)
