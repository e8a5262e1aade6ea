"""LeNet-300-100 of LeCun et al. 1998 as in the 2019 ticket experiments, for any input size.

Glorot normal kernels and zero biases; with 28x28 inputs 266,200 kernel weights.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from giung2_ext.core.errors import Refusal


class LeNet(nn.Module):
    num_classes: int
    hidden: Sequence[int]
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        dense = nn.initializers.glorot_normal()
        x = images.reshape(images.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, kernel_init=dense, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, kernel_init=dense, name="cls")(x)


def build(num_classes: int, dtype: Any = jnp.float32, hidden: Sequence[int] = (300, 100)) -> nn.Module:
    if any(width < 1 for width in hidden):
        raise Refusal(f"lenet needs hidden widths of at least 1, got {tuple(hidden)}")
    return LeNet(num_classes, tuple(hidden), dtype)
