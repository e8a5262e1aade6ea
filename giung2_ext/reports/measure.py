"""Rows that need more than the records: overlaps of masks, sizes of weights, calibration, flips, curves.

Tickets are read a leaf at a time and masks are compared packed, so ResNet-50 needs little memory.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from giung2_ext.core.errors import Refusal
from giung2_ext.reports import results, summary, tables
from giung2_ext.reports.gather import Gathered
from giung2_ext.reports.reading import Reader, Row, Run
from giung2_ext.storage import leaves, predictions, records

Packed = Mapping[str, np.ndarray]
POINTS = 40  # of a learning curve, at most
BINS = 15  # of a reliability diagram
OCTAVES = range(-24, 6)  # of |w|


def masks_of(gathered: Gathered, reader: Reader) -> dict[int, Packed]:
    """{place in gathered.shown: packed masks of the best ticket}."""
    found = {}
    for i, run in enumerate(gathered.shown):
        if run.best is not None and run.result:
            packed = reader.read(f"{run.best}", lambda run=run: leaves.read_packed(run.best), None)
            if packed is not None:
                found[i] = packed
    return found


def overlap(a: Packed, b: Packed) -> float | None:
    """Jaccard index of two masks; None of other layers."""
    if {k: v.shape for k, v in a.items()} != {k: v.shape for k, v in b.items()}:
        return None
    both = sum(int(np.bitwise_count(a[k] & b[k]).sum()) for k in a)
    either = sum(int(np.bitwise_count(a[k] | b[k]).sum()) for k in a)
    return both / either if either else 1.0


def chance(a: Run, b: Run) -> float:
    """What masks with these densities of the layers have in common if drawn by themselves."""
    pairs = [(a.counts["layers"][k], b.counts["layers"][k]) for k in a.counts["layers"]]
    both = sum(x * y / size for (x, size), (y, _) in pairs)
    either = sum(x + y for (x, _), (y, _) in pairs) - both
    return both / either if either else 1.0


def overlap_rows(gathered: Gathered, masks: Mapping[int, Packed]) -> list[Row]:
    """Between cycles of a series' first trial; between trials, arms and runs at one cycle."""
    runs, rows = gathered.shown, []
    firsts = gathered.firsts
    for i, j in itertools.combinations(sorted(masks), 2):
        a, b = runs[i], runs[j]
        own = a.series == b.series
        between_cycles = own and a.place.trial == b.place.trial == firsts[a.series]
        if not between_cycles and a.cycle != b.cycle:
            continue
        value = overlap(masks[i], masks[j])
        if value is None:
            continue
        kind = "cycles" if between_cycles else "trials" if own else "methods"
        row = {"kind": kind, "series": a.series, "a": a.cycle, "b": b.cycle, "overlap": value}
        pair = a.series if own else f"{a.series} and {b.series}"
        if not own and (a.place.trial != b.place.trial or not comparable(a, b)):
            continue
        row |= {"run": a.series, "other": b.series}
        rows.append(
            row | {"pair": pair, "trials": f"{a.place.trial}, {b.place.trial}", "chance": chance(a, b)}
        )
    return rows


def comparable(a: Run, b: Run) -> bool:
    """An arm with the tickets of its own chain, and the tickets of one run with another's."""
    if a.place.arm or b.place.arm:
        return a.place.run == b.place.run and not (a.place.arm and b.place.arm)
    return True


