"""The streaming feed: images on disk, decoded by threads or worker processes, a few batches ahead.

Row r of batch n is a pure function of (seed, n, r): place n * batch_size + r in the shuffled epochs, one
after another with nothing dropped, and pixels drawn from (seed, place). A process reads only the rows
that its devices hold, so the global batch is the same for every number of processes, threads and
workers, and any step is reached at once. An image that cannot be decoded is replaced by the next
record; in evaluation it is black. Both are named to `report`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.data.images import Undecodable
from giung2_ext.data.source import Example, Records
from giung2_ext.data.transforms import PIPELINES, train_image

Batch = dict[str, np.ndarray]
Report = Callable[[list[str]], None]
ORDER, PIXELS = "order", "pixels"
AUGMENTATIONS = ("none", "resized_crop")
RESIDENT = "none"  # the pipeline of pixels that are what the network sees
CHUNK = 16  # rows, at most
TRIES = 100  # records in a row that may be damaged


def _bits(seed: int, use: str) -> int:
    """64 bits from a seed: trial i has seed S + i, and must not see trial 0's epoch i."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{use}".encode()).digest()[:8])


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What becomes of an image on its way to the network."""

    size: int
    pipeline: str  # of what is evaluated, and of training without augmentation
    augment: str = "none"
    randaugment: tuple[int, float] | None = None  # layers, magnitude


def check_recipe(recipe: Recipe) -> None:
    if recipe.augment not in AUGMENTATIONS:
        raise unknown("augmentation of streamed data", recipe.augment, AUGMENTATIONS)
    if recipe.pipeline not in (*PIPELINES, RESIDENT):
        raise unknown("pipeline", recipe.pipeline, PIPELINES)


@dataclasses.dataclass(frozen=True)
class Training:
    """The rows of all batches that one process reads, in order; endless."""

    records: Records
    recipe: Recipe
    batch_size: int
    rows: Sequence[int]
    seed: int

    def __len__(self) -> int:
        return sys.maxsize

    @functools.cached_property
    def _order(self) -> Any:
        shuffled = grain.MapDataset.range(len(self.records)).shuffle(_bits(self.seed, ORDER) >> 32)
        return shuffled.repeat()

    def __getitem__(self, index: int) -> Batch:
        step, row = divmod(index, len(self.rows))
        place = step * self.batch_size + self.rows[row]
        first = int(self._order[place])
        for attempt in range(min(TRIES, len(self.records))):
            record = (first + attempt) % len(self.records)
            example = self.records[record]
            draw = np.random.Generator(
                np.random.Philox(key=np.array([_bits(self.seed, PIXELS), place], np.uint64))
            )
            try:
                image = self._pixels(example, draw)
            except Undecodable:
                continue
            return _row(image, example.label, damaged=first if attempt else -1)
        raise Refusal(
            f"{TRIES} training images in a row cannot be decoded, from {self.records[first].name}"
        )

    def _pixels(self, example: Example, draw: np.random.Generator) -> np.ndarray:
        recipe = self.recipe
        if recipe.augment == "none":
            image = brought(example.image, recipe)
        else:
            image = train_image(example.image, recipe.size, draw)
        if recipe.randaugment is not None:
            from giung2_ext.data.randaugment import randaugment

            image = randaugment(image, draw, *recipe.randaugment)
        return image


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A process's rows of a split's batches; the last batch is padded, `valid` marks the real."""

    records: Records
    recipe: Recipe
    batch_size: int
    rows: Sequence[int]

    def __len__(self) -> int:
        return -(-len(self.records) // self.batch_size) * len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        step, row = divmod(index, len(self.rows))
        place = step * self.batch_size + self.rows[row]
        if place >= len(self.records):
            return {**_row(self._black, 0), "valid": np.False_, "ids": np.zeros(2, "<u4")}
        example = self.records[place]
        try:
            row = _row(brought(example.image, self.recipe), example.label)
        except Undecodable:
            row = _row(self._black, example.label, damaged=place)
        return {**row, "ids": identity(example)}

    @functools.cached_property
    def _black(self) -> np.ndarray:
        if self.recipe.pipeline == RESIDENT:
            return np.zeros_like(self.records[0].image)
        return np.zeros((self.recipe.size, self.recipe.size, 3), np.uint8)


def brought(image: bytes | np.ndarray, recipe: Recipe) -> np.ndarray:
    """An image at the network's size, as it is evaluated."""
    if recipe.pipeline == RESIDENT:
        return np.asarray(image)
    return PIPELINES[recipe.pipeline](image, recipe.size)


def identity(example: Example) -> np.ndarray:
    """64 bits, in two words, of label and file name: the same in TFDS and in folders."""
    text = f"{example.label}/{example.name.rpartition('/')[2]}"
    return np.frombuffer(
        hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "<u4"
    )


def _row(image: np.ndarray, label: int, damaged: int = -1) -> Batch:
    return {
        "images": image,
        "labels": np.int32(label),
        "valid": np.True_,
        "damaged": np.int64(damaged),
    }


@dataclasses.dataclass(frozen=True)
class Chunks:
    """A few rows at a time: handing each to a thread by itself costs as much as a small image."""

    rows: Training | Evaluation
    size: int

    def __len__(self) -> int:
        return len(self.rows) // self.size

    def __getitem__(self, index: int) -> Batch:
        first = index * self.size
        rows = [self.rows[row] for row in range(first, first + self.size)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _join(chunks: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def host_batches(
    rows: Training | Evaluation,
    start: int = 0,
    threads: int = 16,
    processes: int = 0,
    report: Report = print,
) -> Iterator[Batch]:
    """A process's share of the batches from step `start` on, the next ones decoded meanwhile.

    More than two threads a core only take turns.
    """
    share, threads = len(rows.rows), min(threads, 2 * cores())
    size = max(n for n in range(1, CHUNK + 1) if share % n == 0)
    source, count = grain.MapDataset.source(Chunks(rows, size)), share // size  # a batch is so many chunks
    if processes:  # each decodes whole batches
        _let_grain_start_processes()
        own = grain.ReadOptions(num_threads=max(1, threads // processes), prefetch_buffer_size=2)
        batches = source.batch(count, batch_fn=_join)[start:].to_iter_dataset(own)
        workers = grain.MultiprocessingOptions(num_workers=processes)
        batches = batches.mp_prefetch(workers, worker_init_fn=functools.partial(_begin_worker, os.getpid()))
    else:
        own = grain.ReadOptions(num_threads=min(threads, 2 * count), prefetch_buffer_size=2 * count)
        batches = source[start * count :].to_iter_dataset(own).batch(count, batch_fn=_join)
    with contextlib.closing(iter(batches)) as iterator:
        with _signals_held() if processes else contextlib.nullcontext():
            first = next(iterator, None)
        for batch in itertools.chain([first] if first is not None else [], iterator):
            damaged = batch.pop("damaged")
            names = [rows.records[int(record)].name for record in damaged[damaged >= 0]]
            if names:
                report(names)
            if isinstance(rows, Evaluation):
                batch["damaged"] = damaged >= 0
            yield batch


def cores() -> int:
    """How many of them this process may use."""
    here = getattr(os, "sched_getaffinity", None)
    return len(here(0)) if here else os.cpu_count() or 1


STOPPING = (signal.SIGINT, signal.SIGTERM)  # a terminal or a scheduler sends them to a whole group


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Processes that are started here are deaf to signals from their birth on."""
    multiprocessing.resource_tracker.ensure_running()  # which would end the hold
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(parent: int, index: int, count: int) -> None:
    """Leaves stopping to the process that trains, and ends with it."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _let_grain_start_processes() -> None:
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads its own from there
    quiet = "ignore:resource_tracker:UserWarning"  # of batches that nobody took: it removes them itself
    if quiet not in sys.warnoptions:
        sys.warnoptions.append(quiet)
