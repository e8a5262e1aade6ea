"""Judges a ticket on datasets, prints what was found, and compares it with another ticket."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from giung2_ext.core import accounting
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.data.source import Missing
from giung2_ext.experiments import scores
from giung2_ext.experiments.building import totals_of
from giung2_ext.experiments.config import Config, default_config
from giung2_ext.experiments.judging import (
    Dataset,
    Judge,
    Judged,
    judge_dataset,
    judged_before,
    judgement,
    open_dataset,
)
from giung2_ext.experiments.scores import Columns
from giung2_ext.storage import paths, tickets
from giung2_ext.storage import predictions as kept
from giung2_ext.training import processes

CORRUPTED = "imagenet_c"
FIVE = ("imagenet2012", "imagenet_v2", "imagenet_r", "imagenet_a", "imagenet_sketch")


def expand(datasets: Sequence[str], data_root: str | None) -> list[str]:
    """`imagenet_c` alone means all of its variants that are there."""
    expanded: list[str] = []
    for dataset in datasets:
        if dataset != CORRUPTED:
            expanded.append(dataset)
            continue
        from giung2_ext.data.sources import _imagenet, imagenet_c

        there = [v for v in imagenet_c.VARIANTS if _imagenet.is_there(imagenet_c.wanted(v), data_root)]
        if not there:
            raise Refusal(_imagenet.missing(imagenet_c.wanted(imagenet_c.VARIANTS[0]), data_root))
        expanded += [f"{CORRUPTED}/{variant}" for variant in there]
    return expanded


def evaluate(
    ckpt: str,
    datasets: Sequence[str],
    where: Config,
    *,
    pipeline: str = "timm",
    split: str = "test",
    form: str | None = None,
    batch_size: int = 512,
    against: str | None = None,
) -> list[dict[str, Any]]:
    """Judges and prints; without datasets on the ticket's own."""
    judge = Judge(ckpt, batch_size, where)
    data_root = where.data_root
    own = judge.meta["data"]
    names = expand(datasets or [own["name"]], data_root)
    opened = [open_dataset(name, own, pipeline, data_root, split, form) for name in names]
    reference = Judge(against, batch_size, where) if against else None
    for dataset in opened:  # what does not fit is said before anything takes long
        for each in filter(None, (judge, reference)):
            each.check(dataset)
    describe(judge)
    if reference is not None:
        say([describe_overlap(judge, reference)])
    results = []
    for dataset in opened:
        judged = judge_dataset(judge, dataset)
        say(lines_of(judged.result))
        if reference is not None:
            other = judge_dataset(reference, dataset, again=False)
            judged.result["against"] = compare(judge, reference, judged, other)
        results.append(judged.result)
    corrupted = [r for r in results if r["dataset"].startswith(f"{CORRUPTED}/")]
    if len(corrupted) > 1:
        errors = [1 - r["scores"]["all"]["top1"][0] for r in corrupted]
        mean = f"{100 * np.mean(errors):.2f}%"
        say([f"{CORRUPTED}: mean error {mean} over {len(errors)} variants, unnormalised"])
    say([f"predictions: {judge.folder}"])
    return results


def say(lines: Iterable[str]) -> None:
    if processes.first():
        print("\n".join(lines), flush=True)


def describe(judge: Judge) -> None:
    """The ticket: what it is, what it was trained in, what it costs."""
    meta = judge.meta
    where = f"imported, {meta['imported']['format']}" if "imported" in meta else f"step {meta['step']:,}"
    weights, flops = totals_of(meta)
    say(
        [
            f"{judge.ckpt} (ticket {judge.ticket.digest[:16]}, {where}): "
            f"{meta['model']['name']} on {meta['data']['name']} in {judge.precision} "
            f"(trained in {meta.get('precision', 'float32')})",
            accounting.describe_weights(weights),
            accounting.describe_flops(flops),
        ]
    )


def describe_overlap(judge: Judge, reference: Judge) -> str:
    """How much two tickets' masks have in common, where they are of the same layers."""
    masks = judge.ticket.masks, reference.ticket.masks
    if not masking.same_layers(*masks):
        return f"masks: of other layers than those of {reference.ckpt}"
    return (
        f"masks: {masking.overlap(*masks):.4f} of what this ticket or {reference.ckpt} keeps is kept by "
        f"both (at random, with these densities of the layers: {masking.chance_overlap(*masks):.4f})"
    )


NAMES = {"top1": "top-1", "top5": "top-5", "nll": "NLL", "brier": "Brier", "ece": "ECE", "real": "ReaL"}


def text_of(name: str, score: Sequence[float], sign: str = "") -> str:
    value, low, high = score
    if name.startswith("top"):
        return f"{NAMES[name]} {100 * value:{sign}.2f}% [{100 * low:{sign}.2f}, {100 * high:{sign}.2f}]"
    return f"{NAMES[name]} {value:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def lines_of(result: dict[str, Any]) -> list[str]:
    """A dataset's scores, and what they are of."""
    lines = [f"{result['dataset']}: {result['about']}"]
    if result.get("damaged"):
        lines.append(f"  {result['damaged']:,} of them cannot be decoded and are judged as black images")
    for kind, found in result["scores"].items():
        if kind == "real":
            among = f"any of the right answers, {result['seen']:,} images that have one: "
        else:
            among = "" if len(result["scores"]) == 1 else f"among {kind} classes: "
        lines.append("  " + among + " · ".join(text_of(name, found[name]) for name in found))
    return lines


