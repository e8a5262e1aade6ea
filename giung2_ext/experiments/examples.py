"""Examples of a set, for a report: pictures where the data is at hand, and what classes are called."""

import functools
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import giung2_ext.data.sources
from giung2_ext.core import discovery
from giung2_ext.core.errors import Refusal
from giung2_ext.data import classes
from giung2_ext.experiments.judging import Dataset, open_dataset

SIDE = 96  # pixels, at most


def pictures(data_root: str | None) -> Callable[[Mapping[str, Any], str, int], bytes | None]:
    """A function that finds a small JPEG of an example, by what a ticket says of its data."""

    @functools.cache
    def opened(own: str, name: str) -> Dataset | None:
        name, _, split = name.partition(":")
        try:
            return open_dataset(name, json.loads(own), "", data_root, split or "test")
        except Refusal:
            return None

    def picture(meta: Mapping[str, Any], name: str, row: int) -> bytes | None:
        from giung2_ext.data import images

        dataset = opened(json.dumps(meta["data"], sort_keys=True), name)
        if dataset is None or row >= len(dataset.records):
            return None
        image = dataset.records[row].image
        return jpeg(images.decode(image) if isinstance(image, bytes) else image)

    return picture


def names(dataset: str) -> Sequence[str] | None:
    """What the classes of a set are called, by label (ImageNet's by wnid); None: unknown."""
    name = re.split("[:/]", dataset)[0]
    if name.startswith("imagenet"):
        return classes.WNIDS
    return discovery.constant(giung2_ext.data.sources, name, "NAMES")


def jpeg(pixels: np.ndarray) -> bytes:
    """Small, its values stretched over 0 to 255 where they are no bytes of a photograph."""
    from PIL import Image

    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    if pixels.dtype != np.uint8 or pixels.max() <= 16:
        low, high = float(pixels.min()), float(pixels.max())
        pixels = ((pixels - low) / max(high - low, 1e-9) * 255).astype(np.uint8)
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
