"""ResNet-18, 34, 50, 101 and 152 for ImageNet; with width 2, 50 and 101 are Wide ResNets.

With the original suite's head (`zero`) ResNet-50 has 53 convolutions with 23,454,912 weights and
25,556,032 parameters. `padding=torch` with `head=biased` is torchvision's architecture.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from giung2_ext.core.errors import Refusal
from giung2_ext.models import _resnet

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def build(
    num_classes: int,
    dtype: Any = jnp.float32,
    depth: int = 50,
    width: int = 1,
    head: str = "zero",
    padding: str = "same",
    zero_init: bool = True,
    group_size: int = 0,
) -> nn.Module:
    if depth not in BLOCKS:
        raise Refusal(f"resnet has depth {', '.join(map(str, BLOCKS))}; got {depth}")
    _resnet.check("resnet", width, head, "projection", padding)
    return _resnet.ResNet(
        num_classes=num_classes,
        blocks=BLOCKS[depth],
        planes=64,
        width=width,
        bottleneck=depth >= 50,
        large_images=True,
        shortcut="projection",
        head=head,
        padding=padding,
        zero_init=zero_init,
        group_size=group_size,
        dtype=dtype,
    )
