"""Scores of kept predictions with 95% intervals, and paired differences of two tickets.

Intervals are bootstrap percentiles over examples (Efron 1979). The calibration error is biased upwards
by resampling, so its interval is the basic one, reflected at the estimate; an accuracy of 0 or 1, which
no resample can leave, has the exact binomial bound (Clopper & Pearson 1934). ECE has 15 bins of equal
width (Guo et al. 2017); the Brier score sums over classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from giung2_ext.core.errors import Refusal

Predictions = Mapping[str, np.ndarray]
BINS = 15
RESAMPLES = 1000
LEVEL = 0.95
ENDS = (1 - LEVEL) / 2, (1 + LEVEL) / 2


class Score(NamedTuple):
    value: float
    low: float
    high: float


class Columns(NamedTuple):
    """What scores are averages of, example by example."""

    ids: np.ndarray
    means: dict[str, np.ndarray]  # top1 and what else is averaged
    answers: np.ndarray  # the likeliest class
    rows: np.ndarray  # of the predictions
    gaps: np.ndarray | None = None  # (examples, BINS): confidence minus hit, in the bin of the confidence


def columns_of(found: Predictions) -> Columns:
    hits = found["top"] == found["labels"][:, None]
    means = {
        "top1": hits[:, 0].astype(np.float64),
        "top5": hits.any(axis=1).astype(np.float64),
        "nll": found["nll"].astype(np.float64),
        "brier": found["brier"].astype(np.float64),
    }
    confidence = found["confidence"].astype(np.float64)
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    rows = np.arange(len(bins))
    gaps = np.zeros((len(bins), BINS))
    gaps[rows, bins] = confidence - means["top1"]
    return Columns(found["ids"], means, found["top"][:, 0], rows, gaps)


def answered(found: Predictions, answers: Sequence[tuple[int, ...]]) -> Columns:
    """ReaL accuracy: the answer is one of an example's right ones; those without any are left out."""
    rows = np.array([i for i, right in enumerate(answers) if right], int)
    if not rows.size:
        raise Refusal(f"none of the {len(answers):,} images has a right answer")
    hits = np.array([found["top"][i, 0] in answers[i] for i in rows], np.float64)
    return Columns(found["ids"][rows], {"top1": hits}, found["top"][rows, 0], rows)


def score(columns: Columns, seed: int = 0) -> dict[str, Score]:
    """Every mean, and the calibration error `ece` if there are gaps."""
    names, values = list(columns.means), list(columns.means.values())
    count = len(names)
    table = np.column_stack(values if columns.gaps is None else [*values, columns.gaps])

    def reduce(means: np.ndarray) -> np.ndarray:
        if columns.gaps is None:
            return means
        return np.column_stack([means[:, :count], np.abs(means[:, count:]).sum(axis=1)])

    value = reduce(table.mean(axis=0, keepdims=True))[0]
    low, high = np.quantile(reduce(resample(table, seed)), ENDS, axis=0)
    exact = ENDS[0] ** (1 / len(table))
    for i, name in enumerate(names):
        if name.startswith("top") and value[i] in (0, 1):
            low[i], high[i] = (0, 1 - exact) if value[i] == 0 else (exact, 1)
    if columns.gaps is not None:
        names.append("ece")
        least, most = 2 * value[-1] - high[-1], 2 * value[-1] - low[-1]
        low[-1], high[-1] = min(max(0.0, least), value[-1]), max(most, value[-1])
    found = zip(names, value, low, high, strict=True)
    return {name: Score(float(v), float(a), float(b)) for name, v, a, b in found}


def resample(table: np.ndarray, seed: int) -> np.ndarray:
    """The columns' means over `RESAMPLES` resamples of the rows."""
    size, draw = len(table), np.random.default_rng(seed)
    counts = np.empty((10, size))
    means = []
    for _ in range(RESAMPLES // len(counts)):
        for row in counts:
            row[:] = np.bincount(draw.integers(0, size, size), minlength=size)
        means.append(counts @ table / size)
    return np.concatenate(means)


class Difference(NamedTuple):
    """Of one ticket and a reference on the same examples: ours minus theirs."""

    scores: dict[str, Score]
    gained: np.ndarray  # (n, 2): places in the columns, ours and theirs, of what only we have right
    lost: np.ndarray  # and of what only the reference has right


def differ(ours: Columns, theirs: Columns, seed: int = 0) -> Difference:
    """Paired over examples, which are matched by their ids."""
    mine, other = np.argsort(ours.ids, kind="stable"), np.argsort(theirs.ids, kind="stable")
    if not np.array_equal(ours.ids[mine], theirs.ids[other]):
        raise Refusal(
            f"the two tickets were not judged on the same images: {len(mine):,} and {len(other):,}, "
            f"{len(np.intersect1d(ours.ids, theirs.ids)):,} of them in both"
        )
    table = np.column_stack([ours.means[name][mine] - theirs.means[name][other] for name in ours.means])
    value = table.mean(axis=0)
    low, high = np.quantile(resample(table, seed), ENDS, axis=0)
    pairs, flip = np.column_stack([mine, other]), table[:, list(ours.means).index("top1")]
    return Difference(
        {n: Score(*map(float, s)) for n, *s in zip(ours.means, value, low, high, strict=True)},
        pairs[flip > 0],
        pairs[flip < 0],
    )


def as_json(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {name: list(value) for name, value in scores.items()}
