"""Losses per example; the caller averages over the examples that are real."""

import jax
import jax.numpy as jnp
from jax import Array


def cross_entropy(logits_BxC: Array, labels_B: Array, smoothing: float = 0.0) -> Array:
    """Cross entropy against (1 - s) one-hot + s / C, in float32."""
    logp_BxC = jax.nn.log_softmax(logits_BxC.astype(jnp.float32))
    nll_B = -jnp.take_along_axis(logp_BxC, labels_B[:, None], axis=1)[:, 0]
    if smoothing == 0.0:
        return nll_B
    return (1 - smoothing) * nll_B - smoothing * logp_BxC.mean(axis=1)


def correct(logits_BxC: Array, labels_B: Array) -> Array:
    """Top-1 hits as bools; equal logits count for the lowest class."""
    return jnp.argmax(logits_BxC, axis=1) == labels_B
