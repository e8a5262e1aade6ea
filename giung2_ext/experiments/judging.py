"""A ticket's answers on a dataset, each example counted once, and what they score.

Everything but the data's place, and how images are brought to the network's size, comes from the ticket.
Predictions are kept beside it, so a comparison needs no second evaluation.
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from flax import linen as nn

import giung2_ext.data.sources
from giung2_ext.core import discovery, predictions
from giung2_ext.core.errors import Refusal
from giung2_ext.data.source import Records, Source
from giung2_ext.experiments import scores
from giung2_ext.experiments.building import build_model, judged_in
from giung2_ext.experiments.config import Config
from giung2_ext.experiments.feeding import KIND, Stream, fingerprint
from giung2_ext.storage import predictions as kept
from giung2_ext.storage import tickets
from giung2_ext.training import processes, signals
from giung2_ext.training.population import Population
from giung2_ext.training.sharding import read_mesh, read_sizes
from giung2_ext.training.step import network

Tree = Any


class Dataset(NamedTuple):
    """A split that tickets are judged on."""

    name: str  # as it was asked for, with its split if that is not test
    source: Source
    split: str
    images: str  # fingerprint

    @property
    def records(self) -> Records:
        return self.source.split(self.split)

    @property
    def pipeline(self) -> str:
        return self.source.pipeline(self.split)

    @property
    def about(self) -> str:
        return self.source.about.get(self.split, f"{len(self.records):,} images, pipeline {self.pipeline}")


def open_dataset(
    name: str,
    own: Mapping[str, Any],
    pipeline: str,
    data_root: str | None,
    split: str = "test",
    form: str | None = None,
) -> Dataset:
    """`NAME` or `NAME/VARIANT`, as a network sees it that was trained on `own` data and its options."""
    key, _, variant = name.partition("/")
    accepted = discovery.options(giung2_ext.data.sources, KIND, key)
    options = {option: value for option, value in own.items() if option != "name" and key == own["name"]}
    given = {
        "variant": variant,
        "image_size": own.get("image_size"),
        "pipeline": pipeline,
        "splits": (split,),
        "form": form,
    }
    options |= {option: value for option, value in given.items() if option in accepted and value}
    if variant and "variant" not in accepted:
        raise Refusal(f"data source {key!r} has no variants, got {name!r}")
    source = discovery.build(giung2_ext.data.sources, KIND, key, root=data_root, **options)
    split = source.canonical(split)
    called = name if split == "test" else f"{name}:{split}"
    return Dataset(called, source, split, fingerprint(source.split(split)))


class Judge:
    """A ticket's network on the devices, ready to answer."""

    def __init__(self, ckpt: str, batch_size: int, where: Config):
        self.ckpt, self.batch_size, self.where = ckpt, batch_size, where
        self.ticket = tickets.read_ticket(epath.Path(ckpt))
        self.meta = self.ticket.meta
        self.precision = precision_of(self.meta)
        described = json.dumps(self.meta["model"], sort_keys=True)
        self.model = _model(described, self.meta["num_classes"], self.precision)
        self.population = _population(where.mesh or None)
        self.network = self.population.place([(self.ticket.params, self.ticket.statistics)])
        self.folder = kept.folder_of(epath.Path(ckpt), self.ticket.digest)

    def check(self, dataset: Dataset) -> None:
        """Refuses a set of other images or classes than the network's."""
        shape, classes = list(dataset.source.image_shape), dataset.source.num_classes
        if shape != self.meta["image_shape"] or classes != self.meta["num_classes"]:
            raise Refusal(
                f"{self.ckpt} was trained on images of {self.meta['image_shape']} in "
                f"{self.meta['num_classes']} classes; {dataset.name} has {shape} in {classes}"
            )

    def answer(self, dataset: Dataset) -> dict[str, np.ndarray]:
        """The predictions of every example once, in the split's order."""
        return self.answer_as(dataset, [self.network])[0]

    def answer_as(self, dataset: Dataset, networks: Sequence[Tree]) -> list[dict[str, np.ndarray]]:
        """The predictions of each of several networks of this shape; images are read once for all."""
        self.check(dataset)
        records, source = dataset.records, dataset.source
        stream = Stream(
            records, source.image_shape[0], dataset.pipeline, self.batch_size, self.population, self.where
        )
        program = _program(self.model, self.population, source.classes)
        rows: list[list[dict[str, np.ndarray]]] = []
        waiting: list[list[Any]] = []

        def take(batch: list[Any]) -> None:
            rows.append([_real(one, source.num_classes) for one in batch])

        with signals.watched(self.where.stalled_after) as alive:
            for batch in stream:
                waiting.append([program(one, batch) for one in networks])
                if len(waiting) > 2:
                    take(waiting.pop(0))
                    alive()
            for rest in waiting:
                take(rest)
        return [self._joined(found, len(records)) for found in zip(*rows, strict=True)]

    def _joined(self, rows: Sequence[dict[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
        found = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        assert len(found["labels"]) == count
        if not np.isfinite(found["nll"]).all():
            wrong = int((~np.isfinite(found["nll"])).sum())
            raise Refusal(
                f"{self.ckpt}: the loss of {wrong:,} examples is not finite: the network diverged, or "
                "labels are outside the classes of the set"
            )
        return found


def precision_of(meta: Mapping[str, Any]) -> str:
    return judged_in(meta.get("precision", "float32"))


@functools.cache
def _model(described: str, num_classes: int, precision: str) -> nn.Module:
    options = json.loads(described)
    return build_model(options.pop("name"), num_classes, precision, options)


@functools.cache
def _population(mesh: str | None) -> Population:
    devices = math.prod(read_sizes(mesh).values()) if mesh else jax.device_count()
    return Population(1, mesh=read_mesh(mesh, devices))


@functools.cache
def _program(model: nn.Module, population: Population, classes: tuple[int, ...] | None) -> Any:
    """Compiled once for all tickets of a network."""

    def run(weights: tuple[Tree, Tree], batch: dict[str, Any]) -> dict[str, Any]:
        logits = network(model, *weights, batch["images"], train=False)
        labels = batch["labels"]
        found = predictions.summarise(logits, labels, classes)
        if classes is not None:
            everything = predictions.summarise(logits, labels)
            found |= {f"{name}_all": value for name, value in everything.items()}
        return found | {name: batch[name] for name in ("labels", "ids", "valid", "damaged")}

    return population.compile(run)


def _real(device: dict[str, Any], num_classes: int) -> dict[str, np.ndarray]:
    """A batch's rows that are examples, in few bytes."""
    host = jax.device_get(device)
    valid = host.pop("valid")
    host["ids"] = np.ascontiguousarray(host["ids"]).view("<u8")[:, 0]
    classes = np.int16 if num_classes < 2**15 else np.int32
    few = dict.fromkeys(("labels", "top", "top_all"), classes)
    return {name: value[valid].astype(few.get(name, value.dtype)) for name, value in host.items()}


class Judged(NamedTuple):
    dataset: Dataset
    predictions: dict[str, np.ndarray]
    result: dict[str, Any]
    columns: dict[str, scores.Columns]
    """What is averaged over the examples, by the classes that were judged among"""


def judgement(dataset: Dataset, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a result is of; two that agree in this are the same, wherever the images lay."""
    return {
        "dataset": dataset.name,
        "pipeline": dataset.pipeline,
        "images": dataset.images,
        "ticket": meta["digest"],
        "precision": precision_of(meta),
    }


def judged_before(folder: epath.Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The result that is kept of this judgement."""
    found = (old for old in kept.all_scores(folder) if wanted.items() <= old.items())
    return processes.agree(lambda: next(found, None))


def judge_dataset(judge: Judge, dataset: Dataset, again: bool = True) -> Judged:
    """Predicts, scores and keeps both beside the ticket, where the first process writes.

    Without `again` what is kept of the same judgement is taken as it is.
    """
    sizes = {dataset.name: [len(dataset.records), dataset.images]}
    processes.check_same(sizes, "the images that they find; give all of them the same data")
    result = judgement(dataset, judge.meta)
    before = None if again else judged_before(judge.folder, result)
    if before is not None:
        found = kept.read_arrays(judge.folder, dataset.name, dataset.pipeline)
        return Judged(dataset, found, before, columns_of(dataset, found))
    found = judge.answer(dataset)
    columns = columns_of(dataset, found)
    result |= {
        "about": dataset.about,
        "seen": len(next(iter(columns.values())).ids),
        "damaged": int(found["damaged"].sum()),
        "scores": {kind: scores.as_json(scores.score(columns[kind])) for kind in columns},
    }
    if processes.first():
        kept.write(judge.folder, result, found)
    processes.together("predictions")
    return Judged(dataset, found, result, columns)


def columns_of(dataset: Dataset, found: dict[str, np.ndarray]) -> dict[str, scores.Columns]:
    """Among the classes of the set first, where those are not all; or by all right answers."""
    source = dataset.source
    if source.answers is not None:
        answers = [source.answers(i) for i in range(len(found["labels"]))]
        return {"real": scores.answered(found, answers)}
    kinds = {"all": ""} if source.classes is None else {str(len(source.classes)): "", "all": "_all"}
    fields = ("top", "nll", "confidence", "brier")
    return {
        kind: scores.columns_of(
            {name: found[name + ending] for name in fields} | {n: found[n] for n in ("labels", "ids")}
        )
        for kind, ending in kinds.items()
    }
