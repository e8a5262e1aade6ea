"""Writes a data set's folders or archives as a TFDS directory of ArrayRecord shards, in the mixed order.

`tfds.builder_from_directory` reads it; dataset_info.json is written last. Every image is decoded, to see
that it is whole. With a shorter side, larger images become RGB JPEGs of that shorter side (bicubic with
antialiasing; 4:2:0, a fifth smaller than the 4:4:4 that originals often are), and other files than RGB or
grey JPEGs become RGB JPEGs of their own size; all else keeps its bytes. A killed preparation goes on at
the first missing shard. Two processes in one folder do the same work twice and harm nothing.
"""

import collections
import concurrent.futures
import functools
import hashlib
import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import simplejpeg
from etils import epath
from PIL import Image

from giung2_ext.core.errors import Refusal
from giung2_ext.data import images
from giung2_ext.data.distribution import Found, check_counts, find_records, kind_of
from giung2_ext.data.formats import shards
from giung2_ext.data.formats.example import make_example
from giung2_ext.data.source import Example

PLAN = "preparation.json"
SHARD = 8192  # images, about; ImageNet has fewer shards than readers stay open
SAMPLE = 64  # images, to foresee the size of all
SAY_EVERY = 10.0  # seconds


class Look(NamedTuple):
    """How images are stored: as they came, or at a shorter side."""

    shorter_side: int | None
    quality: int  # of JPEGs that are written anew

    def encode(self, example: Example) -> bytes:
        try:
            pixels = images.decode(example.image)
        except images.Undecodable as error:
            raise Refusal(
                f"{example.name} cannot be decoded ({error}): replace it or take it out"
            ) from error
        side = self.shorter_side
        if side is None or (min(pixels.shape[:2]) <= side and _is_ordinary(example.image)):
            return example.image
        picture = Image.fromarray(pixels)
        if min(picture.size) > side:
            scale = side / min(picture.size)
            size = tuple(max(side, round(length * scale)) for length in picture.size)
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=self.quality, subsampling="4:2:0")
        return file.getvalue()


def _is_ordinary(data: bytes) -> bool:
    try:
        return simplejpeg.decode_jpeg_header(data)[2] in images.PLAIN
    except ValueError:
        return False


def prepare(
    dataset: str,
    places: list[str],
    data_root: epath.PathLike,
    *,
    variant: str | None = None,
    shorter_side: int | None = None,
    quality: int = 90,
    allow_incomplete: bool = False,
    num_workers: int | None = None,
    shard: int = SHARD,
    say: Callable[[str], None] = print,
) -> epath.Path:
    """Prepares what lies at `places`, or what is left of it; the folder that TFDS reads."""
    kind = kind_of(dataset, variant)
    _check_range("shorter_side", shorter_side or 1, 1, 65_500)
    _check_range("quality", quality, 1, 100)
    workers = num_workers or os.cpu_count() or 1
    _check_range("num_workers", workers, 1, 1024)
    folder = epath.Path(data_root) / dataset / (variant or "") / kind.version
    say(f"listing {', '.join(places)}")
    records = find_records(dataset, kind, places)
    complete = check_counts(dataset, kind, records, places, allow_incomplete)
    plan = {
        "dataset": dataset,
        "variant": variant,
        "version": kind.version,
        "shorter_side": shorter_side,
        "quality": quality if shorter_side else None,
        "complete": complete,
        "splits": {split: _plan_split(part, kind.bare, shard) for split, part in records.items()},
    }
    _settle(folder, plan)
    if (folder / shards.INFO).exists():
        say(f"{folder} is finished already: {describe(folder)}")
        return folder
    _write(folder, plan, _Maker(records, Look(shorter_side, quality), kind.bare), workers, say)
    return folder


def describe(folder: epath.PathLike) -> str:
    """How a folder was prepared, such as "prepared at shorter side 256, quality 90"; "" if it was not."""
    path = epath.Path(folder) / PLAN
    if not path.exists():
        return ""
    finished = (path.parent / shards.INFO).exists()
    return _speak_of(_read_plan(path)) + ("" if finished else ", unfinished")


def _speak_of(plan: dict[str, Any]) -> str:
    side, quality = plan["shorter_side"], plan["quality"]
    look = f"shorter side {side}, quality {quality}" if side else "original size"
    return f"prepared at {look}" + ("" if plan["complete"] else ", from an incomplete set")


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise Refusal(f"{name} must be {least} to {most}, got {value}")


def _plan_split(records: Found, bare: bool, shard: int) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    for i, label in enumerate(records.listing.labels.tolist()):
        digest.update(
            f"{_file_name(records.listing.names[i], bare)}\n{label}\n".encode("utf-8", "surrogateescape")
        )
    return {"images": len(records), "digest": digest.hexdigest(), "shards": math.ceil(len(records) / shard)}


