"""Scores of kept predictions with 95% intervals, and paired differences of two tickets.

Intervals are bootstrap percentiles over examples (Efron 1979). The calibration error is biased upwards
by resampling, so its interval is the basic one, reflected at the estimate; an accuracy of 0 or 1, which
no resample can leave, has the exact binomial bound (Clopper & Pearson 1934). ECE has 15 bins of equal
width (Guo et al. 2017); the Brier score sums over classes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from giung2_ext.core.errors import Refusal

Predictions = Mapping[str, np.ndarray]
BINS = 15
RESAMPLES = 1000
LEVEL = 0.95
MEANS = ("top1", "top5", "nll", "brier")


class Score(NamedTuple):
    value: float
    low: float
    high: float


def terms(found: Predictions) -> dict[str, np.ndarray]:
    """Every example's contribution to the scores that are means."""
    hits = found["top"] == found["labels"][:, None]
    return {
        "top1": hits[:, 0].astype(np.float64),
        "top5": hits.any(axis=1).astype(np.float64),
        "nll": found["nll"].astype(np.float64),
        "brier": found["brier"].astype(np.float64),
    }


def score(found: Predictions, seed: int = 0) -> dict[str, Score]:
    """top1, top5, nll, brier and ece."""
    means = terms(found)
    confidence = found["confidence"].astype(np.float64)
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.zeros((len(bins), BINS))
    gaps[np.arange(len(bins)), bins] = confidence - means["top1"]
    columns = np.column_stack([*(means[name] for name in MEANS), gaps])

    def reduce(sums: np.ndarray) -> np.ndarray:
        return np.column_stack([sums[:, : len(MEANS)], np.abs(sums[:, len(MEANS) :]).sum(axis=1)])

    value = reduce(columns.mean(axis=0, keepdims=True))[0]
    low, high = np.quantile(reduce(resample(columns, seed)), _ends(), axis=0)
    for i in range(2):  # of top1 and top5
        if value[i] in (0, 1):
            exact = ((1 - LEVEL) / 2) ** (1 / len(columns))
            low[i], high[i] = (0, 1 - exact) if value[i] == 0 else (exact, 1)
    low[-1], high[-1] = max(0.0, 2 * value[-1] - high[-1]), 2 * value[-1] - low[-1]
    return {
        name: Score(float(v), float(a), float(b))
        for name, v, a, b in zip((*MEANS, "ece"), value, low, high, strict=True)
    }


def _ends() -> tuple[float, float]:
    return (1 - LEVEL) / 2, (1 + LEVEL) / 2


def resample(columns: np.ndarray, seed: int) -> np.ndarray:
    """The columns' means over `RESAMPLES` resamples of the rows."""
    size, draw = len(columns), np.random.default_rng(seed)
    counts = np.empty((10, size))
    means = []
    for _ in range(RESAMPLES // len(counts)):
        for row in counts:
            row[:] = np.bincount(draw.integers(0, size, size), minlength=size)
        means.append(counts @ columns / size)
    return np.concatenate(means)


class Difference(NamedTuple):
    """Of one ticket and a reference on the same examples: ours minus theirs."""

    scores: dict[str, Score]
    gained: np.ndarray  # (n, 2): rows, ours and theirs, of the examples that only we have right
    lost: np.ndarray  # and of those that only the reference has right


def differ(ours: Predictions, theirs: Predictions, seed: int = 0) -> Difference:
    """Paired over examples, which are matched by their ids."""
    mine, other = np.argsort(ours["ids"], kind="stable"), np.argsort(theirs["ids"], kind="stable")
    if not np.array_equal(ours["ids"][mine], theirs["ids"][other]):
        raise Refusal(
            f"the two tickets were not judged on the same images: {len(mine):,} and {len(other):,}, "
            f"{len(np.intersect1d(ours['ids'], theirs['ids'])):,} of them in both"
        )
    a, b = terms(ours), terms(theirs)
    columns = np.column_stack([a[name][mine] - b[name][other] for name in MEANS])
    value = columns.mean(axis=0)
    low, high = np.quantile(resample(columns, seed), _ends(), axis=0)
    rows = np.column_stack([mine, other])
    return Difference(
        {n: Score(*map(float, s)) for n, *s in zip(MEANS, value, low, high, strict=True)},
        rows[columns[:, 0] > 0],
        rows[columns[:, 0] < 0],
    )


def answered(found: Predictions, answers: list[tuple[int, ...]]) -> Score:
    """ReaL accuracy: the answer is one of an example's right ones; those without any are left out."""
    rows = [i for i, right in enumerate(answers) if right]
    hits = np.array([[found["top"][i, 0] in answers[i]] for i in rows], float)
    low, high = np.quantile(resample(hits, 0), _ends())
    return Score(float(hits.mean()), float(low), float(high))


def as_json(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {name: list(value) for name, value in scores.items()}
