"""The table of a chain, as rows of text cells, and its three written forms."""

import csv
import io
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from giung2_ext.core import accounting
from giung2_ext.storage import paths

Table = list[list[str]]  # the first row is the header


SPREAD = ("%", "early stop")  # in the names of columns that hold means and deviations


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """`98.10 ± 0.32` of percentages, or the one value."""
    if len(values) < 2:
        return format(values[0], form) if values else "–"
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"


def weights_left(kept: Iterable[int]) -> str:
    """The count of all trials, or the least and the most."""
    ends = sorted(kept)
    return "–".join(f"{k:,}" for k in dict.fromkeys([ends[0], ends[-1]]))


def early_stops(points: Sequence[Any]) -> str:
    """Iterations of lowest validation loss, of the runs that were selected by it."""
    return spread([p.result["best_step"] for p in points if p.selected_by == "loss"], ",.0f")


def chain_table(points: Sequence[Any]) -> Table:
    """One row a cycle; arms in columns of their own."""
    arms = sorted({p.arm for p in points if p.arm})
    stopped = any(p.selected_by == "loss" for p in points)
    header = [
        "cycle",
        "weights left",
        "density",
        "density of all",
        "test % at iteration 0",
        "test %",
    ]
    header += [f"{arm} test %" for arm in arms]
    if stopped:
        header += ["early stop", *(f"{arm} early stop" for arm in arms)]
    rows = [header]
    for cycle in sorted({p.cycle for p in points}):
        here = [p for p in points if p.cycle == cycle]
        own = [p for p in here if p.arm == ""]
        if not own:
            continue
        result = own[0].result
        weights = accounting.totals_of(result["prunable"], result["kept"], result["parameters"])
        of_arms = [[p for p in here if p.arm == arm] for arm in arms]
        rows.append(
            [
                f"{cycle:03d}",
                weights_left(p.result["kept"] for p in own),
                f"{own[0].density:.4f}",
                f"{weights.all_kept / weights.all:.4f}",
                spread([p.accuracy("start") for p in own]),
                spread([p.accuracy("best") for p in own]),
                *(spread([p.accuracy("best") for p in found]) for found in of_arms),
                *(early_stops(found) for found in [own, *of_arms] if stopped),
            ]
        )
    return rows


def cost_table(points: Sequence[Any], rewind: Mapping[str, Any] | None = None) -> Table:
    """What a ticket of each cycle costs: weights by both denominators, FLOPs to use it, train it, find it.

    `rewind` is the result of the run to the rewind point, of the first trial.
    """
    header = ["cycle", "weights left", "density", "density of all", "FLOPs of an image", "of dense"]
    rows = [[*header, "FLOPs of training", "of dense", "of finding, in dense trainings"]]
    spent = (rewind or {}).get("training_flops") or [0, 0]
    found = spent[0]
    first = min((p.trial for p in points), default=0)
    for p in sorted((p for p in points if p.arm == "" and p.trial == first), key=lambda p: p.cycle):
        result, trained = p.result, p.result.get("training_flops")
        left = [f"{p.cycle:03d}", f"{result['kept']:,}", f"{p.density:.4f}"]
        if "flops" not in result or not trained or not trained[1]:  # of an earlier version
            rows.append([*left, *["–"] * 6])
            found = math.nan
            continue
        found += trained[0]
        weights = accounting.totals_of(result["prunable"], result["kept"], result["parameters"])
        flops = accounting.Totals(**result["flops"])
        price = [flops.all_kept, flops.all_kept / flops.all, trained[0], trained[0] / trained[1]]
        forms = (".4g", ".4f", ".4g", ".4f")
        cells = [f"{weights.all_kept / weights.all:.4f}", *map(format, price, forms)]
        rows.append([*left, *cells, "–" if math.isnan(found) else f"{found / trained[1]:.2f}"])
    return rows


def instability_table(found: Mapping[str, Any]) -> Table:
    """One row a cycle, from instability.json."""
    header = ["cycle", "weights left", "density", "error of a %", "error of b %"]
    rows = [[*header, "highest error on the path %", "instability %"]]
    for cycle in sorted({row["cycle"] for row in found["rows"]}):
        own = [row for row in found["rows"] if row["cycle"] == cycle]
        density = f"{own[0]['kept'] / own[0]['prunable']:.4f}"
        errors = [row["error"] for row in own]
        values = [[e[0] for e in errors], [e[-1] for e in errors], [max(e) for e in errors]]
        values.append([row["instability"] for row in own])
        cells = [spread([100 * v for v in some]) for some in values]
        rows.append([f"{cycle:03d}", weights_left(row["kept"] for row in own), density, *cells])
    return rows


SHIFTS = {  # the columns of the original suite's table
    "imagenet2012": "IN",
    "imagenet_v2": "IN-V2",
    "imagenet_r": "IN-R",
    "imagenet_a": "IN-A",
    "imagenet_sketch": "IN-S",
}


