"""ResNet-18, 34, 50, 101 and 152 for ImageNet; with width 2, 50 and 101 are Wide ResNets.

With the original suite's head (`zero`) ResNet-50 has 53 convolutions with 23,454,912 weights and
25,556,032 parameters. `padding=torch` with `head=biased` is torchvision's architecture. `stem=small`, a
3x3 convolution without a pooling, is for images of 32x32: with head=biased and 10 classes ResNet-18
then has 11,173,962 parameters. `planes` are the channels of the stages, the first the stem's too.
Multi-Prize tickets' WRN-34 is depth=34, planes=(64, 192, 384, 768), not width=2: so their code has it,
and only so 40% are the 19.3 million weights that they give.
`channels` are those of every convolution instead of the planned ones, as a compacted ticket has them.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.models import _layers, _resnet

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
STEMS = ("large", "small")  # 7x7 of stride 2 and a pooling of stride 2, or 3x3


def build(
    num_classes: int,
    dtype: Any = jnp.float32,
    depth: int = 50,
    width: int = 1,
    planes: Sequence[int] = (64, 128, 256, 512),
    stem: str = "large",
    head: str = "zero",
    padding: str = "same",
    zero_init: bool = True,
    group_size: int = 0,
    activation: str = "relu",
    channels: Sequence[int] = (),
) -> nn.Module:
    if depth not in BLOCKS:
        raise Refusal(f"resnet has depth {', '.join(map(str, BLOCKS))}; got {depth}")
    if len(planes) != 4 or min(planes) < 1:
        raise Refusal(f"resnet needs planes of its four stages, at least 1 each; got {tuple(planes)}")
    if stem not in STEMS:
        raise unknown("stem of resnet", stem, STEMS)
    _resnet.check("resnet", width, head, "projection", padding)
    return _resnet.ResNet(
        num_classes=num_classes,
        blocks=BLOCKS[depth],
        planes=tuple(planes),
        width=width,
        bottleneck=depth >= 50,
        large_images=stem == "large",
        shortcut="projection",
        head=head,
        padding=padding,
        zero_init=zero_init,
        group_size=group_size,
        activation=_layers.activation(activation),
        dtype=dtype,
        channels=tuple(channels),
    )
