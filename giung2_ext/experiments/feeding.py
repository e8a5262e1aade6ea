"""How a run gets its batches: resident data lies on the devices, streamed data is read ahead."""

import contextlib
import functools
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import giung2_ext.data.sources
from giung2_ext.core import discovery
from giung2_ext.core.errors import Refusal
from giung2_ext.data import resident
from giung2_ext.data.reader import Reader
from giung2_ext.data.source import Records, Source, Split
from giung2_ext.experiments.config import Config, options_of
from giung2_ext.training import processes
from giung2_ext.training.population import Population

Tree = Any
KIND = "data source"


class Data(NamedTuple):
    feed: resident.Feed | None  # None: streamed
    shapes: Tree  # of the data that a step's program takes: the split, or one batch
    open: Callable[[int], contextlib.AbstractContextManager[Any]]
    """seed -> what the program takes its batches from"""
    images: dict[str, str]
    """Fingerprints of the splits"""
    evaluation: dict[str, Tree]
    """Padded batches of the splits that are measured: placed, or an iterable that places them"""


def load_source(config: Config) -> Source:
    root, options = config.placement.data_root, options_of(config, "data")
    return discovery.build(giung2_ext.data.sources, KIND, config.data.name, root=root, **options)


def is_streamed(name: str) -> bool:
    """Whether a source's images are read from disk as they are needed."""
    make = discovery.maker(giung2_ext.data.sources, KIND, name)
    return getattr(sys.modules[make.__module__], "STREAMED", False)


SAMPLE = 32  # records


def fingerprint(records: Records) -> str:
    """Of a split's size, order and pixels, by some of its records: prepared images are others."""
    size = len(records)
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    for index in sorted({i * (size - 1) // max(1, SAMPLE - 1) for i in range(SAMPLE)}):
        example = records[index]
        digest.update(f"{example.label}/{example.name.rpartition('/')[2]}".encode(errors="replace"))
        digest.update(example.image if isinstance(example.image, bytes) else example.image.tobytes())
    return f"{size}:{digest.hexdigest()}"


def make_data(config: Config, source: Source, population: Population, splits: Sequence[str]) -> Data:
    """`splits` are those that are measured."""
    images = {name: fingerprint(source.split(name)) for name in dict.fromkeys(("train", *splits))}
    processes.check_same(images, "the images that they find; give all of them the same data")
    make = _resident if isinstance(source.split("train"), Split) else _streamed
    return make(config, source, population, splits)._replace(images=images)


def _resident(config: Config, source: Source, population: Population, splits: Sequence[str]) -> Data:
    if config.feed.randaugment:
        raise Refusal("config.feed.randaugment is for streamed data; use config.feed.augment here")
    feed = resident.make_feed(source.split("train"), config.feed.batch_size, config.feed.augment)
    data = population.share(feed.arrays)
    size, devices = config.evaluation.batch_size, population.layout.devices
    evaluation = {
        name: population.share_batches(resident.evaluation_batches(source.split(name), size, devices))
        for name in splits
    }
    return Data(feed, data, lambda seed: contextlib.nullcontext(data), {}, evaluation)


def _streamed(config: Config, source: Source, population: Population, splits: Sequence[str]) -> Data:
    from giung2_ext.data import streaming

    if not population.solo:
        raise Refusal("streamed data trains one network at a time, on all devices of the mesh")
    layout, where, records = population.layout, config.placement, source.split("train")
    size, layers = config.feed.batch_size, config.feed.randaugment
    if size > len(records):
        raise Refusal(f"batch_size must be in 1..{len(records)} (the training examples), got {size}")
    recipe = streaming.Recipe(
        source.image_shape[0],
        source.pipeline("train"),
        config.feed.augment,
        (layers, config.feed.magnitude) if layers else None,
    )
    streaming.check_recipe(recipe)
    warn = Warnings("replaced by the next image")

    @contextlib.contextmanager
    def open_(seed: int) -> Iterator[Reader]:
        rows = streaming.Training(records, recipe, size, layout.rows_here(size), seed)
        host = functools.partial(
            streaming.host_batches,
            rows,
            threads=where.num_workers,
            processes=where.worker_processes,
            report=warn,
        )
        place = functools.partial(layout.join_rows, size=size)
        reader = Reader(lambda step: host(start=step), place, where.prefetch_factor)
        with contextlib.closing(reader):
            yield reader

    evaluation = {
        name: Stream(
            source.split(name),
            source.image_shape[0],
            source.pipeline(name),
            config.evaluation.batch_size,
            population,
            where,
        )
        for name in splits
    }
    return Data(None, batch_shapes(population, size, source.image_shape), open_, {}, evaluation)


def batch_shapes(population: Population, size: int, image_shape: tuple[int, ...]) -> Tree:
    """The shapes and places of a streamed batch."""
    rows = {
        "images": jax.ShapeDtypeStruct((size, *image_shape), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((size,), jnp.int32),
        "valid": jax.ShapeDtypeStruct((size,), jnp.bool_),
    }
    return population.layout.abstract_rows(rows)


class Warnings:
    """Says once of every damaged file what became of it."""

    def __init__(self, fate: str):
        self.fate, self.names = fate, set()

    def __call__(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.names:
                continue
            self.names.add(name)
            process = f" (process {jax.process_index()})" if processes.joined() else ""
            print(
                f"warning{process}: {name} cannot be decoded and is {self.fate}; "
                f"{len(self.names):,} such file(s) so far",
                file=sys.stderr,
                flush=True,
            )


class Stream:
    """The padded batches of a split on disk, placed, from the first to the last, whenever asked."""

    def __init__(
        self,
        records: Records,
        size: int,
        pipeline: str,
        batch_size: int,
        population: Population,
        where: Config,
    ):
        from giung2_ext.data import streaming

        layout = population.layout
        self.records, self.pipeline, self.where, self.layout = records, pipeline, where, layout
        self.batch_size = -(-min(batch_size, len(records)) // layout.devices) * layout.devices
        recipe = streaming.Recipe(size, pipeline)
        streaming.check_recipe(recipe)
        rows = layout.rows_here(self.batch_size)
        self._rows = streaming.Evaluation(records, recipe, self.batch_size, rows)
        self._warn = Warnings("judged as a black image")

    def __len__(self) -> int:
        return -(-len(self.records) // self.batch_size)

    def __iter__(self) -> Iterator[Tree]:
        from giung2_ext.data import streaming

        def host(step: int) -> Iterator[dict[str, np.ndarray]]:
            threads = self.where.num_workers  # no processes: starting them takes longer than most sets
            return streaming.host_batches(self._rows, step, threads, report=self._warn)

        place = functools.partial(self.layout.join_rows, size=self.batch_size)
        reader = Reader(host, place, self.where.prefetch_factor)
        with contextlib.closing(reader):
            for step in range(len(self)):
                yield reader.batch(step)
