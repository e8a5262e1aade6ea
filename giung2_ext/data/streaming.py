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
import os
import queue
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
LEAVES_WITHIN = 10.0  # seconds that a reader is waited for: a disk may hang
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
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), "<u4")


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

    More than two threads a core only take turns (measured: 1,402 images a second with 4 on 2 cores, 1,070
    with 32).
    """
    share, threads = len(rows.rows), min(threads, 2 * cores())
    size = max(n for n in range(1, CHUNK + 1) if share % n == 0)
    source, count = grain.MapDataset.source(Chunks(rows, size)), share // size  # a batch is so many chunks
    if processes:  # each decodes whole batches
        _let_grain_start_processes()
        own = grain.ReadOptions(num_threads=max(1, threads // processes), prefetch_buffer_size=2)
        batches = source.batch(count, batch_fn=_join)[start:].to_iter_dataset(own)
        workers = grain.MultiprocessingOptions(num_workers=processes)
        batches = batches.mp_prefetch(workers, worker_init_fn=_begin_worker)
    else:
        own = grain.ReadOptions(num_threads=min(threads, 2 * count), prefetch_buffer_size=2 * count)
        batches = source[start * count :].to_iter_dataset(own).batch(count, batch_fn=_join)
    with contextlib.closing(iter(batches)) as iterator:
        for batch in iterator:
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


def _begin_worker(index: int, count: int) -> None:
    """Leaves signals, which a terminal sends to a whole group, to the one that trains, and ends with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

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


class Reader:
    """Places the batches of one run on the devices, `ahead` of them before they are asked for.

    `open_at(step)` gives host batches from a step on, `place` puts one where the step wants it. Steps are
    asked for in order; another one starts anew there.
    """

    def __init__(
        self, open_at: Callable[[int], Iterator[Batch]], place: Callable[[Batch], Any], ahead: int
    ):
        self._open_at, self._place, self._ahead = open_at, place, max(1, ahead)
        self._next: int | None = None
        self._queue: queue.Queue[Any] = queue.Queue()
        self._leave = threading.Event()
        self._thread: threading.Thread | None = None

    def batch(self, step: int) -> Any:
        if step != self._next:
            self.close()
            self._queue, self._leave = queue.Queue(self._ahead), threading.Event()
            self._thread = threading.Thread(
                target=self._fill, args=(step, self._queue, self._leave), daemon=True, name="feed"
            )
            self._thread.start()
        self._next = step + 1
        found = self._queue.get()
        if isinstance(found, BaseException):
            self.close()
            raise found
        return found

    def _fill(self, step: int, out: "queue.Queue[Any]", leave: threading.Event) -> None:
        def give(what: Any) -> bool:
            while not leave.is_set():
                try:
                    out.put(what, timeout=0.2)
                    return True
                except queue.Full:
                    continue
            return False

        try:
            with contextlib.closing(self._open_at(step)) as batches:
                for batch in batches:
                    if leave.is_set() or not give(self._place(batch)):
                        return
            give(StopIteration())
        except BaseException as error:  # it is the asking thread's to handle
            give(error)

    def close(self) -> None:
        self._leave.set()
        self._next = None
        if self._thread is not None:
            self._thread.join(LEAVES_WITHIN)
        self._queue = queue.Queue()  # lets go of what was placed
