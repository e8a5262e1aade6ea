"""Residual networks of He et al. 2016 (https://arxiv.org/abs/1512.03385), as in the original suite.

Every convolution and normalisation is a child of the network itself, so leaves are `Conv_i` and
`BatchNorm_i` in the order in which they are applied, the shortcut's after its block's: the order of
torchvision too. Kernels are He normal (fan in, truncated), convolutions have no bias, with `zero_init`
the last scale of a block starts at 0. Strides are on the 3x3 convolution of a bottleneck (v1.5). The
activation stands after a block's sum too, so a binary one leaves nothing but signs between the blocks.
Where there is a shortcut is decided by the planned channels, whatever `channels` are there instead.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.models._convolution import Conv
from giung2_ext.models._layers import BatchNorm, Widths, pads, same_channels, torch_uniform

HEADS = ("zero", "biased")  # no bias and all 0 (the original suite), or as PyTorch makes it
SHORTCUTS = ("projection", "pad")  # 1x1 convolution, or every other pixel and channels of zeros


class ResNet(nn.Module):
    num_classes: int
    blocks: Sequence[int]  # of each stage
    planes: Sequence[int]  # channels of each stage; the stem has the first's
    width: int  # multiplies the channels of the stages; of a bottleneck the inner ones alone
    bottleneck: bool
    large_images: bool  # a 7x7 stem of stride 2 and a pooling of stride 2, or a 3x3 stem
    shortcut: str
    head: str
    padding: str
    zero_init: bool
    group_size: int
    activation: Callable[[Array], Array]
    dtype: Any
    channels: Sequence[int] = ()  # of every convolution, instead of the planned ones

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        x, channels = images.astype(self.dtype), Widths("channels", self.channels)
        size, stride = (7, 2) if self.large_images else (3, 1)
        x = self._norm(self._conv(x, channels.next(self.planes[0]), size, stride), train)
        if self.large_images:  # before the activation: the largest of equal signs would be the first
            x = nn.max_pool(x, (3, 3), (2, 2), pads(self.padding, 3))
        x = self._blocks(self.activation(x), channels, train)
        return self._classify(x)

    def _blocks(self, x: Array, channels: Widths, train: bool) -> Array:
        before = self.planes[0]
        for stage, (count, planes) in enumerate(zip(self.blocks, self.planes, strict=True)):
            inner = planes * self.width
            outer = planes * 4 if self.bottleneck else inner
            for index in range(count):
                stride = 2 if stage and not index else 1
                x = self._block(x, (before, inner, outer), stride, channels, train)
                before = outer
        channels.check()
        return x

    def _classify(self, x: Array) -> Array:
        features = x.mean(axis=(1, 2))
        biased = self.head == "biased"
        init = torch_uniform(features.shape[1]) if biased else nn.initializers.zeros
        cls = nn.Dense(self.num_classes, use_bias=biased, kernel_init=init, bias_init=init, name="cls")
        return cls(features)  # in float32, because its kernel is

    def _conv(self, x: Array, features: int, size: int, stride: int = 1) -> Array:
        return Conv(
            features,
            (size, size),
            (stride, stride),
            pads(self.padding, size),
            use_bias=False,
            kernel_init=nn.initializers.he_normal(),
            dtype=self.dtype,
        )(x)

    def _norm(self, x: Array, train: bool, last: bool = False) -> Array:
        init = nn.initializers.zeros if last and self.zero_init else nn.initializers.ones
        return BatchNorm(self.group_size, init)(x, train)

    def _block(
        self, x: Array, planned: tuple[int, int, int], stride: int, channels: Widths, train: bool
    ) -> Array:
        before, inner, outer = planned
        y = x
        if self.bottleneck:
            y = self.activation(self._norm(self._conv(y, channels.next(inner), 1), train))
            y = self.activation(self._norm(self._conv(y, channels.next(inner), 3, stride), train))
            y = self._norm(self._conv(y, channels.next(outer), 1), train, last=True)
        else:
            y = self.activation(self._norm(self._conv(y, channels.next(inner), 3, stride), train))
            y = self._norm(self._conv(y, channels.next(outer), 3), train, last=True)
        changes = before != outer or x.shape[1:3] != y.shape[1:3]
        if changes and self.shortcut == "projection":
            x = self._norm(self._conv(x, channels.next(outer), 1, stride), train)
        elif changes:
            x = x[:, ::stride, ::stride]
            more = max(y.shape[-1] - x.shape[-1], 0)
            x = jnp.pad(x, [(0, 0)] * 3 + [(more // 2, more - more // 2)])
        same_channels(x, y)
        return self.activation(y + x)


def check(name: str, width: int, head: str, shortcut: str, padding: str) -> None:
    """Options that make no network are refused before anything is built."""
    if width < 1:
        raise Refusal(f"{name} needs a width of at least 1, got {width}")
    for kind, value, known in (("head", head, HEADS), ("shortcut", shortcut, SHORTCUTS)):
        if value not in known:
            raise unknown(f"{kind} of {name}", value, known)
    pads(padding, 3)
