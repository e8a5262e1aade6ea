"""Functions of the step: learning rates, and fractions kept as exact integers.

The recipe of the ImageNet suite: linear from 0 over floor(.1 n) steps, then half a cosine to 0 over
floor(.9 n); `constant` has no warm-up. A rate is asked for the number of batches consumed before.
"""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

Schedule = Callable[[Array], Array]


def constant(rate: float) -> Schedule:
    return lambda step: jnp.float32(rate)


def warmup_cosine(rate: float, steps: int, warmup: float = 0.1) -> Schedule:
    rise = math.floor(warmup * steps)
    fall = max(1, math.floor((1 - warmup) * steps))

    def at(step: Array) -> Array:
        now = step.astype(jnp.float32)
        past = jnp.clip((now - rise) / fall, 0.0, 1.0)
        down = rate * 0.5 * (1 + jnp.cos(jnp.pi * past))
        return jnp.where(step < rise, rate * now / max(1, rise), down)

    return at


def warmup_stairs(
    rate: float, steps: int, warmup: float, milestones: Sequence[int], factor: float
) -> Schedule:
    """Linear from 0 over floor(warmup n), then a rate that is multiplied by `factor` at every milestone."""
    rise = math.floor(warmup * steps)
    rates = np.array([rate * factor**passed for passed in range(len(milestones) + 1)], np.float32)
    starts = np.array(sorted(milestones), np.int32)

    def at(step: Array) -> Array:
        passed = jnp.sum(jnp.asarray(starts) <= step, dtype=jnp.int32)
        scale = jnp.minimum(step.astype(jnp.float32) / max(1, rise), 1) if rise else jnp.float32(1)
        return jnp.asarray(rates)[passed] * scale

    return at


FALLS: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cubic": lambda done: (1 - done) ** 3,
}
"""From 1 to 0, or not at all, of the part that is done: what is dropped at an update of the mask"""


def excess(schedule: str, density: float, done: float) -> float:
    """Which part of the weights that are to go is still there when `done` of the pruning is.

    `exponential` prunes the same fraction of what is left at every update, down to `density` of a dense
    network; the others fall as their name says (`cubic`: Zhu & Gupta 2017, https://arxiv.org/abs/1710.01878).
    """
    if schedule == "exponential":
        return (density**done - density) / (1 - density) if density < 1 else 0.0
    return FALLS[schedule](done)


def to_q31(fraction: float) -> int:
    """A fraction in [0, 1) as a whole number of 2^-31, rounded up so that .3 of 10 is 3."""
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), got {fraction}")
    return min(math.ceil(fraction * 2**31), 2**31 - 1)


def fraction_of(count: Array, q31: Array) -> Array:
    """floor(count * q31 / 2^31) in exact integers; `count` is a non-negative int32.

    The 62-bit product is formed from 16-bit limbs in uint32: float32 would lose counts over 2^24.
    """
    n, a = count.astype(jnp.uint32), q31.astype(jnp.uint32)
    low, half = jnp.uint32(0xFFFF), jnp.uint32(16)
    n1, n0, a1, a0 = n >> half, n & low, a >> half, a & low
    middle = n0 * a1 + n1 * a0 + ((n0 * a0) >> half)  # < 2^32 because n, a < 2^31
    return (((n1 * a1) << jnp.uint32(1)) + (middle >> jnp.uint32(15))).astype(jnp.int32)
