"""Images as files: `<class folder>/<file>`, and ImageNet's flat validation folder.

Class folders are wnids (naming "wnid"), or numbers whose *value* is the label (naming "number":
ImageNetV2; as text 10 sorts before 2). ILSVRC2012_val_… in no class folder has its label from the list
that tensorflow_datasets ships. Records are in one mixed order, by a hash of the file's base name: any
stretch of them is a random sample of all classes, the same from folders, archives and prepared sets.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import importlib.util
import itertools
import os
import pathlib
import re
from collections.abc import Iterable

import numpy as np
from etils import epath

from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.data import classes
from giung2_ext.data.source import Example

EXTENSIONS = (".jpeg", ".jpg", ".png")
NAMINGS = ("wnid", "number")
FLAT = re.compile(r"ILSVRC2012_val_(\d{8})\.", re.IGNORECASE)
LABELS_FILE = "datasets/imagenet2012/validation_labels.txt"
LISTERS = 16  # folders listed at once: on network disks each takes a round trip


@dataclasses.dataclass(frozen=True)
class Names:
    """Many strings as one: 1.3 million file names are 40 MB, and pickle as fast as that is copied."""

    text: bytes
    ends: np.ndarray  # int64

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return self.text[start : self.ends[index]].decode("utf-8", "surrogateescape")


def pack(names: Iterable[str]) -> Names:
    encoded = [name.encode("utf-8", "surrogateescape") for name in names]
    return Names(b"".join(encoded), np.cumsum([len(name) for name in encoded], dtype=np.int64))


@dataclasses.dataclass(frozen=True)
class Listing:
    """Image files in the mixed order; `others` are files that were passed over."""

    names: Names
    labels: np.ndarray  # int32
    others: int = 0

    def __len__(self) -> int:
        return len(self.names)


@dataclasses.dataclass(frozen=True)
class Folder:
    """Records of the image files below a folder, local or in a bucket."""

    root: str
    listing: Listing

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        name = self.listing.names[index]
        if _local(self.root):
            with open(f"{self.root}/{name}", "rb") as file:
                data = file.read()
        else:
            data = (epath.Path(self.root) / name).read_bytes()
        return Example(data, int(self.listing.labels[index]), name)


def read(root: epath.PathLike, naming: str = "wnid") -> Folder:
    """Records of `root`, or of the one folder in it that holds the class folders."""
    root = _class_root(os.fspath(root).rstrip("/"))
    return Folder(root, list_images(root, naming))


def list_images(root: epath.PathLike, naming: str = "wnid") -> Listing:
    """The images right in `root` and in the folders right in it."""
    if naming not in NAMINGS:
        raise unknown("naming of class folders", naming, NAMINGS)
    root = os.fspath(root)
    top = _entries(root)
    found = {"": [name for name in top if is_image(name)]}
    below = [name for name in top if not is_image(name) and not _hidden(name)]
    with concurrent.futures.ThreadPoolExecutor(LISTERS) as pool:
        are_folders = pool.map(lambda name: (epath.Path(root) / name).is_dir(), below)
        below = list(itertools.compress(below, are_folders))
        listed = list(pool.map(lambda name: _entries(f"{root}/{name}"), below))
    for name, files in zip(below, listed, strict=True):
        found[f"{name}/"] = [file for file in files if is_image(file)]
    paths = [f"{folder}{file}" for folder, files in found.items() for file in files]
    labels = _labels(found, naming, root)
    order = mixed_order(paths, root)
    others = len(top) - len(below) + sum(map(len, listed)) - len(paths)
    if not paths:
        raise nothing_found(root, naming, others)
    return Listing(pack(paths[i] for i in order), labels[order], others)


def _labels(found: dict[str, list[str]], naming: str, root: str) -> np.ndarray:
    labels: list[np.ndarray] = []
    for folder, files in found.items():
        if folder and files:
            labels.append(np.full(len(files), label_of(folder[:-1], files[0], naming, root), np.int32))
        elif files:
            labels.append(np.array([label_of("", file, naming, root) for file in files], np.int32))
    return np.concatenate(labels) if labels else np.zeros(0, np.int32)


def label_of(folder: str, file: str, naming: str, place: str) -> int:
    """The label of an image by the name of its folder, or by its own in the flat validation set."""
    try:
        if naming == "number":
            return _number(folder)
        flat = FLAT.match(file)
        if flat and not classes.is_wnid(folder):
            return _flat_label(flat)
        return classes.label_of(folder)
    except Refusal as error:
        raise Refusal(f"{error} ({f'{folder}/{file}'.lstrip('/')} in {place})") from None


def _number(folder: str) -> int:
    if not (folder.isascii() and folder.isdigit() and int(folder) < 1000):
        raise Refusal(f"folder {folder!r} is no label: expected folders named by numbers 0 to 999")
    return int(folder)


def _flat_label(flat: re.Match[str]) -> int:
    labels = validation_labels()
    number = int(flat[1])
    if not 1 <= number <= len(labels):
        raise Refusal(f"validation images are numbered 1 to {len(labels)}, got {number}")
    return int(labels[number - 1])


@functools.cache
def validation_labels() -> np.ndarray:
    """Labels of ILSVRC2012_val_00000001 and on, as shipped with tensorflow_datasets (not imported)."""
    spec = importlib.util.find_spec("tensorflow_datasets")
    places = (spec.submodule_search_locations or []) if spec else []
    for place in places:
        path = pathlib.Path(place) / LABELS_FILE
        if path.is_file():
            wnids = path.read_text(encoding="ascii").split()
            return np.array([classes.label_of(wnid) for wnid in wnids], np.int32)
    raise Refusal(
        "validation images without class folders need the labels that tensorflow_datasets ships "
        f"({LABELS_FILE}): install tensorflow-datasets, or sort the images into wnid folders"
    )


def mixed_order(paths: list[str], place: str) -> np.ndarray:
    """Positions of `paths` by the hash of the base name, then by path; no path may be there twice."""
    encoded = [path.encode("utf-8", "surrogateescape") for path in paths]
    hashes = np.fromiter(
        (_hash(path[path.rfind(b"/") + 1 :]) for path in encoded), np.uint64, count=len(encoded)
    )
    by_path = np.array(sorted(range(len(encoded)), key=encoded.__getitem__), np.int64)
    order = by_path[np.argsort(hashes[by_path], kind="stable")]
    for one, other in itertools.pairwise(order):
        if encoded[one] == encoded[other]:
            raise Refusal(f"{place} holds {paths[one]} twice: give one split at a time")
    return order


def _hash(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def is_image(name: str) -> bool:
    return not _hidden(name) and name.lower().endswith(EXTENSIONS)


def nothing_found(place: str, naming: str, others: int) -> Refusal:
    folders = "n01440764" if naming == "wnid" else "0 to 999"
    return Refusal(
        f"no images in {place}: looked for {', '.join(EXTENSIONS)} files in class folders ({folders}), "
        f"and passed over {others} other files"
    )


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _local(root: str) -> bool:
    return "://" not in root


def _entries(folder: str) -> list[str]:
    """Names in a folder; locally without a look at each file."""
    try:
        return (
            os.listdir(folder) if _local(folder) else [path.name for path in epath.Path(folder).iterdir()]
        )
    except (FileNotFoundError, NotADirectoryError):
        raise Refusal(f"expected a folder of images, found none at {folder}") from None


def _class_root(root: str) -> str:
    """`root`, or its only folder if it has no images and no other one, as unpacked archives have."""
    names = [name for name in _entries(root) if not _hidden(name)]
    if any(map(is_image, names)):
        return root
    folders = [name for name in names if (epath.Path(root) / name).is_dir()]
    wrapped = len(folders) == 1 and not classes.is_wnid(folders[0]) and not folders[0].isdigit()
    return f"{root}/{folders[0]}" if wrapped else root
