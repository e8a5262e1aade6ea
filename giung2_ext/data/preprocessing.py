"""Augmentation of whole batches on the device; example i draws from fold_in(key, i)."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array

from giung2_ext.core.errors import unknown

Transform = Callable[[Array, Array], Array]


def _crop(key: Array, image_HWC: Array) -> Array:
    """Zero-pads each side by an eighth and cuts the size back out at a random place."""
    pad = image_HWC.shape[0] // 8, image_HWC.shape[1] // 8
    padded = jnp.pad(image_HWC, [(p, p) for p in pad] + [(0, 0)])
    most = jnp.array([2 * p + 1 for p in pad])
    corner = jax.random.randint(key, (2,), 0, most)
    return jax.lax.dynamic_slice(padded, (corner[0], corner[1], 0), image_HWC.shape)


def _crop_flip(key: Array, image_HWC: Array) -> Array:
    crop_key, flip_key = jax.random.split(key)
    image = _crop(crop_key, image_HWC)
    return jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)


EXAMPLE_TRANSFORMS = {"crop": _crop, "crop_flip": _crop_flip}


def augmentation(name: str) -> Transform:
    """(key, images_BHWC) -> images; `none`, `crop` or `crop_flip`."""
    if name == "none":
        return lambda key, images: images
    if name not in EXAMPLE_TRANSFORMS:
        raise unknown("augmentation", name, ["none", *EXAMPLE_TRANSFORMS])
    one = EXAMPLE_TRANSFORMS[name]

    def every(key: Array, images: Array) -> Array:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(images.shape[0]))
        return jax.vmap(one)(keys, images)

    return every


def mixup(alpha: float, key: Array, batch: Mapping[str, Array]) -> dict[str, Array]:
    """Zhang et al. 2018, https://arxiv.org/abs/1710.09412, over neighbours of a shuffled batch.

    Rows 2j and 2j + 1 are each other's partner, so nothing moves between devices. A row keeps at least half
    of itself: `share`, drawn from Beta(alpha, alpha) and folded; the rest is its partner's, label and all.
    """

    def swap(x: Array) -> Array:
        return x.reshape(x.shape[0] // 2, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)

    images, labels = batch["images"], batch["labels"]
    share = jax.random.beta(key, alpha, alpha, labels.shape)
    share = jnp.maximum(share, 1 - share)
    kept = share.reshape(-1, *(1,) * (images.ndim - 1))
    scale = 255.0 if jnp.issubdtype(images.dtype, jnp.integer) else 1.0
    floats = images.astype(jnp.float32) / scale  # as the network takes them when they are no integers
    mixed = kept * floats + (1 - kept) * swap(floats)
    return {**batch, "images": mixed, "partners": swap(labels), "share": share}
