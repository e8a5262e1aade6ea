"""A small convolutional network with grouped BatchNorm: two convolutions, global pooling, `cls`."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from giung2_ext.models._convolution import Conv
from giung2_ext.models._layers import BatchNorm


class ConvNet(nn.Module):
    num_classes: int
    widths: Sequence[int]
    group_size: int
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        x = images
        for index, width in enumerate(self.widths):
            stride = 1 if index == 0 else 2
            x = Conv(width, (3, 3), (stride, stride), use_bias=False, dtype=self.dtype)(x)
            x = nn.relu(BatchNorm(self.group_size)(x, train))
        return nn.Dense(self.num_classes, name="cls")(x.mean(axis=(1, 2)))


def build(
    num_classes: int, dtype: Any = jnp.float32, widths: Sequence[int] = (16, 32), group_size: int = 0
) -> nn.Module:
    return ConvNet(num_classes, tuple(widths), group_size, dtype)
