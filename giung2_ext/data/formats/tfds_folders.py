"""Folders that TensorFlow Datasets prepared: ROOT/NAME[/VARIANT]/VERSION, read in place.

Read without TensorFlow or TFDS: `dataset_info.json` tells the shards, their lengths and their format, and
in ArrayRecord as in TFRecord a record is a `tf.train.Example`. Images come as they are stored, not decoded.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.data.formats import tfrecord
from giung2_ext.data.formats.example import parse_example
from giung2_ext.data.source import Example

INFO = "dataset_info.json"  # written last: a folder without it is unfinished
FORMATS = ("array_record", "tfrecord")
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
OPEN_READERS = 256  # of the 1,024 files that a process may commonly open, and ImageNet has 1,024 shards


def find(root: epath.PathLike, name: str, variant: str | None = None) -> epath.Path | None:
    """The folder of the highest version; `root` may also be the dataset's own folder or its version's."""
    root = epath.Path(root)
    below = (variant,) if variant else ()
    if (root / INFO).exists():
        info = _info(root)
        return root if (info["name"], info.get("configName") or None) == (name, variant or None) else None
    parents = [root.joinpath(name, *below)]
    if root.name == name:
        parents.append(root.joinpath(*below))
    elif variant and root.parts[-2:] == (name, variant):
        parents.append(root)
    return next((folder for parent in parents if (folder := _highest(parent))), None)


def _highest(parent: epath.Path) -> epath.Path | None:
    if not parent.is_dir():
        return None
    versions = [each for each in parent.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", each.name)]
    versions.sort(key=lambda folder: [int(part) for part in folder.name.split(".")], reverse=True)
    return next((folder for folder in versions if (folder / INFO).exists()), None)


def describe(folder: epath.PathLike) -> str:
    """Such as `tfds imagenet2012/5.1.0 (array_record)`."""
    info = _info(epath.Path(folder))
    parts = [info["name"], info.get("configName"), info["version"]]
    return f"tfds {'/'.join(part for part in parts if part)} ({_format(info)})"


def sizes(folder: epath.PathLike) -> dict[str, int]:
    """The splits, and how many records each has."""
    return {name: sum(_lengths(split)) for name, split in _splits(_info(epath.Path(folder))).items()}


@dataclasses.dataclass(frozen=True, eq=False)
class FolderRecords:
    """A split's examples; `labels` are those of the feature `extra`, which may be a sequence."""

    raw: "tfrecord.RawRecords | ArrayRecords"
    split: str
    label_key: str
    extra: str | None
    shape: tuple[int, ...] | None  # of images stored as pixels

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        features = self._features(index)
        image, label = self._values(features, "image", index), self._values(features, self.label_key, index)
        name = features.get("file_name")
        return Example(
            image[0] if self.shape is None else np.array(image, np.uint8).reshape(self.shape),
            label[0],
            name[0].decode(errors="replace") if name else f"{self.split}/{index}",
        )

    def labels(self, index: int) -> tuple[int, ...]:
        if self.extra is None:
            raise Refusal("expected the feature that labels() gives, got none: read(..., extra=NAME)")
        features = self._features(index)
        if self.extra not in features:
            raise self._lacks(self.extra, features, index)
        return tuple(features[self.extra])

    def _features(self, index: int) -> Mapping[str, list]:
        try:
            return parse_example(self.raw[index])
        except ValueError as error:
            raise Refusal(f"{self.split}, record {index}: {error}; fetch the dataset again") from error

    def _values(self, features: Mapping[str, list], key: str, index: int) -> list:
        if not features.get(key):
            raise self._lacks(key, features, index)
        return features[key]

    def _lacks(self, key: str, features: Mapping[str, list], index: int) -> Refusal:
        found = ", ".join(sorted(name for name, values in features.items() if values)) or "nothing"
        return Refusal(f"{self.split}, record {index}: expected {key}, found {found}: name another feature")


