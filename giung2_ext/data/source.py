"""The contract of a source: named splits of images and labels, and how pixels are standardised."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from giung2_ext.core.errors import Refusal, unknown


class Split(NamedTuple):
    images: np.ndarray  # NHWC, uint8 as stored, or float32
    labels: np.ndarray  # int32


class Source(NamedTuple):
    """`validation` is held out of train and never trained on; `test` is never selected on.

    Networks see (pixels / 255 - mean) / std, float images without the division.
    """

    splits: Mapping[str, Split]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def split(self, name: str) -> Split:
        if name not in self.splits:
            raise unknown("split", name, self.splits)
        return self.splits[name]


def check_split(name: str, images: np.ndarray, labels: np.ndarray, num_classes: int) -> Split:
    """The split in its stored types, or a refusal that names what is wrong with it."""
    if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
        raise Refusal(f"{name} images must be NHWC uint8 or float32, got {images.dtype}{images.shape}")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise Refusal(f"{name} labels must be {images.shape[0]} integers, got {labels.dtype}{labels.shape}")
    if not len(labels) or labels.min() < 0 or labels.max() >= num_classes:
        found = f"{labels.min()}..{labels.max()}" if len(labels) else "none"
        raise Refusal(f"{name} labels must be in 0..{num_classes - 1}, got {found}")
    return Split(images, labels.astype(np.int32))
