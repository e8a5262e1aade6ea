"""VGG of Simonyan & Zisserman 2014 (https://arxiv.org/abs/1409.1556) and of the mask-search papers.

The default is Lottery Jackpots' VGG-19 with BatchNorm: 20,035,018 parameters with 10 classes. plan=16,
norm=False, head=dense is torchvision's VGG-16 (134,301,514 with 10). plan=small, head=flat is the
VGG-Small of Multi-Prize tickets and other work on binary networks: 4,656,512 weights on 32x32x3 images,
7,249,120 with width=1.25. `width` multiplies the channels, and the 4096 of head=dense. A convolution is
followed by BatchNorm (or a bias), the activation and its pooling, of plan=small and of binary activations
by the pooling first; the public VGG-Small code lacks most ReLUs, and BatchNorm where there is no pooling,
and the published numbers are of that. A pooling of a single pixel is left out. Kernels are He normal, the
classifier's LeCun normal; biases are 0. `channels` of every convolution and `hidden`, of the dense layers
of head=dense, stand instead of the planned ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from giung2_ext.core.errors import unknown
from giung2_ext.models import _layers
from giung2_ext.models._convolution import Conv

PLANS = {  # the channels of each stage's convolutions; a pooling ends every stage
    "19": ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
    "16": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    "small": ((128,) * 2, (256,) * 2, (512,) * 2),
}
HEADS = ("mean", "flat", "dense")  # of all pixels, as they are, or of 7x7 and two dense layers


class VGG(nn.Module):
    num_classes: int
    stages: Sequence[Sequence[int]]
    hidden: Sequence[int]
    norm: bool
    head: str
    pool_first: bool
    group_size: int
    activation: Callable[[Array], Array]
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        he = nn.initializers.he_normal()
        x = images.astype(self.dtype)
        for stage in self.stages:
            for index, channels in enumerate(stage, 1):
                conv = Conv(channels, (3, 3), use_bias=not self.norm, kernel_init=he, dtype=self.dtype)
                x = conv(x)
                pooled = index == len(stage)
                if pooled and self.pool_first:
                    x = _layers.max_pool(x, 2)
                if self.norm:
                    x = _layers.BatchNorm(self.group_size)(x, train)
                x = self.activation(x)
                if pooled and not self.pool_first:
                    x = _layers.max_pool(x, 2)
        if self.head == "mean":
            x = x.mean(axis=(1, 2))
        elif self.head == "dense":
            x = _layers.adaptive_mean(x, 7)
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = self.activation(nn.Dense(width, kernel_init=he, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, name="cls")(x)


def build(
    num_classes: int,
    dtype: Any = jnp.float32,
    plan: str = "19",
    width: float = 1.0,
    norm: bool = True,
    head: str = "mean",
    group_size: int = 0,
    activation: str = "relu",
    channels: Sequence[int] = (),
    hidden: Sequence[int] = (),
) -> nn.Module:
    for kind, value, known in (("plan", plan, PLANS), ("head", head, HEADS)):
        if value not in known:
            raise unknown(f"{kind} of vgg", value, known)
    stages = tuple(_layers.widened("vgg", stage, width) for stage in PLANS[plan])
    layers = iter(_layers.chosen("channels", channels, [n for stage in stages for n in stage]))
    stages = tuple(tuple(next(layers) for _ in stage) for stage in stages)
    planned = _layers.widened("vgg", (4096, 4096), width) if head == "dense" else ()
    hidden = _layers.chosen("hidden", hidden, planned)
    act = _layers.activation(activation)
    first = plan == "small" or activation == "binary"
    return VGG(num_classes, stages, hidden, norm, head, first, group_size, act, dtype)
