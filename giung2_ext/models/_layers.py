"""Layers whose result must not depend on how many chips run them.

`BatchNorm` takes its statistics over groups of `group_size` consecutive examples (0: the whole
batch), so they belong to the recipe. Naming and defaults are linen's: parameters `scale` and `bias`,
`batch_stats` `mean` and `var` (biased), moving averages with `momentum`. One step makes one moving
average update with the mean over its groups; averaging the updated statistics of micro-batches is
the same update, because it is linear in them.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


class BatchNorm(nn.Module):
    group_size: int = 0
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(channels))
        var = self.variable("batch_stats", "var", lambda: jnp.ones(channels))
        if not train:
            factor = scale * jax.lax.rsqrt(var.value + self.epsilon)
            centred = x.astype(jnp.float32) - _last_axis(mean.value, x.ndim)
            return centred * _last_axis(factor, x.ndim) + _last_axis(bias, x.ndim)

        size = self.group_size or x.shape[0]
        if x.shape[0] % size:
            raise ValueError(f"a batch of {x.shape[0]} does not divide into BatchNorm groups of {size}")
        groups = x.astype(jnp.float32).reshape(x.shape[0] // size, size, *x.shape[1:])
        axes = tuple(range(1, groups.ndim - 1))
        mean_g = groups.mean(axes, keepdims=True)
        var_g = groups.var(axes, keepdims=True)
        normalised = (groups - mean_g) * jax.lax.rsqrt(var_g + self.epsilon)
        if not self.is_initializing():
            keep = self.momentum
            mean.value = keep * mean.value + (1 - keep) * mean_g.reshape(-1, *channels).mean(0)
            var.value = keep * var.value + (1 - keep) * var_g.reshape(-1, *channels).mean(0)
        return normalised.reshape(x.shape) * _last_axis(scale, x.ndim) + _last_axis(bias, x.ndim)


def _last_axis(vector: Array, ndim: int) -> Array:
    return vector.reshape((1,) * (ndim - 1) + (-1,))
