"""ResNet-20, 32, 44, 56, 110 and any other 6n + 2 for small images: a 3x3 stem, three stages, no pooling.

`shortcut=pad` is the parameter-free one of He et al. 2016, `projection` that of the original suite.
`planes` are the stem's channels and scale the whole network; `width` multiplies those of the stages
alone. Scales start at 1, as in He et al.; with `zero_init` the last of a block at 0, as in the original
suite. Lottery Jackpots' ResNet-32 is planes=32, shortcut=pad: 1,849,898 parameters with 10 classes.
`channels` are those of every convolution instead of the planned ones, as a compacted ticket has them.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from giung2_ext.core.errors import Refusal
from giung2_ext.models import _layers, _resnet


def build(
    num_classes: int,
    dtype: Any = jnp.float32,
    depth: int = 20,
    width: int = 1,
    planes: int = 16,
    shortcut: str = "projection",
    head: str = "biased",
    padding: str = "same",
    zero_init: bool = False,
    group_size: int = 0,
    activation: str = "relu",
    channels: Sequence[int] = (),
) -> nn.Module:
    if depth < 8 or depth % 6 != 2:
        raise Refusal(f"resnet_cifar has depth 6n + 2: 20, 32, 44, 56, 110, …; got {depth}")
    if planes < 1:
        raise Refusal(f"resnet_cifar needs planes of at least 1, got {planes}")
    _resnet.check("resnet_cifar", width, head, shortcut, padding)
    return _resnet.ResNet(
        num_classes=num_classes,
        blocks=((depth - 2) // 6,) * 3,
        planes=(planes, 2 * planes, 4 * planes),
        width=width,
        bottleneck=False,
        large_images=False,
        shortcut=shortcut,
        head=head,
        padding=padding,
        zero_init=zero_init,
        group_size=group_size,
        activation=_layers.activation(activation),
        dtype=dtype,
        channels=tuple(channels),
    )
