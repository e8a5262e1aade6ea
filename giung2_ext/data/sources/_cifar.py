"""The python batches of CIFAR-10 and CIFAR-100.

They are pickles of dicts of NumPy arrays; only the names that such a pickle needs are resolved, so a file
cannot run code.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from giung2_ext.core import pickles
from giung2_ext.core.errors import Refusal
from giung2_ext.data.sources._small import Published

SHAPE = (32, 32, 3)


def published(
    num_classes: int, folder: str, files: Mapping[str, tuple[str, ...]], label_key: bytes
) -> Published:
    title = f"CIFAR-{num_classes}"

    def read(paths: Sequence[epath.Path]) -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = zip(*(_batch(path, label_key, title) for path in paths), strict=True)
        images = np.empty(
            (sum(map(len, pixels)), *SHAPE), np.uint8
        )  # concatenate would keep channels first
        return np.concatenate(pixels, out=images), np.concatenate(labels)

    return Published(
        dataset=f"cifar{num_classes}",
        folders=(folder,),
        files=files,
        read=read,
        shape=SHAPE,
        num_classes=num_classes,
        fetch=f"unpack the python version of {title} (cifar-{num_classes}-python.tar.gz, "
        f"www.cs.toronto.edu/~kriz/cifar.html) so that DIR holds {folder}, and give --data_root=DIR",
    )


def _batch(path: epath.Path, label_key: bytes, title: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:
            batch = pickles.load(file, encoding="bytes")
        images = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return images, np.asarray(batch[label_key])
    except Exception as error:  # a damaged pickle raises a dozen kinds
        raise Refusal(f"{path} is not a {title} python batch: {error}") from error
