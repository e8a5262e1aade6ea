"""linen's Conv, whose gradients XLA can compute quickly on a CPU within a loop too.

XLA's fast convolutions on a CPU want (batch, rows, columns, channels) images and (rows, columns, in, out)
kernels. It rewrites other forms into this one, but not in the body of a loop, and there the gradients that
JAX derives are of other forms: one of 60 images of 8x8x64 took 391 ms in a loop and 10 ms outside it; as
they are written here 8 ms (two cores, 2026-11-21, jax 0.10.2). Elsewhere JAX's gradients are used. There is
no forward mode (`jax.jvp`): second derivatives are taken by `jax.grad` of `jax.grad`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

FORM = ("NHWC", "HWIO", "NHWC")
Pads = tuple[tuple[int, int], ...]


def _forward(images: Array, kernel: Array, strides: tuple[int, ...], pads: Pads) -> Array:
    return lax.conv_general_dilated(images, kernel, strides, pads, dimension_numbers=FORM)


def gradients(
    images: Array, kernel: Array, given: Array, strides: tuple[int, ...], pads: Pads
) -> tuple[Array, Array]:
    """Of images and kernel, from that of the result, by convolutions of the one form."""
    of_images, of_kernel = [], []
    for size, width, out, stride, (low, _) in zip(
        images.shape[1:3], kernel.shape[:2], given.shape[1:3], strides, pads, strict=True
    ):
        span = (out - 1) * stride + 1  # of the result's places, in the image
        of_images.append((width - 1 - low, size - span + low))
        of_kernel.append((low, width - 1 - size - low + span))
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    conv = functools.partial(lax.conv_general_dilated, dimension_numbers=FORM, window_strides=(1, 1))
    left = conv(given, turned, padding=of_images, lhs_dilation=strides)
    right = conv(
        images.transpose(3, 1, 2, 0),  # channels take the place of the batch
        given.transpose(1, 2, 0, 3),
        padding=of_kernel,
        rhs_dilation=strides,
    )
    return left, right.transpose(1, 2, 0, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(images: Array, kernel: Array, strides: tuple[int, ...], pads: Pads) -> Array:
    return _forward(images, kernel, strides, pads)


def _pull(strides: tuple[int, ...], pads: Pads, seen: tuple[Array, Array], given: Array) -> Any:
    def derived(images: Array, kernel: Array, given: Array) -> Any:
        return jax.vjp(lambda x, k: _forward(x, k, strides, pads), images, kernel)[1](given)

    canonical = functools.partial(gradients, strides=strides, pads=pads)
    return lax.platform_dependent(*seen, given, cpu=canonical, default=derived)


_convolve.defvjp(lambda x, k, strides, pads: (_forward(x, k, strides, pads), (x, k)), _pull)


def convolve(images: Array, kernel: Array, window_strides: Any, padding: Any, **options: Any) -> Array:
    """What linen's Conv calls: without dilation, groups or a precision of its own."""
    options = {name: value for name, value in options.items() if name != "dimension_numbers"}
    plain = dict(lhs_dilation=(1, 1), rhs_dilation=(1, 1), feature_group_count=1, precision=None)
    if any(value != plain.get(name) for name, value in options.items()):
        raise NotImplementedError(f"a convolution with {options}")
    strides = tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], strides, padding)
    return _convolve(images, kernel, strides, tuple(map(tuple, padding)))


class Conv(nn.Conv):
    conv_general_dilated: Any = convolve
