"""What several networks share: BatchNorm, activations, poolings that fit any image, paddings.

`BatchNorm` takes its statistics over groups of `group_size` consecutive examples (0: the whole
batch), so they belong to the recipe. Naming and defaults are linen's: parameters `scale` and `bias`,
`batch_stats` `mean` and `var` (biased), moving averages with `momentum`. One step makes one moving
average update with the mean over its groups; averaging the updated statistics of micro-batches is
the same update, because it is linear in them. Arithmetic is float32, or the input's float64; the result
has the input's type.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from giung2_ext.core import ste
from giung2_ext.core.errors import Refusal, unknown

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": nn.relu, "binary": ste.binary}
PADDINGS = ("same", "torch")
LAYERS = {"channels": "convolutions", "hidden": "hidden layers"}  # that an option has the widths of


class BatchNorm(nn.Module):
    group_size: int = 0
    scale_init: Callable[..., Any] = nn.initializers.ones
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        channels = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(channels))
        var = self.variable("batch_stats", "var", lambda: jnp.ones(channels))
        if not train:
            return _normalise(x, mean.value, var.value, scale, bias, self.epsilon)

        size = self.group_size or x.shape[0]
        if x.shape[0] % size:
            raise ValueError(f"a batch of {x.shape[0]} does not divide into BatchNorm groups of {size}")
        groups = x.reshape(x.shape[0] // size, size, *x.shape[1:])
        axes = tuple(range(1, groups.ndim - 1))
        exact = groups.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean_g = exact.mean(axes, keepdims=True)
        square_g = jnp.square(exact).mean(axes, keepdims=True)
        var_g = jnp.maximum(square_g - jnp.square(mean_g), 0)  # both moments in one pass over x
        if not self.is_initializing():
            keep = self.momentum
            mean.value = keep * mean.value + (1 - keep) * mean_g.reshape(-1, *channels).mean(0)
            var.value = keep * var.value + (1 - keep) * var_g.reshape(-1, *channels).mean(0)
        return _normalise(groups, mean_g, var_g, scale, bias, self.epsilon).reshape(x.shape)


def _normalise(x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """Statistics and parameters are vectors over the last axis, or have x's number of axes."""
    mean, var, scale, bias = (_last_axis(vector, x.ndim) for vector in (mean, var, scale, bias))
    exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = (exact - mean) * (jax.lax.rsqrt(var + epsilon) * scale) + bias
    return y.astype(x.dtype)


def _last_axis(vector: Array, ndim: int) -> Array:
    return vector if vector.ndim == ndim else vector.reshape((1,) * (ndim - 1) + (-1,))


def activation(name: str) -> Callable[[Array], Array]:
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def widened(name: str, channels: Sequence[int], width: float) -> tuple[int, ...]:
    """Channels times `width`, to the nearest; a width that leaves a layer without any is refused."""
    found = tuple(round(count * width) for count in channels)
    if min(found) < 1:
        raise Refusal(
            f"{name} with width {width:g} has a layer of {min(channels)} * {width:g} channels: none"
        )
    return found


class Widths:
    """How wide layers of a kind are, in the order in which they are made: as planned, or as `given`."""

    def __init__(self, option: str, given: Sequence[int]) -> None:
        self.option, self.given, self.made = option, tuple(given), 0
        if min(self.given, default=1) < 1:
            raise Refusal(f"{option} (config.model.{option}) are at least 1 each, got {self.given}")

    def next(self, planned: int) -> int:
        self.made += 1
        return self.given[self.made - 1] if self.made <= len(self.given) else planned

    def check(self) -> None:
        """Refuses another number of them than the network has."""
        if self.given and len(self.given) != self.made:
            raise Refusal(
                f"this network has {self.made} {LAYERS[self.option]}, and {self.option} "
                f"(config.model.{self.option}) are those of all of them; got {len(self.given)}: "
                f"{self.given}"
            )


def chosen(option: str, given: Sequence[int], planned: Sequence[int]) -> tuple[int, ...]:
    """How wide the layers of a whole plan are: as it says, or as `given` instead."""
    widths = Widths(option, given)
    found = tuple(widths.next(width) for width in planned)
    widths.check()
    return found


def same_channels(x: Array, y: Array) -> None:
    """Refuses a sum that would repeat one channel, or cannot be."""
    if x.shape != y.shape:
        raise Refusal(
            f"a block and its shortcut are added and need equal channels (config.model.channels); got "
            f"{y.shape[-1]} and {x.shape[-1]}"
        )


def max_pool(x: Array, size: int) -> Array:
    """Of stride 2; left out where the image is smaller than the window, so small images keep a pixel."""
    return x if min(x.shape[1:3]) < size else nn.max_pool(x, (size, size), (2, 2))


def adaptive_mean(x: Array, size: int) -> Array:
    """PyTorch's adaptive average pooling: `size` windows a side that cover the image, and overlap
    where they must; a single pixel is repeated."""
    for axis in (1, 2):
        n = x.shape[axis]
        bounds = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
        means = [jax.lax.slice_in_dim(x, *bound, axis=axis).mean(axis) for bound in bounds]
        x = jnp.stack(means, axis)
    return x


def pads(padding: str, size: int) -> str | list[tuple[int, int]]:
    """What linen calls it. With a stride `same` pads more at the end, `torch` equally on both sides."""
    if padding not in PADDINGS:
        raise unknown("padding", padding, PADDINGS)
    return "SAME" if padding == "same" else [(size // 2, size // 2)] * 2


def torch_uniform(fan_in: int) -> Callable[..., Array]:
    """PyTorch's default for a linear layer's kernel and bias: uniform within 1 / sqrt(fan in)."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
