"""Reads a chain's folders and writes its report as text: tables, what they are, figures."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.reports import charts, results, tables
from giung2_ext.reports.charts import Chart
from giung2_ext.storage import paths, predictions, records

FAMILY = re.compile(r"imagenet[^:]*")  # a colon names another split


class Point(NamedTuple):
    """One finished cycle of one trial's tickets (`arm` is "") or of one of its arms."""

    trial: int
    arm: str
    cycle: int
    folder: epath.Path
    result: dict[str, Any]
    judged: Mapping[str, dict[str, Any]] = {}
    """Scores of the best ticket by dataset, as `evaluate.py` and `imp.py` keep them"""

    @property
    def density(self) -> float:
        return self.result["kept"] / self.result["prunable"]

    @property
    def selected_by(self) -> str:
        """What its best step was chosen by: accuracy, or loss (an early stop)."""
        return self.result.get("selected_by", "accuracy")

    @property
    def best(self) -> epath.Path:
        return self.folder / paths.best(self.selected_by)

    def accuracy(self, when: str, split: str = "test") -> float:
        """In percent; `when` is start, best or last."""
        return 100 * self.result["scores"][when][split]["accuracy"]


def read_chain(folder: epath.Path) -> list[Point]:
    """Every finished cycle below a chain's folder, with one trial or several."""
    points = []
    for trial, arm, cycle in paths.chain_cycles(folder):
        result = records.read_result(cycle)
        if result is not None:
            judged = read_judged(cycle, result["tickets"]["best"])
            points.append(Point(trial, arm, int(cycle.name), cycle, result, judged))
    if not any(point.arm == "" for point in points):
        if not folder.exists():
            raise Refusal(f"there is no folder {folder}")
        raise Refusal(f"no finished cycle (000, 001, …) below {folder}")
    return points


def read_judged(folder: epath.Path, digest: str) -> dict[str, dict[str, Any]]:
    """On sets of ImageNet's family; of several pipelines not `tf`, which is that of `test %`."""
    found = predictions.usual(predictions.all_scores(predictions.folder_in(folder, digest)))
    return {name: scores for name, scores in found.items() if FAMILY.fullmatch(name)}


def notes(points: list[Point]) -> list[str]:
    """What the numbers are: split, selection, denominators, spread."""
    result = points[0].result
    trials = len({point.trial for point in points})
    select = sorted({point.result["selected_on"] for point in points})
    where = " and ".join(select)
    chosen = {
        "accuracy": f"{paths.best('accuracy')}, which was selected on {where}",
        "loss": f"{paths.best('loss')}, the early stop, which was selected by the loss on {where}",
    }
    which = " and ".join(chosen[by] for by in sorted({point.selected_by for point in points}))
    lines = [
        f"Accuracy: top-1 on the {result['scores']['best']['test']['seen']:,} test images, of {which}; "
        "iteration 0 is before the first step of a cycle.",
        f"Density: kept / {result['prunable']:,} prunable weights; of all: (kept + unprunable) / "
        f"{result['parameters']:,} parameters.",
        f"± is the standard deviation (n - 1) over {trials} trials."
        if trials > 1
        else "One trial: no spread.",
    ]
    lines += [f"{split}: {about}." for split, about in result.get("data", {}).items()]
    if len({json.dumps(point.result.get("images"), sort_keys=True) for point in points}) > 1:
        lines.append("Warning: not all cycles were trained and measured on the same images.")
    if "test" in select:
        lines.append("Warning: selected on the test split, so its accuracy is optimistic.")
    return lines


def file_notes(points: list[Point]) -> list[str]:
    """What the costs and the figures are, which are not printed."""
    lines = [
        "FLOPs, of the first trial, count products with kept weights, forwards, and backwards in training; "
        "of finding: all trainings up to this ticket's, the rewind point's too, in dense trainings."
    ]
    if len({point.trial for point in points}) > 1:
        lines.append(
            "Bars in the figures of early stops, curves and instability reach from the lowest to the "
            "highest trial."
        )
    return lines


