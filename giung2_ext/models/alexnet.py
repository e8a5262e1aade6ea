"""AlexNet for small images, as in public ports of the 2019 ticket experiments.

Krizhevsky et al. 2012 in the narrow form of torchvision, its first convolution 3x3 of stride 2:
57,022,154 parameters on MNIST, 57,023,306 on CIFAR-10, whose last map is one pixel, repeated 6x6. A
pooling whose window does not fit is left out. There is no dropout: the ports' first test left the
network in evaluation mode for good, so their numbers are of a network without. `width` multiplies all
channels and the 4096 units. Kernels are He normal, the classifier's LeCun normal; biases are 0.
`channels` of the convolutions and `hidden` of the two dense layers stand instead of the planned ones.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from giung2_ext.models import _layers
from giung2_ext.models._convolution import Conv

SIZES = (3, 5, 3, 3, 3)  # of the kernels
POOLED = (0, 1, 4)  # the convolutions that a 3x3 pooling of stride 2 follows


class AlexNet(nn.Module):
    num_classes: int
    channels: Sequence[int]
    hidden: Sequence[int]
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        he = nn.initializers.he_normal()
        x = images.astype(self.dtype)
        for index, (size, channels) in enumerate(zip(SIZES, self.channels, strict=True)):
            stride, pad = (1, size // 2) if index else (2, 2)
            kinds = dict(strides=(stride, stride), padding=pad, kernel_init=he, dtype=self.dtype)
            x = Conv(channels, (size, size), **kinds)(x)
            if index in POOLED:
                x = _layers.max_pool(x, 3)
            x = nn.relu(x)
        x = _layers.adaptive_mean(x, 6)
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, kernel_init=he, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, name="cls")(x)


def build(
    num_classes: int,
    dtype: Any = jnp.float32,
    width: float = 1.0,
    channels: Sequence[int] = (),
    hidden: Sequence[int] = (),
) -> nn.Module:
    planned = _layers.widened("alexnet", (64, 192, 384, 256, 256), width)
    dense = _layers.widened("alexnet", (4096, 4096), width)
    channels = _layers.chosen("channels", channels, planned)
    return AlexNet(num_classes, channels, _layers.chosen("hidden", hidden, dense), dtype)
