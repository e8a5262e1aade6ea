"""Linear mode connectivity: the error on the straight line between two tickets' weights.

Instability is the highest error on the line minus the mean of its two ends' errors; a ticket whose
children, trained under different data orders, are so connected is stable (Frankle et al. 2020,
https://arxiv.org/abs/1912.05671, section 2). The running statistics of BatchNorm do not fit a network
between two others, so between the ends they are estimated anew: the moving average over batches of
training images, in the networks' own groups. All points of a line lie on the devices together, so that
images are read once for all of them.

    DIR/[trial_i/]NNN and DIR/[trial_i/]sibling/NNN    a cycle and the same ticket under another order
    DIR/instability.json                               what was found, written anew after every pair
"""

import contextlib
import functools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from flax import linen as nn

from giung2_ext.core.errors import Refusal
from giung2_ext.data import streaming
from giung2_ext.data.reader import Reader
from giung2_ext.experiments.config import Config
from giung2_ext.experiments.evaluate import say
from giung2_ext.experiments.feeding import Warnings
from giung2_ext.experiments.judging import Dataset, Judge, open_dataset, precision_of
from giung2_ext.experiments.scores import Predictions
from giung2_ext.storage import paths, records, tickets
from giung2_ext.training import processes, signals
from giung2_ext.training.population import Population
from giung2_ext.training.step import network

Tree = Any
ARM = "sibling"
SEED = 0  # of the order in which training images are seen


class Pair(NamedTuple):
    trial: int | None  # None: of no chain
    cycle: int | None
    a: str
    b: str


def pairs_of(folder: epath.Path) -> list[Pair]:
    """The last tickets of every cycle that is finished in a chain and in its siblings."""

    def find() -> list[list[Any]]:
        found = []
        for trial, base in paths.trial_bases(folder).items():
            for other in sorted((base / ARM).glob("[0-9][0-9][0-9]")):
                both = base / other.name, other
                if all(records.read_result(cycle) is not None for cycle in both):
                    found.append([trial, int(other.name), *(str(cycle / paths.LAST) for cycle in both)])
        return found

    pairs = [Pair(*one) for one in processes.agree(find)]
    if not pairs:
        raise Refusal(
            f"no cycle (000, 001, …) below {folder} is finished both in the chain and in its arm {ARM}; "
            "train that arm, or name two tickets by --ckpt and --against"
        )
    return pairs


def analyse(
    pairs: Sequence[Pair],
    where: Config,
    file: epath.Path | None = None,
    *,
    points: int = 11,
    split: str = "test",
    pipeline: str = "timm",
    form: str | None = None,
    batch_size: int = 512,
    statistics: int = 50,
) -> dict[str, Any]:
    """Prints and returns the error along every pair's line; what `file` holds of it is not computed again.

    Pairs are of one recipe. `statistics` batches estimate those of BatchNorm; 0: they are interpolated.
    """
    first = Judge(pairs[0].a, batch_size, where)
    own = first.meta["data"]
    open_split = functools.partial(open_dataset, own["name"], own, pipeline, where.data_root, form=form)
    dataset = open_split(split=split)
    first.check(dataset)
    normalised = "batch_stats" in first.ticket.statistics
    train = open_split(split="train") if normalised and statistics else None
    header = header_of(dataset, points, describe(first, statistics) if normalised else "none", own["name"])
    processes.check_same(header, "the images that they find; give all of them the same data")
    known = processes.agree(lambda: known_rows(file, header, pairs))
    about = f"{own['name']} {dataset.split}: {dataset.about}"
    say([about, f"BatchNorm statistics: {header['statistics']}"])
    for index, pair in enumerate(pairs):
        row = known[index]
        if row is None:
            judges = [Judge(ckpt, batch_size, where) for ckpt in (pair.a, pair.b)]
            check_pair(*judges)
            networks = line(*judges, header["alphas"])
            if train is not None:
                batches = training_batches(judges[0], train, statistics)
                networks[1:-1] = estimate(judges[0], networks[1:-1], batches)
            row = known[index] = row_of(pair, judges, judges[0].answer_as(dataset, networks))
            write(file, header, known)
        say([text_of(pair, row, header["alphas"])])
    return header | {"rows": known}


def header_of(dataset: Dataset, points: int, statistics: str, name: str) -> dict[str, Any]:
    return {
        "dataset": name,
        "split": dataset.split,
        "pipeline": dataset.pipeline,
        "images": dataset.images,
        "about": dataset.about,
        "alphas": np.linspace(0, 1, points).tolist(),
        "statistics": statistics,
    }


def known_rows(
    file: epath.Path | None, header: dict[str, Any], pairs: Sequence[Pair]
) -> list[dict[str, Any] | None]:
    """What the file holds of these pairs, if it is of the same images, points and statistics."""
    old = (records.read_json(file) if file is not None else None) or {}
    other = [name for name in header if name != "about" and old.get(name) != header[name]]
    if old and other:
        say([f"{file} is of other settings ({', '.join(other)}) and is made anew"])
    rows = {(r["trial"], r["cycle"], r["a"], r["b"]): r for r in old.get("rows", []) if not other}
    digests = [(tickets.read_meta(pair.a)["digest"], tickets.read_meta(pair.b)["digest"]) for pair in pairs]
    return [rows.get((p.trial, p.cycle, *both)) for p, both in zip(pairs, digests, strict=True)]


def write(file: epath.Path | None, header: dict[str, Any], known: Sequence[dict[str, Any] | None]) -> None:
    if file is not None and processes.first():
        report = header | {"rows": [row for row in known if row is not None]}
        paths.write_bytes(file, (json.dumps(report, indent=1) + "\n").encode())