def histogram(weights: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Counts of kept weights by the octave of |w|, read off the exponent's bits."""
    bits = weights[kept].astype(np.float32, copy=False).view(np.uint32)
    exponent = ((bits >> 23) & 0xFF).astype(np.int64) - 127
    return np.bincount(np.clip(exponent, OCTAVES[0], OCTAVES[-1]) - OCTAVES[0], minlength=len(OCTAVES))


def weight_rows(gathered: Gathered, masks: Mapping[int, Packed], reader: Reader) -> list[Row]:
    """Of the first trial's tickets: |w| of the cycle before, of all it kept and of what was left of it."""
    runs, rows = gathered.shown, []
    for series in gathered.series:
        own = [i for i in sorted(masks) if runs[i].series == series]
        own = [i for i in own if runs[i].place.trial == runs[own[0]].place.trial]
        for i, j in itertools.pairwise(own):
            if runs[j].cycle != runs[i].cycle + 1 or runs[j].place.arm:
                continue
            counts = reader.read(f"{runs[i].best}", lambda i=i, j=j: cut(runs[i], masks[i], masks[j]), None)
            if counts is None or not counts[0].any():
                continue
            shares = counts / counts[0].sum()
            there = np.flatnonzero(shares[0] > 1e-4)
            ends = max(there[0] - 1, 0), min(there[-1] + 2, len(OCTAVES))  # with an empty one on each side
            rows += [
                {"series": series, "cycle": runs[j].cycle, "when": when}
                | {"log2": OCTAVES[place], "share": float(own[place])}
                for when, own in zip(("before", "after"), shares, strict=True)
                for place in range(*ends)
            ]
    return rows


def cut(run: Run, before: Packed, after: Packed) -> np.ndarray:
    assert run.best is not None
    total = np.zeros((2, len(OCTAVES)), np.int64)
    with leaves.Leaves(run.best) as opened:
        for leaf in before:
            weights = opened.weights(leaf)
            for place, packed in enumerate((before[leaf], after[leaf])):
                total[place] += histogram(weights, np.unpackbits(packed, count=weights.size).astype(bool))
    return total


def layer_rows(gathered: Gathered) -> list[Row]:
    """Density of every layer of each series' first trial."""
    rows = []
    seen: dict[str, int] = {}
    for run in gathered.shown:
        if run.result and seen.setdefault(run.series, run.place.trial) == run.place.trial:
            for name, (kept, size) in run.result["layers"].items():
                row = {"series": run.series, "cycle": run.cycle, "layer": name.removesuffix("/kernel")}
                rows.append(row | {"density": kept / size, "kept": kept, "size": size})
    return rows


def curve_rows(gathered: Gathered, reader: Reader) -> list[Row]:
    """Accuracy in percent along every run's training, of held-out and test data; thinned."""
    rows = []
    for run in gathered.shown:
        folder = run.place.folder
        file = folder / records.METRICS
        lines = reader.read(f"{file}", lambda f=file: records.parsed_lines(f), [])
        measured = lines[:-1] if lines and lines[-1] is None else lines  # the last may be cut by a kill
        if not all(isinstance(row, dict) and "split" in row for row in measured):
            reader.warn(f"{file} has damaged rows, which are left out")
        for split in ("holdout", "test"):
            found = results.measured(measured, split)
            for row in (found[i] for i in tables.thinned(len(found), POINTS)):
                name = summary.named(run) | {"split": split, "density": summary.density(run)}
                rows.append(name | {"step": row["step"], "accuracy": 100 * row["accuracy"]})
    return rows


def arrays_of(run: Run, scores: Mapping[str, Any]) -> dict[str, np.ndarray]:
    folder = predictions.folder_in(run.place.folder, scores["ticket"])
    return predictions.read_arrays(folder, scores["dataset"], scores["pipeline"])


def reliability_rows(gathered: Gathered, reader: Reader) -> list[Row]:
    """Accuracy and mean confidence in each of 15 bins of the confidence, of each series' first trial."""
    rows = []
    seen: dict[str, int] = {}
    for run in gathered.shown:
        if not run.judged or seen.setdefault(run.series, run.place.trial) != run.place.trial:
            continue
        for scores in run.usual:
            if next(iter(scores["scores"])) == "real":
                continue
            what = f"{run.place.folder}: predictions on {scores['dataset']}"
            found = reader.read(what, lambda run=run, scores=scores: bins_of(arrays_of(run, scores)), [])
            name = summary.named(run) | {"dataset": scores["dataset"], "density": summary.density(run)}
            rows += [name | row for row in found]
    return rows


def bins_of(found: Mapping[str, np.ndarray]) -> list[Row]:
    confidence, hits = found["confidence"].astype(float), found["top"][:, 0] == found["labels"]
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(place, minlength=BINS)
    mean = np.bincount(place, confidence, BINS) / np.maximum(count, 1)
    right = np.bincount(place, hits, BINS) / np.maximum(count, 1)
    return [
        {"confidence": mean[i], "accuracy": right[i], "examples": int(count[i])}
        for i in range(BINS)
        if count[i]
    ]


def flip_rows(gathered: Gathered, reader: Reader, most: int = 48) -> list[Row]:
    """Examples that the first cycle's ticket has right and a later one wrong, the surest first."""
    rows = []
    runs = [run for run in gathered.shown if run.judged and run.place.arm == ""]
    for dense in [run for run in runs if run.cycle == 0 and not run.place.plain]:
        later = [r for r in runs if r.place[:2] == dense.place[:2] and r.cycle > 0]
        for run in later:
            for scores in run.usual:
                if next(iter(scores["scores"])) == "real":  # whose labels the arrays do not have
                    continue
                pair = next((s for s in dense.usual if same_images(s, scores)), None)
                if pair is None:
                    continue
                what = f"{run.place.folder}: predictions on {scores['dataset']}"
                both = (run, scores), (dense, pair)
                lost = reader.read(what, lambda b=both: flips(*(arrays_of(*one) for one in b)), [])
                rows += [summary.named(run) | {"dataset": scores["dataset"]} | row for row in lost]
    rows.sort(key=lambda row: -row["confidence"])
    return rows[:most]


def same_images(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all(a.get(key) == b.get(key) for key in ("dataset", "pipeline", "images"))


def flips(own: Mapping[str, np.ndarray], dense: Mapping[str, np.ndarray], most: int = 12) -> list[Row]:
    if not np.array_equal(own["ids"], dense["ids"]):
        raise Refusal("the two were not judged on the same images in the same order")
    lost = (dense["top"][:, 0] == dense["labels"]) & (own["top"][:, 0] != own["labels"])
    order = sorted(np.flatnonzero(lost), key=lambda i: -float(dense["confidence"][i]))[:most]
    return [
        {
            "example": int(i),
            "label": int(own["labels"][i]),
            "pruned_answer": int(own["top"][i, 0]),
            "confidence": float(dense["confidence"][i]),
        }
        for i in order
    ]


def lineage_rows(gathered: Gathered) -> list[Row]:
    """Every best ticket and what it names as its parents, by the first eight digits of their digests."""
    rows = []
    for run in gathered.runs:
        digest = (run.result.get("tickets") or {}).get("best") or run.meta.get("digest")
        if digest:
            parents = run.result.get("parents") or run.meta.get("parents") or {}
            row = summary.named(run) | {"cycle": run.cycle if run.counted else -1, "ticket": digest[:8]}
            rows.append(row | {name: str(parents.get(name, ""))[:8] for name in ("matching", "previous")})
            last = (run.result.get("tickets") or {}).get("last")
            if not run.counted and last and last != digest:  # which cycles may start from
                rows.append(row | {"ticket": last[:8], "matching": "", "previous": ""})
    return rows


def environment_rows(gathered: Gathered) -> list[Row]:
    """Where each run or chain was last worked on, and with what."""
    rows: dict[str, Row] = {}
    for run in gathered.runs:
        sessions = run.stored.get("sessions") or [] if isinstance(run.stored, Mapping) else []
        if sessions and run.place.run not in rows:
            found = sessions[-1].get("environment", {})
            packages = ", ".join(f"{k} {v}" for k, v in found.get("packages", {}).items())
            rows[run.place.run] = {
                "run": run.place.run,
                "started": found.get("started"),
                "commit": found.get("commit"),
                "python": found.get("python"),
                "platform": found.get("platform"),
                "packages": packages,
                "command": run.command,
            }
    return list(rows.values())


def recipe_rows(gathered: Gathered) -> list[Row]:
    """The recipe of the first finished place of every run, a column a run, differing fields first."""
    columns: dict[str, dict[str, Any]] = {}
    for run in gathered.shown:
        if run.stored.get("recipe") and run.place.run not in columns:
            columns[run.place.run] = records.flatten(run.stored["recipe"])
    fields = dict.fromkeys(field for recipe in columns.values() for field in recipe)
    rows = [
        {"field": f, **{name: str(recipe.get(f, "–")) for name, recipe in columns.items()}} for f in fields
    ]
    return sorted(rows, key=lambda row: not differs(row))


def differs(row: Row) -> bool:
    """Whether a field of the recipe is not the same everywhere."""
    _, *values = row.values()
    return len({*values}) > 1


def spans(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and one standard deviation below and above it."""
    mean = float(np.mean(values))
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return mean, mean - deviation, mean + deviation