def shift_table(points: Sequence[Any]) -> Table:
    """Top-1 of each cycle's best ticket on ImageNet and its shifts; no rows where nothing was judged."""
    own = [p for p in points if p.arm == "" and p.judged]
    columns = judged_sets(own)
    header = ["Cycle", "# Params (Conv)", *(f"{SHIFTS.get(name, name)} %" for name in columns)]
    rows = [header + ["GFLOPs", "density of all"]]
    for cycle in sorted({p.cycle for p in own}):
        here = [p for p in own if p.cycle == cycle]
        result = here[0].result
        weights = accounting.totals_of(result["prunable"], result["kept"], result["parameters"])
        judged = [[p.judged[name] for p in here if name in p.judged] for name in columns]
        flops = result["flops"]["all_kept"] / 1e9 if "flops" in result else float("nan")
        rows.append(
            [f"{cycle:03d}", f"{result['kept']:,}"]
            + [spread([100 * usual_top1(scores)[0] for scores in found]) for found in judged]
            + [f"{flops:.3g}", f"{weights.all_kept / weights.all:.4f}"]
        )
    return rows


def judged_sets(points: Sequence[Any]) -> list[str]:
    """The sets that any of them was judged on, those of the original table first."""
    return in_order({name for p in points for name in p.judged})


def thinned(count: int, most: int) -> list[int]:
    """At most so many of 0, 1, …, count - 1, evenly, the first and the last among them."""
    taken = min(most, count)
    return [round(i * (count - 1) / max(1, taken - 1)) for i in range(taken)]


def in_order(names: set[str]) -> list[str]:
    return [name for name in SHIFTS if name in names] + sorted(names - set(SHIFTS))


def usual_top1(judged: dict[str, Any]) -> list[float]:
    """Top-1 and the ends of its interval, as it is usually reported: among the classes of the set."""
    return next(iter(judged["scores"].values()))["top1"]


def runs_table(points: Sequence[Any]) -> Table:
    """One row a run, with everything needed to trace a number to its tickets."""
    splits = list(points[0].result["scores"]["best"])
    splits = [split for split in splits if split != "train"]
    rows = [
        ["trial", "arm", "cycle", "seed", "kept", "prunable", "parameters", "best step", "selected on"]
        + [f"{split} accuracy {when}" for split in splits for when in ("start", "best", "last")]
        + ["best ticket", "last ticket", "matching ticket", "previous ticket", "folder"]
    ]
    for p in points:
        result, parents = p.result, p.result["parents"]
        row = [p.trial, p.arm, p.cycle, result["seed"], result["kept"], result["prunable"]]
        row += [result["parameters"], result["best_step"], result["selected_on"]]
        row += [p.accuracy(when, split) for split in splits for when in ("start", "best", "last")]
        row += [result["tickets"]["best"], result["tickets"]["last"]]
        row += [parents.get("matching", ""), parents.get("previous", ""), p.folder]
        rows.append([str(cell) for cell in row])
    return rows


def write_csv(rows: Table) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def to_markdown(table: Table) -> str:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]

    def line(cells: Sequence[str], align: Callable[[str, int], str] = str.rjust) -> str:
        return "| " + " | ".join(align(c, w) for c, w in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
    return "\n".join([line(table[0]), rule, *(line(row) for row in table[1:])])


def to_csv(table: Table) -> str:
    """Means and deviations in columns of their own, so that a program can read them."""
    split = [i for i, name in enumerate(table[0]) if any(mark in name for mark in SPREAD)]
    rows = []
    for number, row in enumerate(table):
        cells: list[str] = []
        for i, cell in enumerate(row):
            if i not in split:
                cells.append(cell.replace(",", ""))
            elif number == 0:
                cells += [cell, f"{cell} sd"]
            else:
                mean, _, deviation = cell.replace(",", "").partition(" ± ")
                cells += ["" if mean == "–" else mean, deviation]
        rows.append(cells)
    return write_csv(rows)


def to_latex(table: Table) -> str:
    def escape(cell: str) -> str:
        cell = re.sub(r"([%&#_])", r"\\\1", cell)
        return cell.replace(" ± ", r" $\pm$ ").replace("–", "--")

    lines = [" & ".join(escape(cell) for cell in row) + r" \\" for row in table]
    columns = "r" * len(table[0])
    body = [r"\begin{tabular}{" + columns + "}", r"\hline", lines[0], r"\hline", *lines[1:]]
    return "\n".join([*body, r"\hline", r"\end{tabular}", ""])


def write(folder: epath.Path, name: str, table: Table, as_csv: Callable[[Table], str] = to_csv) -> None:
    """NAME.md, NAME.csv and NAME.tex."""
    for kind, text in (("md", to_markdown(table) + "\n"), ("csv", as_csv(table)), ("tex", to_latex(table))):
        paths.write_bytes(folder / f"{name}.{kind}", text.encode())
