"""Arrays on disk: `ROOT/SPLIT_images.npy` with `ROOT/SPLIT_labels.npy`, or `ROOT/SPLIT.npz`.

Splits are `train`, `test` and optionally `validation`, which becomes the split `holdout`; without it the
final `holdout` examples of train are that. `.npy` files are memory-mapped, but in a bucket: there
all are read into memory.
"""

import io
import os
import zipfile

import numpy as np
from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.data.source import Source, check_split, hold_out

FILES = {"train": "train", "holdout": "validation", "test": "test"}


def build(
    root: str | None = None,
    num_classes: int = 10,
    holdout: int = 0,
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
) -> Source:
    if root is None:
        raise Refusal("data 'arrays' needs --data_root=DIR with train_images.npy, train_labels.npy, …")
    splits = {}
    for name, file in FILES.items():
        found = _read(epath.Path(root), file)
        if found is not None:
            splits[name] = check_split(f"{root}: {name}", *found, num_classes)
    missing = [name for name in ("train", "test") if name not in splits]
    if missing:
        name = missing[0]
        raise Refusal(f"no {name}_images.npy and {name}_labels.npy, or {name}.npz, in {root}")
    shapes = {name: split.images.shape[1:] for name, split in splits.items()}
    if len(set(shapes.values())) > 1:
        raise Refusal(f"the images in {root} must have one shape, got {shapes}")
    channels = shapes["train"][-1]
    mean, std = (tuple(v) * channels if len(v) == 1 else tuple(v) for v in (mean, std))
    if not len(mean) == len(std) == channels:
        raise Refusal(
            f"config.data.mean and .std need 1 or {channels} values, one a channel, got {mean}, {std} "
            "(of pixels / 255 for uint8 images)"
        )
    if splits["train"].images.dtype == np.uint8 and max(map(abs, mean)) > 1:
        raise Refusal(f"config.data.mean is of pixels / 255 for uint8 images: in 0..1, got {mean}")
    if "holdout" in splits and holdout:
        raise Refusal(f"{root} has a validation file: config.data.holdout must be 0, got {holdout}")
    if "holdout" not in splits:
        train, size = splits["train"], len(splits["train"].labels)
        if not 0 < holdout < size:
            raise Refusal(
                f"{root} has no validation file: hold out part of its {size} training examples "
                f"with --config.data.holdout=N, 0 < N < {size} (it is {holdout})"
            )
        splits |= hold_out(train, holdout)
    return Source(splits, num_classes, mean, std)


def _read(root: epath.Path, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    parts = [root / f"{name}_{what}.npy" for what in ("images", "labels")]
    packed = root / f"{name}.npz"
    try:
        there = [part.exists() for part in parts]
        if any(there) and not all(there):
            raise Refusal(f"{root} has only one of {parts[0].name} and {parts[1].name}")
        if all(there):
            images, labels = map(_load, parts)
            return images, labels
        if packed.exists():
            with np.load(io.BytesIO(packed.read_bytes()), allow_pickle=False) as stored:
                return stored["images"], stored["labels"]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise Refusal(f"cannot read the {name} arrays in {root}: {error}") from error
    return None


def _load(path: epath.Path) -> np.ndarray:
    if "://" in os.fspath(path):
        return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    return np.load(path, mmap_mode="r", allow_pickle=False)
