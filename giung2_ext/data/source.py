"""The contract of a source: named splits of images and labels, and how pixels are standardised.

A split is either resident (`Split`), whole in memory, or records that are read one by one and streamed.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from giung2_ext.core.errors import Refusal, unknown


class Missing(Refusal):
    """A set that is not where it was looked for."""


class Example(NamedTuple):
    image: bytes | np.ndarray  # an encoded file, or HWC pixels
    label: int
    name: str  # of the file, to speak of it


class Records(Protocol):
    """A split on disk. Any number of threads may read it, and it can be sent to other processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Split:
    """A split in memory."""

    images: np.ndarray  # NHWC, uint8 as stored, or float32
    labels: np.ndarray  # int32

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], int(self.labels[index]), str(index))


@dataclasses.dataclass(frozen=True)
class Part:
    """Consecutive records of a split on disk."""

    records: Records
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Example:
        return self.records[range(self.start, self.stop)[index]]


class Source(NamedTuple):
    """`holdout` is cut off train and never trained on; `test` is never selected on.

    Networks see (pixels / 255 - mean) / std, float images without the division. A source that is streamed
    says in `about` what it found, and gives an `image_size`, to which a split's pipeline brings its images;
    only `classes` occur among the labels, if it names them.
    """

    splits: Mapping[str, Split | Records]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int | None = None
    pipelines: Mapping[str, str] = {}
    classes: tuple[int, ...] | None = None
    answers: Callable[[int], tuple[int, ...]] | None = None
    """All right answers to the i-th example of the test split, where there may be several"""
    about: Mapping[str, str] = {}
    also: Mapping[str, str] = {}
    """Other names of splits, as the set's authors call them"""

    def canonical(self, name: str) -> str:
        name = self.also.get(name, name)
        if name not in self.splits and name in self.about:
            raise Refusal(self.about[name])
        if name not in self.splits:
            raise unknown("split", name, [*self.splits, *self.also])
        return name

    def split(self, name: str) -> Split | Records:
        return self.splits[self.canonical(name)]

    def pipeline(self, name: str) -> str:
        return self.pipelines.get(self.canonical(name), "none")

    @property
    def image_shape(self) -> tuple[int, ...]:
        if self.image_size is not None:
            return (self.image_size, self.image_size, 3)
        split = next(iter(self.splits.values()))
        assert isinstance(split, Split)
        return split.images.shape[1:]


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


def hold_out(train: Split, count: int) -> dict[str, Split]:
    """Its last `count` examples as the split `holdout`, the others as `train`."""
    images, labels = train.images, train.labels
    parts = {"train": slice(None, -count), "holdout": slice(-count, None)}
    return {name: Split(images[part], labels[part]) for name, part in parts.items()}
