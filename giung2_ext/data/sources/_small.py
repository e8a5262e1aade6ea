"""Small sets, whole in memory: from their publishers' files or, if those are not there, from TFDS.

Both are looked for below --data_root and then below $TFDS_DATA_DIR. TFDS stores the same pixels, as PNGs,
in an order of its own. The last `holdout` images of train are the split `holdout`, so the two forms hold
out different ones. The PNGs are decoded at every start, which takes tens of times as long as the files.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.data.formats import tfds_folders
from giung2_ext.data.source import Missing, Source, Split, check_split, hold_out

THREADS, STRETCH = 16, 1000  # that decode, and how many images each takes at once


class Published(NamedTuple):
    """A set as its publishers give it away."""

    dataset: str  # its name in TFDS too
    folders: tuple[str, ...]  # below a root, whose files may also lie in itself
    files: Mapping[str, tuple[str, ...]]  # of each split
    read: Callable[[Sequence[epath.Path]], tuple[np.ndarray, np.ndarray]]  # a split's images and labels
    shape: tuple[int, int, int]
    num_classes: int
    fetch: str  # what to do where the files are missing
    spellings: Callable[[str], Sequence[str]] = lambda name: (name,)  # of a file's name
    told_by_name: bool = False  # another set's files have the same names: a root must be named for this one


def build(
    published: Published, root: str | None, holdout: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Source:
    channels = published.shape[-1]
    if not len(mean) == len(std) == channels:
        raise Refusal(f"config.data.mean and .std need {channels} values, one a channel, got {mean}, {std}")
    splits, about = _read(published, root)
    train, size = splits["train"], len(splits["train"])
    if not 0 < holdout < size:
        raise Refusal(f"config.data.holdout must be in 1..{size - 1}, got {holdout}")
    splits |= hold_out(train, holdout)
    about = f"{size - holdout:,} of {size:,} images, {about}"
    return Source(splits, published.num_classes, tuple(mean), tuple(std), about={"train": about})


def _read(published: Published, root: str | None) -> tuple[dict[str, Split], str]:
    """The splits, and where they were found."""
    named = [root, os.environ.get("TFDS_DATA_DIR")]
    roots = [epath.Path(place).expanduser() for place in dict.fromkeys(filter(None, named))]
    found = {folder: _files(published, folder) for place in roots for folder in _folders(published, place)}
    for folder, files in found.items():
        if all(files.values()):
            stored = {
                split: published.read([files[name] for name in names])
                for split, names in published.files.items()
            }
            return _checked(published, folder, stored), f"the publishers' files in {folder}"
    for place in roots:
        folder = tfds_folders.find(place, published.dataset)
        if folder is not None:
            stored = {split: _decoded(folder, split, published.shape) for split in published.files}
            about = f"{tfds_folders.describe(folder)} in {folder}"
            return _checked(published, folder, stored), about
    raise Missing(_missing(published, roots, found))


def _checked(
    published: Published, folder: epath.Path, stored: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, Split]:
    return {
        split: check_split(f"{folder}: {split}", *content, published.num_classes)
        for split, content in stored.items()
    }


def _folders(published: Published, root: epath.Path) -> list[epath.Path]:
    """Where the files may be, the root itself last."""
    whole = root.resolve()
    name = whole.parent.name if whole.name == "raw" else whole.name
    itself = not published.told_by_name or _plain(name) == _plain(published.dataset)
    return [*(root / inner for inner in published.folders), *([root] if itself else [])]


def _files(published: Published, folder: epath.Path) -> dict[str, epath.Path | None]:
    """Where each file is. Folders of such a name, as unpacking may make them, are none."""
    return {
        name: next((path for each in published.spellings(name) if (path := folder / each).is_file()), None)
        for names in published.files.values()
        for name in names
    }


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _missing(
    published: Published,
    roots: Sequence[epath.Path],
    found: Mapping[epath.Path, Mapping[str, epath.Path | None]],
) -> str:
    names = [name for names in published.files.values() for name in names]
    if not roots:
        where = f"{published.folders[0]}/{', '.join(names)}"
        return f"data {published.dataset!r} needs --data_root=DIR with {where}, or $TFDS_DATA_DIR"
    for folder, files in found.items():
        if any(files.values()):
            lacking = ", ".join(name for name, path in files.items() if path is None)
            return f"no {lacking} in {folder}, which has the other files: {published.fetch}"
    places = ", ".join(f"{each}{'' if each.exists() else ' (which does not exist)'}" for each in found)
    prepared = f"{published.dataset}/VERSION of TFDS in {' or '.join(map(str, roots))}"
    return f"no {', '.join(names)} in {places}, and no {prepared}: {published.fetch}"


def _decoded(folder: epath.Path, split: str, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    from giung2_ext.data import images  # and with it Pillow, which the publishers' files do not need

    records = tfds_folders.read(folder, split)
    pixels, labels = np.empty((len(records), *shape), np.uint8), np.empty(len(records), np.int64)

    def fill(start: int) -> None:
        for i in range(start, min(start + STRETCH, len(records))):
            image, labels[i], name = records[i]
            try:
                found = images.decode(image) if isinstance(image, bytes) else image
            except images.Undecodable as error:
                raise Refusal(f"{folder}, {name}: {error}; fetch the dataset again") from error
            if found.shape[:2] != shape[:2]:
                raise Refusal(f"{folder}, {name}: expected an image of {shape[:2]}, got {found.shape[:2]}")
            pixels[i] = found[..., : shape[2]]  # grey comes as three equal channels

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fill, range(0, len(records), STRETCH)))
    return pixels, labels
