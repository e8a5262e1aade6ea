"""LeNet-5 of LeCun et al. 1998 in its present form: max pooling, ReLU and dense connections throughout.

5x5 convolutions of 6 and 16 channels without padding, then 120 and 84 units. Images smaller than 32x32
are surrounded with zeros (the mean pixel) up to it: 61,706 parameters on MNIST, 62,006 on CIFAR-10.
Glorot normal kernels and zero biases, as the other networks of the 2019 ticket experiments.
`channels` of the convolutions and `hidden` of the two dense layers stand instead of the planned ones.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from giung2_ext.models import _layers
from giung2_ext.models._convolution import Conv


class LeNet5(nn.Module):
    num_classes: int
    channels: Sequence[int]
    hidden: Sequence[int]
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        glorot = nn.initializers.glorot_normal()
        missing = [max(32 - n, 0) for n in images.shape[1:3]]
        around = [(0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)]
        x = jnp.pad(images.astype(self.dtype), around)
        for channels in self.channels:
            conv = Conv(channels, (5, 5), padding="VALID", kernel_init=glorot, dtype=self.dtype)
            x = nn.relu(nn.max_pool(conv(x), (2, 2), (2, 2)))
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, kernel_init=glorot, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, kernel_init=glorot, name="cls")(x)


def build(
    num_classes: int,
    dtype: Any = jnp.float32,
    channels: Sequence[int] = (),
    hidden: Sequence[int] = (),
) -> nn.Module:
    channels = _layers.chosen("channels", channels, (6, 16))
    return LeNet5(num_classes, channels, _layers.chosen("hidden", hidden, (120, 84)), dtype)
