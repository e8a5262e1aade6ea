"""A ticket's answers on a dataset, each example counted once, and what they score.

Everything but the data's place, and how images are brought to the network's size, comes from the ticket.
Predictions are kept beside it, so a comparison needs no second evaluation.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

import giung2_ext.data.sources
from giung2_ext.core import discovery, predictions
from giung2_ext.core.errors import Refusal
from giung2_ext.data.source import Source
from giung2_ext.experiments import scores
from giung2_ext.experiments.config import Config
from giung2_ext.experiments.feeding import KIND, Stream
from giung2_ext.experiments.setup import build_model, judged_in
from giung2_ext.storage import predictions as kept
from giung2_ext.storage import tickets
from giung2_ext.training import processes
from giung2_ext.training.population import Population
from giung2_ext.training.sharding import read_mesh, read_sizes
from giung2_ext.training.step import network

Tree = Any


class Judge:
    """A ticket's network on the devices, ready to answer."""

    def __init__(self, ckpt: str, batch_size: int, where: Config):
        self.ckpt = ckpt
        self.ticket = tickets.read_ticket(epath.Path(ckpt))
        self.meta, self.where = self.ticket.meta, where
        model = dict(self.meta["model"])
        self.precision = judged_in(self.meta.get("precision", "float32"))
        name = model.pop("name")
        self.model = build_model(name, self.meta["num_classes"], self.precision, model)
        self.batch_size = batch_size
        devices = math.prod(read_sizes(where.mesh).values()) if where.mesh else jax.device_count()
        self.population = Population(1, mesh=read_mesh(where.mesh or None, devices))
        self.network = self.population.place([(self.ticket.params, self.ticket.statistics)])
        self.folder = kept.folder_of(epath.Path(ckpt), self.ticket.digest)
        self._programs: dict[Any, Any] = {}

    def open(self, dataset: str, pipeline: str, data_root: str | None) -> Source:
        source = open_dataset(dataset, self.meta["data"], pipeline, data_root)
        shape, classes = list(source.image_shape), source.num_classes
        if shape != self.meta["image_shape"] or classes != self.meta["num_classes"]:
            raise Refusal(
                f"{self.ckpt} was trained on images of {self.meta['image_shape']} in "
                f"{self.meta['num_classes']} classes; {dataset} has {shape} in {classes}"
            )
        return source

    def answer(self, source: Source, split: str) -> dict[str, np.ndarray]:
        """The predictions of every example once, in the split's order."""
        records, size = source.split(split), source.image_shape[0]
        stream = Stream(records, size, source.pipeline(split), self.batch_size, self.population, self.where)
        program = self._program(source.classes)
        rows: list[dict[str, np.ndarray]] = []
        waiting: list[Any] = []
        for batch in stream:
            waiting.append(program(self.network, batch))
            if len(waiting) > 2:
                rows.append(_real(waiting.pop(0)))
        rows += map(_real, waiting)
        found = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        assert len(found["labels"]) == len(records)
        if not np.isfinite(found["nll"]).all():
            wrong = int((~np.isfinite(found["nll"])).sum())
            raise Refusal(
                f"{self.ckpt}: the loss of {wrong:,} examples is not finite: the network diverged, or "
                "labels are outside the classes of the set"
            )
        return found

    def _program(self, classes: tuple[int, ...] | None) -> Any:
        if classes not in self._programs:

            def run(weights: tuple[Tree, Tree], batch: dict[str, Any]) -> dict[str, Any]:
                logits = network(self.model, *weights, batch["images"], train=False)
                labels = batch["labels"]
                found = predictions.summarise(logits, labels, classes)
                if classes is not None:
                    everything = predictions.summarise(logits, labels)
                    found |= {f"{name}_all": value for name, value in everything.items()}
                return found | {name: batch[name] for name in ("labels", "ids", "valid")}

            self._programs[classes] = self.population.compile(run)
        return self._programs[classes]


def open_dataset(dataset: str, own: dict[str, Any], pipeline: str, data_root: str | None) -> Source:
    """`NAME` or `NAME/VARIANT`, as a network sees it that was trained on `own` data and its options."""
    name, _, variant = dataset.partition("/")
    accepted = discovery.options(giung2_ext.data.sources, KIND, name)
    options = {key: value for key, value in own.items() if key != "name" and name == own["name"]}
    given = {"variant": variant, "image_size": own.get("image_size"), "pipeline": pipeline}
    options |= {key: value for key, value in given.items() if key in accepted and value}
    if variant and "variant" not in accepted:
        raise Refusal(f"data source {name!r} has no variants, got {dataset!r}")
    return discovery.build(giung2_ext.data.sources, KIND, name, root=data_root, **options)


SMALL = {"labels": np.int16, "top": np.int16, "top_all": np.int16}


def _real(device: dict[str, Any]) -> dict[str, np.ndarray]:
    """A batch's rows that are examples, in few bytes."""
    host = jax.device_get(device)
    valid = host.pop("valid")
    host["ids"] = np.ascontiguousarray(host["ids"]).view("<u8")[:, 0]
    return {name: value[valid].astype(SMALL.get(name, value.dtype)) for name, value in host.items()}


def among(found: dict[str, np.ndarray], ending: str) -> dict[str, np.ndarray]:
    """The predictions among all classes (`_all`), or among those of the set."""
    fields = ("top", "nll", "confidence", "brier")
    return {name: found[name + ending] for name in fields} | {n: found[n] for n in ("labels", "ids")}


class Judged(NamedTuple):
    dataset: str
    predictions: dict[str, np.ndarray]
    result: dict[str, Any]
    name_of: Callable[[int], str]  # of an example's file


def judge_dataset(
    judge: Judge, dataset: str, pipeline: str, data_root: str | None, split: str, again: bool = True
) -> Judged:
    """Predicts, scores and keeps both beside the ticket, where the first process writes.

    Without `again` what is kept of the same images is taken as it is.
    """
    source = judge.open(dataset, pipeline, data_root)
    split = source.canonical(split)
    records, used = source.split(split), source.pipeline(split)
    name = dataset if split == "test" else f"{dataset}:{split}"
    result: dict[str, Any] = {
        "dataset": name,
        "pipeline": used,
        "asked": pipeline,
        "about": source.about.get(split, f"{len(records):,} images, pipeline {used}"),
        "ticket": judge.ticket.digest,
        "precision": judge.precision,
    }

    def kept_before() -> dict[str, Any] | None:
        return next((old for old in kept.all_scores(judge.folder) if result.items() <= old.items()), None)

    before = None if again else processes.agree(kept_before)
    if before is not None:
        found = kept.read_arrays(judge.folder, name, used)
        return Judged(name, found, before, lambda i: records[i].name)
    found = judge.answer(source, split)
    result |= {"seen": len(records), "scores": scores_of(source, found)}
    if source.answers is not None:
        result["seen"] = sum(bool(source.answers(i)) for i in range(len(records)))
    if processes.first():
        kept.write(judge.folder, result, found)
    processes.together("predictions")
    return Judged(name, found, result, lambda i: records[i].name)


def scores_of(source: Source, found: dict[str, np.ndarray]) -> dict[str, Any]:
    """Among the classes of the set first, where those are not all."""
    if source.answers is not None:
        answers = [source.answers(i) for i in range(len(found["labels"]))]
        return {"real": scores.as_json({"top1": scores.answered(found, answers)})}
    kinds = {"all": ""} if source.classes is None else {str(len(source.classes)): "", "all": "_all"}
    return {kind: scores.as_json(scores.score(among(found, ending))) for kind, ending in kinds.items()}
