"""Vision transformers Ti, S and B with a class token: DeiT's (Touvron et al. 2021, without distillation).

https://arxiv.org/abs/2012.12877, after Dosovitskiy et al. 2021: pre-norm, learned positions, exact
GELU, normal kernels of 0.02, the patch embedding as PyTorch initialises it. On 224x224 images and 1000
classes 5,717,416, 22,050,664 and 86,567,656 parameters. `config.masks.prunable=blocks` prunes attention
and MLP kernels and leaves the patch embedding and the classifier dense. Stochastic depth, which DeiT's
recipe adds, is left out.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.models._convolution import Conv
from giung2_ext.models._layers import torch_uniform

SIZES = {"Ti": (192, 3), "S": (384, 6), "B": (768, 12)}  # width, heads
SMALL = nn.initializers.normal(0.02)


class Block(nn.Module):
    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x_BxTxD: Array) -> Array:
        width = x_BxTxD.shape[-1]

        def dense(x: Array, features: int, name: str) -> Array:
            return nn.Dense(features, kernel_init=SMALL, dtype=self.dtype, name=name)(x)

        def norm(x: Array) -> Array:
            return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(x)

        qkv = dense(norm(x_BxTxD), 3 * width, "qkv")
        query, key, value = jnp.moveaxis(qkv.reshape(*qkv.shape[:-1], 3, self.heads, -1), -3, 0)
        scores = jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32)
        shares = nn.softmax(scores * query.shape[-1] ** -0.5).astype(self.dtype)
        mixed = jnp.einsum("bhts,bshd->bthd", shares, value)
        x_BxTxD = x_BxTxD + dense(mixed.reshape(x_BxTxD.shape), width, "proj")
        hidden = nn.gelu(dense(norm(x_BxTxD), 4 * width, "fc1"), approximate=False)
        return x_BxTxD + dense(hidden, width, "fc2")


class ViT(nn.Module):
    num_classes: int
    width: int
    heads: int
    depth: int
    patch: int
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        if images.shape[1] % self.patch or images.shape[2] % self.patch:
            raise Refusal(
                f"images of {images.shape[1]}x{images.shape[2]} do not divide into patches of {self.patch} "
                "(config.model.patch)"
            )
        size, dtype = (self.patch, self.patch), self.dtype
        init = torch_uniform(self.patch**2 * images.shape[-1])
        x = Conv(self.width, size, size, kernel_init=init, bias_init=init, dtype=dtype, name="patches")(
            images
        )
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("token", SMALL, (1, 1, self.width)).astype(dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        x = x + self.param("position", SMALL, (1, *x.shape[1:])).astype(dtype)
        for _ in range(self.depth):
            x = Block(self.heads, dtype)(x)
        x = nn.LayerNorm(epsilon=1e-6, dtype=dtype)(x[:, 0])
        return nn.Dense(self.num_classes, kernel_init=SMALL, name="cls")(x)


def build(
    num_classes: int, dtype: Any = jnp.float32, size: str = "S", depth: int = 12, patch: int = 16
) -> nn.Module:
    if size not in SIZES:
        raise unknown("size of vit", size, SIZES)
    if depth < 1 or patch < 1:
        raise Refusal(f"vit needs depth and patch of at least 1, got {depth} and {patch}")
    width, heads = SIZES[size]
    return ViT(num_classes, width, heads, depth, patch, dtype)