def read(
    folder: epath.PathLike,
    split: str,
    label_key: str = "label",
    extra: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> FolderRecords:
    """A whole split. `extra` names one more feature, integers that the records' `labels` gives."""
    folder = epath.Path(folder)
    info = _info(folder)
    file_format, splits = _format(info), _splits(info)
    if split not in splits:
        raise unknown("split", split, splits)
    shape = _check_features(folder, label_key, extra)
    shards, lengths = _shards(folder, info, splits[split]), _lengths(splits[split])
    if file_format == "tfrecord":
        return FolderRecords(tfrecord.read(shards, split, lengths, say), split, label_key, extra, shape)
    with ThreadPoolExecutor(tfrecord.THREADS) as pool:
        there = list(pool.map(lambda shard: shard.exists(), shards))
    if not all(there):
        raise Refusal(
            f"{shards[there.index(False)]}: expected a shard, found no file: fetch what is missing"
        )
    return FolderRecords(ArrayRecords(shards, lengths), split, label_key, extra, shape)


class ArrayRecords:
    """The records of ArrayRecord shards, in order. It holds no open file itself, so it can be sent."""

    def __init__(self, shards: Sequence[epath.Path], lengths: Sequence[int]):
        self.shards = tuple(os.fspath(shard) for shard in shards)
        self.firsts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def __getitem__(self, index: int) -> bytes:
        index = range(len(self))[index]
        shard = int(np.searchsorted(self.firsts, index, side="right")) - 1
        first, end = int(self.firsts[shard]), int(self.firsts[shard + 1])
        try:
            return _reader(self.shards[shard], end - first).read([index - first])[0]
        except (RuntimeError, ValueError, OSError) as error:
            raise Refusal(f"{self.shards[shard]}: {error}; fetch the file again") from error


@functools.lru_cache(maxsize=OPEN_READERS)
def _reader(shard: str, length: int) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(shard, options="readahead_buffer_size:0", file_reader_buffer_size=1 << 15)
    if reader.num_records() != length:
        raise ValueError(f"expected {length} records, found {reader.num_records()}")
    return reader


def _info(folder: epath.Path) -> Mapping[str, Any]:
    try:
        return json.loads((folder / INFO).read_text())
    except FileNotFoundError:
        raise Refusal(f"expected {INFO} in {folder}, found none: prepare the dataset with TFDS") from None
    except ValueError as error:
        raise Refusal(f"{folder / INFO} is damaged ({error}): fetch it again") from error


def _format(info: Mapping[str, Any]) -> str:
    found = info.get("fileFormat") or "tfrecord"  # older versions knew no other, and said nothing
    if found not in FORMATS:
        raise Refusal(
            f"{info['name']} is stored as {found}, and {' and '.join(FORMATS)} are read: "
            "convert it with `tfds convert_format`"
        )
    return found


def _splits(info: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {split["name"]: split for split in info.get("splits", ())}


def _lengths(split: Mapping[str, Any]) -> list[int]:
    return [int(length) for length in split.get("shardLengths", ())]


def _shards(folder: epath.Path, info: Mapping[str, Any], split: Mapping[str, Any]) -> list[epath.Path]:
    template, count = split.get("filepathTemplate") or TEMPLATE, len(_lengths(split))
    digits = max(5, len(str(count)))
    fixed = dict(DATASET=info["name"], SPLIT=split["name"], FILEFORMAT=_format(info))
    numbers = [(f"{i:0{digits}}", f"{count:0{digits}}") for i in range(count)]
    try:
        names = [
            template.format(**fixed, SHARD_INDEX=i, NUM_SHARDS=n, SHARD_X_OF_Y=f"{i}-of-{n}")
            for i, n in numbers
        ]
    except (KeyError, IndexError, ValueError) as error:
        raise Refusal(f"{folder / INFO}: cannot read the file names {template!r} ({error})") from error
    return [folder / name for name in names]


def _check_features(folder: epath.Path, label_key: str, extra: str | None) -> tuple[int, ...] | None:
    """The shape of images that are stored as pixels, None for encoded files."""
    file = folder / "features.json"
    if not file.exists():  # before 2021
        return None
    features = json.loads(file.read_text()).get("featuresDict", {}).get("features", {})
    for key in filter(None, ("image", label_key, extra)):
        if key not in features:
            raise unknown(f"feature of {folder}", key, features)
    if "tensor" not in features["image"]:
        return None
    tensor = features["image"]["tensor"]
    shape = tuple(int(size) for size in tensor["shape"].get("dimensions", ()))
    stored = tensor["dtype"], (tensor.get("encoding") or "none").lower()
    if stored != ("uint8", "none") or len(shape) != 3 or shape.count(-1) > 1:
        raise Refusal(f"{folder}: expected images as files or uint8 HWC pixels, found {stored} of {shape}")
    return shape
