"""The resident feed: a small dataset lives on the device as stored and batches are cut inside jit.

A batch is a pure function of (key, step): epoch e is a fresh permutation drawn from (key, e), batch b
of it the b-th slice, and the fewer than `batch_size` examples left over are dropped (others in every
epoch). Any step is reached in O(1), and augmentation is keyed by step and place in the global batch.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from giung2_ext.core.errors import Refusal
from giung2_ext.data import preprocessing
from giung2_ext.data.source import Split

Batch = Mapping[str, Array]

ORDER, PIXELS = 0, 1  # what a key is folded with first: an epoch and a step never share bits


def _draw(key: Array, use: int, number: Array) -> Array:
    return jax.random.fold_in(jax.random.fold_in(key, use), number)


class Feed(NamedTuple):
    arrays: dict[str, np.ndarray]
    """What the compiled step is given: the whole split."""
    steps_per_epoch: int
    order: Callable[[Array, Array], Array]
    """(key, epoch) -> a permutation of the split"""
    batch: Callable[[Mapping[str, Array], Array, Array, Array], Batch]
    """(arrays, order, key, step) -> images, labels, valid"""


def make_feed(split: Split, batch_size: int, augment: str = "none") -> Feed:
    size = len(split.labels)
    if not 1 <= batch_size <= size:
        raise Refusal(f"batch_size must be in 1..{size} (the training examples), got {batch_size}")
    transform = preprocessing.augmentation(augment)
    per_epoch = size // batch_size

    def order(key: Array, epoch: Array) -> Array:
        return jax.random.permutation(_draw(key, ORDER, epoch), size)

    def batch(arrays: Mapping[str, Array], order: Array, key: Array, step: Array) -> Batch:
        start = (step % per_epoch) * batch_size
        rows = jax.lax.dynamic_slice(order, (start,), (batch_size,))
        images = transform(_draw(key, PIXELS, step), arrays["images"][rows])
        valid = jnp.ones(batch_size, bool)
        return {"images": images, "labels": arrays["labels"][rows], "valid": valid}

    arrays = {"images": split.images, "labels": split.labels}
    return Feed(arrays, per_epoch, order, batch)


def evaluation_batches(split: Split, batch_size: int, multiple: int = 1) -> dict[str, np.ndarray]:
    """The whole split as (batches, rows, ...), the last batch padded; `valid` marks the real.

    Rows are `batch_size`, or the size of a smaller split, rounded up to a `multiple` (of devices).
    """
    size = len(split.labels)
    batch_size = -(-min(batch_size, size) // multiple) * multiple
    batches = -(-size // batch_size)
    padding = batches * batch_size - size

    def cut(array: np.ndarray) -> np.ndarray:
        padded = np.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))
        return padded.reshape(batches, batch_size, *array.shape[1:])

    return {
        "images": cut(split.images),
        "labels": cut(split.labels),
        "valid": cut(np.ones(size, bool)),
    }