def _file_name(name: str, bare: bool) -> str:
    return name.rpartition("/")[2] if bare else name


def _read_plan(path: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise Refusal(f"{path} is damaged ({error}): delete its folder and prepare again") from error


def _settle(folder: epath.Path, plan: dict[str, Any]) -> None:
    """Leaves the plan in the folder, or refuses a folder that has another one."""
    path = folder / PLAN
    if not path.exists():
        there = [item.name for item in folder.iterdir()] if folder.exists() else []
        if PLAN not in there and any(not name.startswith(shards.UNFINISHED) for name in there):
            raise Refusal(f"{folder} has files but no {PLAN}: choose another --data_root, or delete it")
        folder.mkdir(parents=True, exist_ok=True)
        with shards.publishing(path) as temporary:
            temporary.write_text(json.dumps(plan, indent=2) + "\n")
    stored, asked = _flat(_read_plan(path)), _flat(plan)
    keys = [key for key in {**stored, **asked} if stored.get(key) != asked.get(key)]
    if keys:
        differences = "; ".join(f"{key} is {stored.get(key)} there, now {asked.get(key)}" for key in keys)
        raise Refusal(
            f"{folder} is being or was prepared otherwise: {differences}. Give the same flags and images "
            "to go on, choose another --data_root, or delete the folder"
        )


def _flat(plan: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plan.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


class _Progress:
    def __init__(self, total: int, say: Callable[[str], None]):
        self.total, self.say = total, say
        self.done, self.start = 0, time.monotonic()
        self.said = self.start

    def seconds(self) -> float:
        return max(time.monotonic() - self.start, 1e-3)

    def follow(self, examples: Iterable[bytes]) -> Iterator[bytes]:
        for example in examples:
            yield example
            self.done += 1
            if time.monotonic() - self.said >= SAY_EVERY:
                self._speak()

    def _speak(self) -> None:
        self.said = time.monotonic()
        rate = self.done / self.seconds()
        left = (self.total - self.done) / rate / 60
        self.say(f"{self.done:,} of {self.total:,} images, {rate:.0f} a second, {left:.1f} minutes left")


class _Maker(NamedTuple):
    """Makes a row's serialized example; called from many threads."""

    records: Mapping[str, Found]
    look: Look
    bare: bool

    def __call__(self, split: str, row: int) -> bytes:
        example = self.records[split][row]
        name = _file_name(example.name, self.bare).encode("utf-8", "surrogateescape")
        image = self.look.encode(example)
        return make_example({"image": image, "label": example.label, "file_name": name})


def _write(folder: epath.Path, plan: dict[str, Any], make: _Maker, workers: int, say: Callable) -> None:
    parts = {split: _cut(part["images"], part["shards"]) for split, part in plan["splits"].items()}
    paths = {
        (split, k): shards.place(folder, plan["dataset"], split, k, len(part))
        for split, part in parts.items()
        for k in range(len(part))
    }
    left = [key for key, path in paths.items() if not shards.is_whole(path, len(parts[key[0]][key[1]]))]
    total = sum(len(parts[split][k]) for split, k in left)
    there = len(paths) - len(left)
    say(f"preparing {folder}: {total:,} images, {len(left)} shards ({there} are there), {workers} threads")
    progress = _Progress(total, say)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        needed = 0.0
        for split in {split: None for split, _ in left}:
            sample = range(min(SAMPLE, plan["splits"][split]["images"]))  # random: the order is mixed
            sizes = list(map(len, pool.map(functools.partial(make, split), sample)))
            needed += sum(sizes) / len(sizes) * sum(len(parts[s][k]) for s, k in left if s == split)
        _check_space(folder, needed)
        for split, k in left:
            rows = parts[split][k]
            examples = _in_order(pool, functools.partial(make, split), rows, 4 * workers)
            shards.write(paths[split, k], len(rows), progress.follow(examples))
    sizes = {split: [len(rows) for rows in part] for split, part in parts.items()}
    shards.finish(folder, plan["dataset"], plan["variant"], sizes, _speak_of(plan))
    size = sum(path.stat().length for path in paths.values()) / 1e9
    counts = ", ".join(f"{part['images']:,} {split}" for split, part in plan["splits"].items())
    say(f"finished {folder}: {counts} images, {size:.2f} GB, {progress.seconds():.0f} seconds")


def _cut(size: int, count: int) -> list[range]:
    return [range(k * size // count, (k + 1) * size // count) for k in range(count)]


def _check_space(folder: epath.Path, needed: float) -> None:
    if shards.is_remote(folder):
        return
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Refusal(f"{folder} needs about {needed / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free")


def _in_order(
    pool: concurrent.futures.Executor, work: Callable[[int], bytes], rows: range, ahead: int
) -> Iterator[bytes]:
    """Results in the order of rows, at most `ahead` of them early: memory stays small."""
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    for row in rows:
        waiting.append(pool.submit(work, row))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
