"""Reads a chain's folders and writes its report: tables, figures, and a page with both."""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.reports import figures, tables
from giung2_ext.storage import paths, predictions, records, tickets

REPORT = "report"
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

    def accuracy(self, when: str, split: str = "test") -> float:
        """In percent; `when` is start, best or last."""
        return 100 * self.result["scores"][when][split]["accuracy"]


def read_chain(folder: epath.Path) -> list[Point]:
    """Every finished cycle below a chain's folder, with one trial or several."""
    bases = {int(p.name[6:]): p for p in folder.glob("trial_*") if p.name[6:].isdigit()} or {0: folder}
    points = []
    for trial, base in sorted(bases.items()):
        arms = [p.parent for p in base.glob("*/001") if not p.parent.name.isdigit()]
        for chain in [base, *sorted(arms)]:
            for cycle in sorted(chain.glob("[0-9][0-9][0-9]")):
                result = records.read_result(cycle)
                if result is not None:
                    arm = "" if chain == base else chain.name
                    judged = read_judged(cycle, result["tickets"]["best"])
                    points.append(Point(trial, arm, int(cycle.name), cycle, result, judged))
    if not any(point.arm == "" for point in points):
        raise Refusal(f"no finished cycle (000, 001, …) below {folder}")
    return points


def read_judged(folder: epath.Path, digest: str) -> dict[str, dict[str, Any]]:
    """On sets of ImageNet's family; of several pipelines not `tf`, which is that of `test %`."""
    found = predictions.all_scores(predictions.folder_in(folder, digest))
    found.sort(key=lambda scores: scores["pipeline"] != "tf")
    return {scores["dataset"]: scores for scores in found if FAMILY.fullmatch(scores["dataset"])}


def read_masks(points: list[Point]) -> dict[tuple[int, int], Any]:
    """{(trial, cycle): masks} of the tickets, without the arms, which share them."""
    return {
        (p.trial, p.cycle): tickets.read_ticket(p.folder / paths.BEST).masks for p in points if p.arm == ""
    }


def notes(points: list[Point]) -> list[str]:
    """What the numbers are: split, selection, denominators, spread."""
    result = points[0].result
    trials = len({point.trial for point in points})
    select = sorted({point.result["selected_on"] for point in points})
    lines = [
        f"Accuracy: top-1 on the {result['scores']['best']['test']['seen']:,} test images, of "
        f"{paths.BEST}, which was selected on {' and '.join(select)}; iteration 0 is before the first "
        "step of a cycle.",
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
            f"{column}: top-1 of {paths.BEST} on {name}, {scores['seen']:,} examples, among {kind} "
            f"classes, pipeline {scores['pipeline']}; the 95% interval of cycle {last.cycle:03d}{trial} is "
            f"{low:.2f} to {high:.2f}."
        )
        kinds = {(p.judged[name].get("images"), p.judged[name]["pipeline"]) for p in judged}
        if len(kinds) > 1:
            lines.append(f"Warning: the rows of {column} are of different images or pipelines.")
    return lines


def write_report(folder: epath.Path | str) -> epath.Path:
    """Writes the report of a chain and prints its table and where everything is."""
    folder = epath.Path(folder)
    points = read_chain(folder)
    report = folder / REPORT
    (report / "figures").mkdir(parents=True, exist_ok=True)
    table = tables.chain_table(points)
    explained = notes(points)
    markdown = tables.to_markdown(table)
    paths.write_bytes(report / "table.md", (markdown + "\n").encode())
    paths.write_bytes(report / "table.csv", tables.to_csv(table).encode())
    paths.write_bytes(report / "table.tex", tables.to_latex(table).encode())
    shifts = tables.shift_table(points)
    if len(shifts) > 1:
        shift_text = tables.to_markdown(shifts)
        paths.write_bytes(report / "shifts.md", (shift_text + "\n").encode())
        paths.write_bytes(report / "shifts.csv", tables.to_csv(shifts).encode())
        paths.write_bytes(report / "shifts.tex", tables.to_latex(shifts).encode())
        markdown = f"{markdown}\n\n{shift_text}"
        explained += shift_notes(points)
    runs = tables.write_csv(tables.runs_table(points))
    paths.write_bytes(report / "runs.csv", runs.encode())
    drawn = figures.draw_all(points, read_masks(points), report / "figures")
    body = [f"# {folder.name}", "", markdown, "", *(f"- {line}" for line in explained), ""]
    body += [f"![{name}](figures/{name}.png)\n" for name in drawn]
    paths.write_bytes(report / "report.md", "\n".join(body).encode())
    print("\n" + markdown + "\n\n" + "\n".join(explained) + "\n")
    pictures = f", figures/ ({', '.join(drawn)})" if drawn else "; no figures: matplotlib is missing"
    print(f"report: {report}/ with report.md, table.md, table.csv, table.tex, runs.csv{pictures}")
    return report
