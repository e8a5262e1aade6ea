"""Wide ResNets for small images: WRN-10, 16, 22, 28, 40 and any other 6n + 4, times a width.

Zagoruyko & Komodakis 2016 (https://arxiv.org/abs/1605.07146), basic blocks of two 3x3 convolutions, each
after its BatchNorm and activation; a shortcut is the block's input, or a 1x1 convolution of what is
activated first where the shape changes. `planes` are the stem's channels and scale the whole network,
`width` multiplies those of the stages. The default is WRN-22-2, RigL's on CIFAR-10: 1,079,642 parameters
with 10 classes. Convolutions are numbered as applied, a shortcut's after its block's; so is BatchNorm,
which stands before: block n has 2n and 2n + 1. Kernels are He normal; there is no dropout, RigL's has 0.3.
`channels` are those of every convolution instead of the planned ones, as a compacted ticket has them.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from giung2_ext.core.errors import Refusal
from giung2_ext.models import _layers, _resnet
from giung2_ext.models._layers import Widths, same_channels


class WideResNet(_resnet.ResNet):
    """Of the fields bottleneck, large_images, shortcut and zero_init have no say: `build` fixes them."""

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        channels = Widths("channels", self.channels)
        x = self._conv(images.astype(self.dtype), channels.next(self.planes[0]), 3)
        x = self._blocks(x, channels, train)
        return self._classify(self._activate(x, train))

    def _activate(self, x: Array, train: bool) -> Array:
        return self.activation(self._norm(x, train))

    def _block(
        self, x: Array, planned: tuple[int, int, int], stride: int, channels: Widths, train: bool
    ) -> Array:
        before, inner, outer = planned
        active = self._activate(x, train)
        y = self._conv(active, channels.next(inner), 3, stride)
        y = self._conv(self._activate(y, train), channels.next(outer), 3)
        if before != outer or x.shape[1:3] != y.shape[1:3]:
            x = self._conv(active, channels.next(outer), 1, stride)
        same_channels(x, y)
        return y + x


def build(
    num_classes: int,
    dtype: Any = jnp.float32,
    depth: int = 22,
    width: int = 2,
    planes: int = 16,
    head: str = "biased",
    padding: str = "same",
    group_size: int = 0,
    activation: str = "relu",
    channels: Sequence[int] = (),
) -> nn.Module:
    if depth < 10 or depth % 6 != 4:
        raise Refusal(f"wide_resnet has depth 6n + 4: 10, 16, 22, 28, 40, …; got {depth}")
    if planes < 1:
        raise Refusal(f"wide_resnet needs planes of at least 1, got {planes}")
    _resnet.check("wide_resnet", width, head, "projection", padding)
    return WideResNet(
        num_classes=num_classes,
        blocks=((depth - 4) // 6,) * 3,
        planes=(planes, 2 * planes, 4 * planes),
        width=width,
        bottleneck=False,
        large_images=False,
        shortcut="projection",
        head=head,
        padding=padding,
        zero_init=False,
        group_size=group_size,
        activation=_layers.activation(activation),
        dtype=dtype,
        channels=tuple(channels),
    )
