"""CIFAR-10 from its authors' python batches (Krizhevsky 2009), in ROOT or ROOT/cifar-10-batches-py.

The batches are pickles of dicts of NumPy arrays; only the names that such a pickle needs are resolved,
so a file cannot run code. The last `holdout` of the 50,000 training images, which are in random order,
are the split `holdout`. Default mean and std are those of the training pixels.
"""

import codecs
import pickle
from typing import Any

import numpy as np
from etils import epath
from numpy._core import multiarray

from giung2_ext.core.errors import Refusal
from giung2_ext.data.source import Source, Split, check_split

FOLDER = "cifar-10-batches-py"
TRAIN, TEST = [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]
SAFE = {
    ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in SAFE:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return SAFE[module, name]


def _read(path: epath.Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:
            batch = _Unpickler(file, encoding="bytes").load()
        images = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return images, np.asarray(batch[b"labels"])
    except FileNotFoundError as error:
        raise Refusal(f"{path} is missing") from error
    except Exception as error:  # a damaged pickle raises a dozen kinds
        raise Refusal(f"{path} is not a CIFAR-10 python batch: {error}") from error


def build(
    root: str | None = None,
    holdout: int = 5000,
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465),
    std: tuple[float, ...] = (0.2470, 0.2435, 0.2616),
) -> Source:
    if root is None:
        raise Refusal(f"data 'cifar10' needs --data_root=DIR with {FOLDER}/data_batch_1, …, test_batch")
    folder = epath.Path(root)
    if (folder / FOLDER).exists():
        folder = folder / FOLDER
    missing = [name for name in (*TRAIN, *TEST) if not (folder / name).exists()]
    if missing:
        raise Refusal(
            f"no {', '.join(missing)} in {folder}: unpack the python version of CIFAR-10 "
            f"(cifar-10-python.tar.gz) so that {root} holds {FOLDER}"
        )
    splits = {}
    for name, files in (("train", TRAIN), ("test", TEST)):
        images, labels = zip(*(_read(folder / file) for file in files), strict=True)
        splits[name] = check_split(f"{folder}: {name}", np.concatenate(images), np.concatenate(labels), 10)
    train, size = splits["train"], len(splits["train"].labels)
    if not 0 < holdout < size:
        raise Refusal(f"config.data.holdout must be in 1..{size - 1}, got {holdout}")
    if not len(mean) == len(std) == 3:
        raise Refusal(f"config.data.mean and .std need 3 channels, got {mean}, {std}")
    splits["train"] = Split(train.images[:-holdout], train.labels[:-holdout])
    splits["holdout"] = Split(train.images[-holdout:], train.labels[-holdout:])
    return Source(splits, 10, tuple(mean), tuple(std))
