"""Conv-2, 4, 6 and 8 of the 2019 ticket experiments: pairs of 3x3 convolutions, then 256-256.

Frankle & Carbin 2019 (https://arxiv.org/abs/1803.03635): Glorot normal kernels, zero biases, a 2x2
pooling after each pair. On 32x32x3 images Conv-2, 4 and 6 have 4,300,992, 2,425,024 and 2,261,184
kernel weights (the paper's table says 1.7 million for Conv-6). `pool=3` is a 3x3 pooling of stride 2
without padding, found in public ports: Conv-2 then has 3,793,088. With `norm` BatchNorm stands before
every activation and in place of the biases before it, as in Multi-Prize tickets' networks of binary
activations (https://arxiv.org/abs/2103.09377); like there the second of a pair is pooled before it.
`channels` of the convolutions and `hidden` of the two dense layers stand instead of the planned ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from giung2_ext.core.errors import Refusal
from giung2_ext.models import _convolution, _layers


class Conv(nn.Module):
    num_classes: int
    channels: Sequence[int]
    hidden: Sequence[int]
    pool: int
    norm: bool
    group_size: int
    activation: Callable[[Array], Array]
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        kinds = dict(kernel_init=nn.initializers.glorot_normal(), use_bias=not self.norm, dtype=self.dtype)
        x = images.astype(self.dtype)
        for index, channels in enumerate(self.channels):
            x = _convolution.Conv(channels, (3, 3), **kinds)(x)
            if index % 2:
                x = nn.max_pool(x, (self.pool, self.pool), (2, 2))
            x = self._activate(x, train)
        if not x.size:
            raise Refusal(
                f"{images.shape[1]}x{images.shape[2]} images are too small for conv of depth "
                f"{len(self.channels)}"
            )
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = self._activate(nn.Dense(width, **kinds)(x), train)
        return nn.Dense(self.num_classes, kernel_init=kinds["kernel_init"], name="cls")(x)

    def _activate(self, x: Array, train: bool) -> Array:
        if self.norm:
            x = _layers.BatchNorm(self.group_size)(x, train)
        return self.activation(x)


def build(
    num_classes: int,
    dtype: Any = jnp.float32,
    depth: int = 2,
    pool: int = 2,
    norm: bool = False,
    group_size: int = 0,
    activation: str = "relu",
    channels: Sequence[int] = (),
    hidden: Sequence[int] = (),
) -> nn.Module:
    if depth not in (2, 4, 6, 8) or pool not in (2, 3):
        raise Refusal(f"conv has depth 2, 4, 6 or 8 and pool 2 or 3; got {depth} and {pool}")
    channels = _layers.chosen("channels", channels, [64 * 2 ** (i // 2) for i in range(depth)])
    hidden = _layers.chosen("hidden", hidden, (256, 256))
    act = _layers.activation(activation)
    return Conv(num_classes, channels, hidden, pool, norm, group_size, act, dtype)
