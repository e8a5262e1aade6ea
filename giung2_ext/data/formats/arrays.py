"""Pre-made arrays, `FOLDER/test_images.npy` (NHWC, uint8) with `FOLDER/test_labels.npy`, memory-mapped.

The original ImageNet suite keeps its evaluation sets so, as {Name}_x224, made by timm's evaluation
transform. Labels of a set of 200 classes are 0..199 there, in the order of the wnids.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.data.source import Example


class Arrays:
    def __init__(self, folder: epath.Path, classes: Sequence[int] | None, num_classes: int):
        self._folder = folder
        self._open()
        labels = np.asarray(self._labels)
        allowed = num_classes if classes is None else len(classes)
        if self._images.ndim != 4 or self._images.dtype != np.uint8 or self._images.shape[3] != 3:
            found = f"{self._images.dtype}{self._images.shape}"
            raise Refusal(f"{folder}/test_images.npy must be uint8 (N, height, width, 3), got {found}")
        if labels.shape != self._images.shape[:1] or labels.dtype.kind not in "iu" or not labels.size:
            raise Refusal(
                f"{folder}/test_labels.npy must be {len(self._images)} integers, "
                f"got {labels.dtype}{labels.shape}"
            )
        if labels.min() < 0 or labels.max() >= allowed:
            raise Refusal(
                f"{folder}/test_labels.npy must be in 0..{allowed - 1}, got {labels.min()}..{labels.max()}"
            )
        self._of = np.arange(num_classes) if classes is None else np.asarray(classes)
        self.shape = self._images.shape[1:]

    def _open(self) -> None:
        if "://" in os.fspath(self._folder):
            raise Refusal(
                f"{self._folder}: arrays are memory-mapped, which is not done in an object store: copy "
                "them to a disk, or read the set as folders or TFRecord (--config.data.form=folders|tfds)"
            )
        try:
            self._images, self._labels = (
                np.load(self._folder / f"test_{what}.npy", mmap_mode="r", allow_pickle=False)
                for what in ("images", "labels")
            )
        except (ValueError, EOFError) as error:
            raise Refusal(f"cannot read the arrays in {self._folder}: {error}") from error

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        label = int(self._of[self._labels[index]])
        return Example(np.asarray(self._images[index]), label, f"{self._folder.name}/{index}")

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_images", "_labels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()  # mapped again: never copied


def find(root: epath.Path, name: str) -> epath.Path | None:
    """ROOT/NAME_x224, if it has both arrays."""
    folder = root / f"{name}_x224"
    there = [(folder / f"test_{what}.npy").exists() for what in ("images", "labels")]
    if any(there) and not all(there):
        raise Refusal(f"{folder} has only one of test_images.npy and test_labels.npy")
    return folder if all(there) else None