def check_pair(a: Judge, b: Judge) -> None:
    """Refuses tickets between which there is no line; one that leaves their masks is pointed out."""

    def identity(judge: Judge) -> list[Any]:
        names = ("model", "num_classes", "image_shape")
        return [*(judge.meta[name] for name in names), precision_of(judge.meta)]

    mine, theirs = identity(a), identity(b)
    if mine != theirs:
        raise Refusal(
            f"a line needs two tickets of one network: {a.ckpt} is {describe_network(mine)}, "
            f"{b.ckpt} is {describe_network(theirs)}"
        )
    if a.meta["mask_digest"] != b.meta["mask_digest"]:
        say([f"warning: {a.ckpt} and {b.ckpt} have different masks; the line between them leaves both"])


def describe_network(identity: Sequence[Any]) -> str:
    model, classes, shape, precision = identity
    return f"{json.dumps(model)} of {classes} classes on images of {shape} in {precision}"


def line(a: Judge, b: Judge, alphas: Sequence[float]) -> list[Tree]:
    """(weights, statistics) at every alpha, on the devices; the ends are the tickets' own."""
    ends = [(judge.ticket.params, judge.ticket.statistics) for judge in (a, b)]

    def between(alpha: float) -> Tree:
        def one(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            x_exact = x.astype(np.float64)
            return (x_exact + alpha * (y - x_exact)).astype(x.dtype)  # exact where x == y

        return a.population.place([jax.tree.map(one, *ends)])

    return [a.network, *map(between, alphas[1:-1]), b.network]


def statistics_batch(judge: Judge) -> int:
    """The batch size, rounded up to whole BatchNorm groups and to the devices."""
    multiple = math.lcm(judge.population.layout.devices, judge.meta["model"].get("group_size") or 1)
    return -(-judge.batch_size // multiple) * multiple


def describe(judge: Judge, batches: int) -> str:
    if not batches:
        return "interpolated"
    size = statistics_batch(judge)
    return f"estimated between the ends on {batches} batches of {size} training images"


def training_batches(judge: Judge, train: Dataset, count: int) -> Iterator[Tree]:
    """Full batches of training images in a shuffled order, prepared as for evaluation."""
    where, layout, size = judge.where, judge.population.layout, statistics_batch(judge)
    recipe = streaming.Recipe(train.source.image_shape[0], train.pipeline)
    rows = streaming.Training(train.records, recipe, size, layout.rows_here(size), SEED)
    warn = Warnings("replaced by the next image")

    def host(step: int) -> Iterator[dict[str, np.ndarray]]:
        return streaming.host_batches(rows, step, where.num_workers, report=warn)

    reader = Reader(host, functools.partial(layout.join_rows, size=size), where.prefetch_factor)
    with contextlib.closing(reader):
        for step in range(count):
            yield reader.batch(step)


def estimate(judge: Judge, networks: Sequence[Tree], batches: Iterator[Tree]) -> list[Tree]:
    """The same weights with the statistics that they have after seeing the batches."""
    moved = list(networks)
    program = _moving(judge.model, judge.population)
    with signals.watched(judge.where.stalled_after) as alive:
        for batch in batches:
            moved = [(weights, program((weights, old), batch["images"])) for weights, old in moved]
            jax.block_until_ready(moved)  # no more than one batch waits on the devices
            alive()
    return moved


@functools.cache
def _moving(model: nn.Module, population: Population) -> Any:
    """Compiled once for all tickets of a network."""

    def run(weights: tuple[Tree, Tree], images: jax.Array) -> Tree:
        _, updated = network(model, *weights, images, train=True)
        return {**weights[1], **updated}

    return population.compile(run)


def row_of(pair: Pair, judges: Sequence[Judge], answers: Sequence[Predictions]) -> dict[str, Any]:
    """Errors are fractions of wrong answers, losses mean cross-entropies."""
    error = [float((found["top"][:, 0] != found["labels"]).mean()) for found in answers]
    loss = [float(found["nll"].mean(dtype=np.float64)) for found in answers]
    a, b = (judge.meta for judge in judges)
    return {
        "trial": pair.trial,
        "cycle": pair.cycle,
        "kept": a["kept"],
        "prunable": a["prunable"],
        "a": a["digest"],
        "b": b["digest"],
        "error": error,
        "loss": loss,
        "instability": max(error) - (error[0] + error[-1]) / 2,
    }


def text_of(pair: Pair, row: dict[str, Any], alphas: Sequence[float]) -> str:
    error, left = row["error"], row["kept"] / row["prunable"]
    called = f"{pair.a} to {pair.b}"
    if pair.trial is not None:
        called = f"trial {pair.trial}, cycle {pair.cycle:03d}"
    at = alphas[int(np.argmax(error))]
    none = ", no barrier: the highest is an end" if at in (0, 1) else ""
    return (
        f"{called}: {100 * left:.2f}% of weights left · error {100 * error[0]:.2f}% and "
        f"{100 * error[-1]:.2f}% at the ends, highest {100 * max(error):.2f}% (alpha {at:.2f}) · "
        f"instability {100 * row['instability']:.2f}%{none}"
    )


def table_of(report: dict[str, Any]) -> list[str]:
    """The first pair's line, point by point."""
    [row, *_] = report["rows"]
    points = zip(report["alphas"], row["error"], row["loss"], strict=True)
    return ["alpha  error %    loss", *(f"{a:5.2f}  {100 * e:7.2f}  {n:.4f}" for a, e, n in points)]
