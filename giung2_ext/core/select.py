"""Exact top-k over a whole tree: integer k, ties to the lowest flat index, inside jit, any sharding.

A float32's bits, read as an unsigned integer with the sign folded in, order as the floats do. The
threshold is found by bisection over those 32 bits and the tie rule by bisection over the flat index:
only counts cross devices (all-reduces), nothing is sorted, gathered or accumulated in float.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from giung2_ext.core import trees

Tree = Any


def order_keys(scores: Array, among: Array | None = None) -> Array:
    """uint32 keys in the order of float32 `scores`; 0, below every key, where not `among`."""
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
    top, infinity = jnp.uint32(1 << 31), jnp.uint32(0x7F800000)
    size = bits & ~top
    bits = jnp.where(size == 0, jnp.uint32(0), bits)  # -0.0 ties with 0.0
    keys = jnp.where(bits >= top, ~bits, bits | top)
    keys = jnp.where(size > infinity, jnp.uint32(1), keys)  # a NaN ranks last, whatever its sign
    return keys if among is None else jnp.where(among, keys, jnp.uint32(0))


def flat_index(shape: tuple[int, ...], offset: int = 0) -> Array:
    """Row-major position of every element, built from iotas so that it shards like its array."""
    index = jnp.full(shape, offset, jnp.int32)
    stride = 1
    for axis in reversed(range(len(shape))):
        index = index + stride * jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        stride *= shape[axis]
    return index


def _count(conditions: list[Array]) -> Array:
    return sum((jnp.sum(c, dtype=jnp.int32) for c in conditions), jnp.int32(0))


def threshold(keys: Tree, k: Array | int) -> Array:
    """The largest key that at least `k` of all keys reach (the k-th largest key)."""
    leaves = trees.present(keys)

    def set_bit(i: Array, low: Array) -> Array:
        trial = low | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(_count([leaf >= trial for leaf in leaves]) >= k, trial, low)

    return jax.lax.fori_loop(0, 32, set_bit, jnp.uint32(0))


def top_k(scores: Tree, k: Array | int, among: Tree | None = None) -> Tree:
    """Bool tree with exactly min(k, candidates) True: the k highest `scores` of the whole tree.

    `among` restricts the candidates. Equal scores are taken in flattening order, then by index.
    """
    if among is None:
        keys = trees.map_present(order_keys, scores)
    else:
        keys = trees.map_present(order_keys, scores, among)
    leaves = trees.present(keys)
    k = jnp.minimum(jnp.asarray(k, jnp.int32), _count([leaf > 0 for leaf in leaves]))
    cut = threshold(keys, k)
    needed = k - _count([leaf > cut for leaf in leaves])  # how many of the tied to take

    sizes = [leaf.size for leaf in leaves]
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]
    if sum(sizes) >= 2**31:
        raise ValueError("top_k counts in int32: at most 2**31 - 1 scores")
    indices = [flat_index(leaf.shape, offset) for leaf, offset in zip(leaves, offsets, strict=True)]
    tied = [leaf == cut for leaf in leaves]
    bits = sum(sizes).bit_length()

    def raise_end(i: Array, end: Array) -> Array:
        trial = end + (jnp.int32(1 << (bits - 1)) >> i)
        fits = _count([t & (at < trial) for t, at in zip(tied, indices, strict=True)]) <= needed
        return jnp.where(fits, trial, end)

    end = jax.lax.fori_loop(0, bits, raise_end, jnp.int32(0))
    chosen = [(leaf > cut) | (t & (at < end)) for leaf, t, at in zip(leaves, tied, indices, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(keys), chosen)


def top_k_each(scores: Tree, counts: Tree, among: Tree | None = None) -> Tree:
    """`top_k` within every leaf by itself, with that leaf's own count."""
    if among is None:
        return trees.map_present(lambda s, k: top_k(s, k), scores, counts)
    return trees.map_present(lambda s, k, a: top_k(s, k, a), scores, counts, among)
