"""results.csv and test_acc.csv: every run and every measurement of the test split, for other programs.

One row a run, or a measurement; accuracies are fractions. Arms and tickets are told apart by `arm`.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.reports.tables import Table
from giung2_ext.storage import paths, records

Run = tuple[int, str, int]  # trial, arm, cycle
Curves = Mapping[Run, list[dict[str, Any]]]

RESULTS = [
    *("arch", "identifier", "trial", "round", "iterations", "best_validation_loss", "best_iteration"),
    *("acc_at_best_iter", "loss_at_best_iter", "num_weights", "percent_weights", "arm", "seed"),
]
TEST = ["identifier", "trial", "round", "iteration", "test_acc", "test_loss", "arm", "seed"]


def read_curves(points: Sequence[Any]) -> Curves:
    """The measurements of the test split along every run's training; no entry for a run without any."""
    curves = {}
    for p in points:
        rows = measured(records.read_metrics(p.folder), "test")
        if rows:
            curves[p.trial, p.arm, p.cycle] = rows
    return curves


def measured(rows: Iterable[Any], split: str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of a split, without what is damaged."""

    def sound(row: Any) -> bool:
        numbers = [row.get(field) for field in ("step", "accuracy", "loss")]
        return all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)

    return [row for row in rows if isinstance(row, dict) and row.get("split") == split and sound(row)]


def read_instability(folder: epath.Path, lasts: Collection[str]) -> dict[str, Any] | None:
    """What was found on tickets that the chain still has; `left_out` counts the other rows."""
    found = records.read_json(folder / paths.INSTABILITY)
    if found:
        for row in found["rows"]:
            row["cycle"], row["kept"] / row["prunable"], float(row["instability"])
            if len(row["error"]) != len(found["alphas"]):
                raise Refusal(f"{folder / paths.INSTABILITY}: {row['error']} at {found['alphas']}")
        rows = [row for row in found["rows"] if row["a"] in lasts]
        found |= {"rows": rows, "left_out": len(found["rows"]) - len(rows)}
    return found


def arch(folder: epath.Path) -> str:
    """The name of a run's network, with its depth if it has one: conv2; nothing without its recipe."""
    try:
        model = (records.recorded_recipe(folder) or {}).get("model", {})
    except Refusal:
        model = {}
    return f"{model.get('name', '')}{model.get('depth', '')}"


def results_table(points: Sequence[Any], identifier: str) -> Table:
    rows = [RESULTS]
    for p in points:
        result, best = p.result, p.result["scores"]["best"]
        row = [arch(p.folder), identifier, p.trial, p.cycle, result["steps"]]
        stopped = p.selected_by == "loss" and result["selected_on"] != "test"
        row += [best[result["selected_on"]]["loss"] if stopped else "", result["best_step"]]
        row += [best["test"]["accuracy"], best["test"]["loss"]]
        row += [result["kept"], 100 * p.density, p.arm or "ticket", result["seed"]]
        rows.append([str(cell) for cell in row])
    return rows


def measurements_table(points: Sequence[Any], curves: Curves, identifier: str) -> Table:
    rows = [TEST]
    for p in points:
        for found in curves.get((p.trial, p.arm, p.cycle), ()):
            row = [identifier, p.trial, p.cycle, found["step"], found["accuracy"], found["loss"]]
            rows.append([str(cell) for cell in [*row, p.arm or "ticket", p.result["seed"]]])
    return rows
