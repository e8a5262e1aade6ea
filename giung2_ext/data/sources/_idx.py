"""The idx files of MNIST and of Fashion-MNIST, which has the same names for them.

An idx file is two zero bytes, a type (8: uint8), the number of dimensions, each of them as a big-endian
uint32, and the values. It may be gzipped, whatever its name says: some browsers unpack what they fetch.
"""

import gzip
import zlib
from collections.abc import Sequence

import numpy as np
from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.data.sources._small import Published

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SHAPE = (28, 28, 1)


def published(dataset: str, title: str, page: str) -> Published:
    return Published(
        dataset=dataset,
        folders=(dataset, f"{title.replace('-', '')}/raw"),  # the latter is torchvision's
        files=FILES,
        read=read,
        shape=SHAPE,
        num_classes=10,
        fetch=f"put the four files of {title} ({page}), gzipped or not, into a folder DIR/{dataset} "
        "(its name alone tells MNIST from Fashion-MNIST) and give --data_root=DIR",
        spellings=spellings,
        told_by_name=True,
    )


def spellings(name: str) -> Sequence[str]:
    return [f"{each}{end}" for each in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]


def read(paths: Sequence[epath.Path]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = _values(paths[0], SHAPE[:2]), _values(paths[1], ())
    if len(images) != len(labels):
        raise Refusal(
            f"{paths[0]} has {len(images)} images and {paths[1]} {len(labels)} labels: "
            "they are not of one set; fetch both again"
        )
    return images[..., None], labels


def _values(path: epath.Path, shape: tuple[int, ...]) -> np.ndarray:
    """Of a file of arrays of that shape."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise Refusal(f"{path} is damaged ({error}): fetch it again") from error
    magic, start = bytes([0, 0, 8, 1 + len(shape)]), 4 * (2 + len(shape))
    if data[:4] != magic or len(data) < start:
        found = f"only {len(data)} bytes" if len(data) < start else data[:4].hex()
        raise Refusal(
            f"{path} must be an idx file of {1 + len(shape)} dimensions of uint8 (it begins with "
            f"{magic.hex()}), got {found}: fetch it again"
        )
    count, *found = np.frombuffer(data, ">u4", 1 + len(shape), offset=4).tolist()
    if tuple(found) != shape:
        raise Refusal(f"{path} must have images of {shape}, got {tuple(found)}: it is of another set")
    expected = start + count * int(np.prod(shape))
    if len(data) != expected:
        raise Refusal(
            f"{path} must have {expected} bytes for its {count} items, got {len(data)}: fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(count, *shape)