def shift_notes(points: list[Point]) -> list[str]:
    """What the columns of the shifts are: examples, pipeline, and among which classes."""
    own = [p for p in points if p.arm == ""]
    lines = []
    for name in tables.judged_sets(own):
        column = tables.SHIFTS.get(name, name)
        judged = [p for p in own if name in p.judged]
        last = max(judged, key=lambda p: (p.cycle, -p.trial))
        scores = last.judged[name]
        kind = next(iter(scores["scores"]))
        low, high = (100 * v for v in tables.usual_top1(scores)[1:])
        trial = f" of trial {last.trial}" if len({p.trial for p in own}) > 1 else ""
        lines.append(
            f"{column}: top-1 of {paths.best(last.selected_by)} on {name}, {scores['seen']:,} examples, "
            f"among {kind} classes, pipeline {scores['pipeline']}; the 95% interval of cycle "
            f"{last.cycle:03d}{trial} is {low:.2f} to {high:.2f}."
        )
        kinds = {(p.judged[name].get("images"), p.judged[name]["pipeline"]) for p in judged}
        if len(kinds) > 1:
            lines.append(f"Warning: the rows of {column} are of different images or pipelines.")
    return lines


def instability_notes(found: Mapping[str, Any] | None) -> list[str]:
    """What the columns of the instability are, where it was analysed."""
    if not found:
        return []
    lines = []
    if found["left_out"]:
        lines.append(
            f"Warning: {found['left_out']} rows of {paths.INSTABILITY} are of tickets that this chain no "
            "longer has: run instability.py again."
        )
    if not found["rows"]:
        return lines
    lines.append(
        "Instability: the highest error on the straight line between two tickets a and b (last.ckpt), "
        "which were trained from the same weights under the same mask in another order of the data, minus "
        f"the mean of their errors; at {len(found['alphas'])} places, on {found['dataset']} "
        f"{found['split']}, {found['about']}."
    )
    statistics = found.get("statistics", "none")
    return lines if statistics == "none" else [*lines, f"BatchNorm statistics on the line: {statistics}."]


def write_tables(found: Mapping[str, tables.Table], report: epath.Path) -> str:
    """Writes every table that has rows as NAME.md, .csv and .tex, and returns them as Markdown."""
    texts = []
    for name, table in found.items():
        if len(table) > 1:
            texts.append(tables.to_markdown(table))
            tables.write(report, name, table)
    return "\n\n".join(texts)


def write_report(
    folder: epath.Path | str,
    drawn: Sequence[Chart] = (),
    warned: Sequence[str] = (),
    out: epath.Path | None = None,
) -> epath.Path:
    """Writes the report of a chain as text, with what was drawn and warned of, and prints its table."""
    folder = epath.Path(folder)
    name = os.path.basename(os.path.abspath(folder))
    points = read_chain(folder)
    report = out or folder / paths.REPORT
    report.mkdir(parents=True, exist_ok=True)
    instability = results.read_instability(folder, {p.result["tickets"]["last"] for p in points})
    found = {"table": tables.chain_table(points), "shifts": tables.shift_table(points)}
    if instability:
        found["instability"] = tables.instability_table(instability)
    markdown = write_tables(found, report)
    costs = tables.cost_table(points, records.read_result(points[0].folder.parent))
    priced = write_tables({"costs": costs}, report)
    curves = results.read_curves(points)
    rows = {"runs": tables.runs_table(points), "results": results.results_table(points, name)}
    rows["test_acc"] = results.measurements_table(points, curves, name)
    for kind, cells in rows.items():
        paths.write_bytes(report / f"{kind}.csv", tables.write_csv(cells).encode())
    explained = [*notes(points), *shift_notes(points), *instability_notes(instability)]
    body = [f"# {name}", "", markdown, "", *filter(None, [priced]), ""]
    told = [*explained, *file_notes(points), *(f"Warning: {line}" for line in warned)]
    body += [*(f"- {line}" for line in told), "", *map(charts.markdown, drawn)]
    paths.write_bytes(report / "report.md", "\n".join(body).encode())
    print("\n" + markdown + "\n\n" + "\n".join(explained) + "\n")
    return report
