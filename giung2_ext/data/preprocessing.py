"""Augmentation of whole batches on the device; example i draws from fold_in(key, i)."""

from collections.abc import Callable

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