def compare(judge: Judge, reference: Judge, ours: Judged, theirs: Judged) -> dict[str, Any]:
    """Paired differences and the flipped examples, which are listed in a file beside the predictions."""
    compared = {}
    for kind, columns in ours.columns.items():
        found = scores.differ(columns, theirs.columns[kind])
        several = len(ours.columns) > 1
        listed = ours.dataset.name.replace("/", ".") + (f".{kind}" if several else "")
        name = f"flips.{listed}.{ours.dataset.pipeline}.against_{reference.ticket.digest[:16]}.csv"
        if processes.first():
            kept.write_flips(judge.folder / name, flips(ours, columns, theirs.columns[kind], found))
        say(
            [
                f"  minus {reference.ckpt}{f' among {kind} classes' if several else ''}: "
                + " · ".join(text_of(n, score, "+") for n, score in found.scores.items()),
                f"  {len(found.gained):,} examples gained, {len(found.lost):,} lost: {judge.folder / name}",
            ]
        )
        gained, lost = len(found.gained), len(found.lost)
        compared[kind] = {**scores.as_json(found.scores), "gained": gained, "lost": lost}
    return {"ticket": reference.ticket.digest, "scores": compared}


def flips(ours: Judged, columns: Columns, others: Columns, found: scores.Difference) -> list[list[Any]]:
    """A row for every example that one of the two has right and the other wrong."""
    rows: list[list[Any]] = [["example", "label", "answer", "answer of the reference", "flip"]]
    for flip, pairs in (("gained", found.gained), ("lost", found.lost)):
        for mine, other in pairs:
            row = columns.rows[mine]
            name, label = ours.dataset.records[int(row)].name, ours.predictions["labels"][row]
            rows.append([name, label, columns.answers[mine], others.answers[other], flip])
    return rows


def datasets_of(config: Config, say_line: Callable[[str], None]) -> list[Dataset]:
    """What a run's best ticket is to be judged on; `auto` leaves out, and says, what is not there."""
    asked, data_root = config.judge.datasets, config.placement.data_root
    automatic = asked == "auto"
    if automatic:
        asked = ",".join(FIVE) if config.data.name in FIVE else ""
    found, lacking = [], []
    for name in expand(list(filter(None, "" if asked == "none" else asked.split(","))), data_root):
        try:
            dataset = open_dataset(name, config.data.to_dict(), config.judge.pipeline, data_root)
        except Refusal as error:
            if not automatic:
                raise
            if isinstance(error, Missing):
                lacking.append(name)
            else:  # it is there, and something is wrong with it
                say_line(f"tickets are not judged on {name}: {error}")
            continue
        found.append(dataset)
    if lacking:
        say_line(
            f"tickets are not judged on {', '.join(lacking)}: not found "
            f"(--datasets={lacking[0]} says where it was looked for)"
        )
    names = [dataset.name for dataset in found]
    processes.check_same(names, "the sets that they find; give all of them the same data")
    return found


def judge_best(config: Config, folder: epath.Path, datasets: Sequence[Dataset]) -> list[str]:
    """Judges a finished run's best ticket where that is not kept already; its top-1 accuracies as text."""
    if not datasets:
        return []
    ckpt, judge = folder / paths.best(config.evaluation.select_by), None
    meta = processes.agree(lambda: tickets.read_meta(ckpt))
    words = []
    for dataset in datasets:
        result = judged_before(kept.folder_in(folder, meta["digest"]), judgement(dataset, meta))
        if result is None:
            judge = judge or Judge(os.fspath(ckpt), config.judge.batch_size, config.placement)
            result = judge_dataset(judge, dataset).result
        first = next(iter(result["scores"].values()))
        words.append(f"{dataset.name} {100 * first['top1'][0]:.2f}%")
    return words


def load_and_evaluate(
    path: str | os.PathLike[str],
    data_root: str | None = None,
    split_names: Sequence[str] = ("holdout", "test"),
) -> dict[str, dict[str, float]]:
    """A checkpoint's accuracy and loss on splits of its own data, as its run measures them.

    For a notebook: nothing is written. Any checkpoint of a run will do: initial, periodic, best or last.
    """
    where = default_config().placement
    where.data_root = data_root
    judge = Judge(os.fspath(path), 512, where)
    own, found = judge.meta["data"], {}
    for name in split_names:
        dataset = open_dataset(own["name"], own, "", data_root, name)  # the pipeline is the run's own
        answers = judge.answer(dataset)
        hits = answers["top"][:, 0] == answers["labels"]
        loss = answers["nll"].mean(dtype=np.float64)
        found[name] = {"accuracy": float(hits.mean()), "loss": float(loss), "seen": len(hits)}
    return found
