"""The rows of a report's summary and of what was judged: what the records say, without another look."""

import math
import os
from collections.abc import Sequence
from typing import Any

from giung2_ext.core import accounting
from giung2_ext.reports.gather import Gathered
from giung2_ext.reports.reading import Row, Run
from giung2_ext.reports.tables import SHIFTS, Table, in_order, spread, weights_left


def density(run: Run) -> float | None:
    counts = run.counts
    return counts["kept"] / counts["prunable"] if counts.get("prunable") else None


def wilson(share: float, seen: int) -> tuple[float, float]:
    """The 95% interval of an accuracy over `seen` examples, in percent (Wilson 1927)."""
    z = 1.96
    middle = (share + z * z / (2 * seen)) / (1 + z * z / seen)
    half = z / (1 + z * z / seen) * math.sqrt(share * (1 - share) / seen + z * z / (4 * seen * seen))
    return 100 * (middle - half), 100 * (middle + half)


def named(run: Run) -> Row:
    """What tells a row's run from the others."""
    place = run.place
    return {
        "series": run.series,
        "run": place.run,
        "arm": place.arm,
        "trial": place.trial,
        "cycle": run.cycle,
    }


def cycle_rows(gathered: Gathered) -> list[Row]:
    """One row a run: counts by both denominators, FLOPs, accuracies in percent, digests, how it stands."""
    return [named(run) | _counted(run) | _scored(run) | _standing(run) for run in gathered.shown]


def _counted(run: Run) -> Row:
    counts = run.counts
    if not counts.get("prunable"):
        return dict.fromkeys(("kept", "prunable", "density", "density_all", "flops", "flops_share"))
    weights = accounting.totals_of(counts["prunable"], counts["kept"], counts["parameters"])
    flops = counts.get("flops")
    return {
        "kept": weights.kept,
        "prunable": weights.prunable,
        "density": weights.kept / weights.prunable,
        "density_all": weights.all_kept / weights.all,
        "flops": flops["all_kept"] if flops else None,
        "flops_share": flops["all_kept"] / flops["all"] if flops and flops["all"] else None,
    }


def _scored(run: Run) -> Row:
    result = run.result
    if not result:
        return dict.fromkeys(("test", "test_low", "test_high", "start", "last", "held_out", "seen"))
    best = result["scores"]["best"]
    low, high = wilson(best["test"]["accuracy"], best["test"]["seen"])
    held = best.get("holdout", {}).get("accuracy")
    return {
        "test": 100 * best["test"]["accuracy"],
        "test_low": low,
        "test_high": high,
        "start": 100 * result["scores"]["start"]["test"]["accuracy"],
        "last": 100 * result["scores"]["last"]["test"]["accuracy"],
        "held_out": None if held is None else 100 * held,
        "seen": best["test"]["seen"],
    }


def _standing(run: Run) -> Row:
    return {
        "state": run.state,
        "why": run.why,
        "seed": run.counts.get("seed"),
        "selected_on": run.result.get("selected_on"),
        "digest": run.counts.get("tickets", {}).get("best") or run.meta.get("digest"),
        "folder": os.fspath(run.place.folder),
        "command": run.command,
    }


def judged_rows(gathered: Gathered) -> list[Row]:
    """One row for every set that a best ticket was judged on: top-1 and ECE with their intervals."""
    rows = []
    for run in gathered.shown:
        for scores in run.usual:
            kind, found = next(iter(scores["scores"].items()))
            top1, ece = found["top1"], found.get("ece", [None] * 3)
            row = named(run) | {"density": density(run), "dataset": scores["dataset"], "classes": kind}
            row |= {"pipeline": scores["pipeline"], "images": scores.get("images"), "seen": scores["seen"]}
            row |= dict(zip(("top1", "low", "high"), (100 * v for v in top1), strict=True))
            rows.append(row | dict(zip(("ece", "ece_low", "ece_high"), ece, strict=True)))
    return rows


def key(row: Row) -> tuple[str, int, int]:
    return row["series"], row["trial"], row["cycle"]


def plain(rows: Sequence[Row], judged: Sequence[Row]) -> list[Row]:
    """The rows with what each was judged to be: top-1 and ECE on every set."""
    found: dict[tuple[str, int, int], Row] = {}
    for r in judged:
        own = {f"{r['dataset']}_{part}": r[part] for part in ("top1", "low", "high", "ece")}
        found.setdefault(key(r), {}).update(own)
    names = dict.fromkeys(name for own in found.values() for name in own)
    return [row | dict.fromkeys(names) | found.get(key(row), {}) for row in rows]


def means(rows: Sequence[Row]) -> Table:
    """One row for every cycle of a series, over its finished trials; empty where none has several."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row["test"] is not None:
            groups.setdefault((row["series"], row["cycle"]), []).append(row)
    if all(len(own) == 1 for own in groups.values()):
        return []
    lines = [["run", "cycle", "trials", "weights left", "density", "test %", "held-out %"]]
    for (series, cycle), own in groups.items():
        held = [r["held_out"] for r in own if r["held_out"] is not None]
        cells = [series, f"{cycle:03d}", str(len(own)), weights_left(r["kept"] for r in own)]
        cells += [f"{own[0]['density']:.4f}", spread([r["test"] for r in own]), spread(held)]
        lines.append(cells)
    return lines


def sets_of(judged: Sequence[Row]) -> list[str]:
    return in_order({r["dataset"] for r in judged})


def number(value: Any, form: str) -> str:
    return "–" if value is None else format(value, form)


def table(rows: Sequence[Row], judged: Sequence[Row]) -> Table:
    """One row a run: density by both denominators, FLOPs, every judged set with its interval."""
    sets = sets_of(judged)
    header = [
        "run",
        "trial",
        "cycle",
        "state",
        "weights left",
        "density",
        "density of all",
        "FLOPs",
        "of dense",
    ]
    header += [
        "test %",
        "95%",
        "held-out %",
        *(f"{SHIFTS.get(n, n)} %" for n in sets),
        "seed",
        "ticket",
    ]
    found = {(*key(r), r["dataset"]): r for r in judged}
    lines = [header]
    for r in rows:
        cells = [r["series"], str(r["trial"]), f"{r['cycle']:03d}", r["state"]]
        cells += [number(r["kept"], ","), number(r["density"], ".4f"), number(r["density_all"], ".4f")]
        cells += [number(r["flops"], ".4g"), number(r["flops_share"], ".4f"), number(r["test"], ".2f")]
        cells += ["–" if r["test"] is None else f"{r['test_low']:.2f} to {r['test_high']:.2f}"]
        cells += [number(r["held_out"], ".2f")]
        for name in sets:
            own = found.get((*key(r), name))
            cells.append(f"{own['top1']:.2f} [{own['low']:.2f}, {own['high']:.2f}]" if own else "–")
        lines.append([*cells, number(r["seed"], "d"), (r["digest"] or "–")[:8]])
    return lines
