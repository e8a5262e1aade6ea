"""The UCI handwritten digits that ship with the package: 1,797 images of 8x8, values 0..16.

Alpaydin & Kaynak 1998, CC BY 4.0. Fixed splits: 1,200 train, 200 holdout, 397 test.
"""

import pathlib

import numpy as np

from giung2_ext.data.source import Source, check_split

FILE = pathlib.Path(__file__).with_name("digits.npz")
CLASSES_AND_SHAPE = 10, (8, 8, 1)
MEAN, STD = (0.0,), (16 / 255,)  # x / 16
SPLITS = {"train": slice(0, 1200), "holdout": slice(1200, 1400), "test": slice(1400, None)}


def build(root: str | None = None) -> Source:
    """`root` is not needed."""
    with np.load(FILE) as stored:
        images, labels = stored["images"], stored["labels"]
    splits = {name: check_split(name, images[part], labels[part], 10) for name, part in SPLITS.items()}
    return Source(splits, num_classes=10, mean=MEAN, std=STD)
