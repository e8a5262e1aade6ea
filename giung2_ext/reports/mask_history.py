"""What happened to the mask of one run: its layers over time, how much moved, what was ever kept, ranks,
FLOPs.

Read off masks.jsonl, which has a line for every update, and off the last ticket. Ranks are of kernels as
matrices (outputs by all the rest), in float64: how many singular values are not 0, and how many hold 90% of
the energy. A magnitude mask of the same density is one of another ticket's weights, layer by layer.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from giung2_ext.core import accounting, trees
from giung2_ext.core.errors import Refusal
from giung2_ext.reports import charts, tables
from giung2_ext.reports.charts import Chart
from giung2_ext.reports.reading import Row, Run
from giung2_ext.storage import paths, records, tickets

LEFT_OUT = 0.1  # of the energy
FEW = 12  # rows of updates in the text
POINTS = 40  # of a line, at most
LEAST = 1e-5  # what an empty layer is drawn as, on a logarithmic scale


class Layer(NamedTuple):
    """One leaf over all updates: int arrays, a place for the starting mask first."""

    size: int
    kept: np.ndarray
    grown: np.ndarray
    dropped: np.ndarray
    ever: np.ndarray


class History(NamedTuple):
    steps: np.ndarray  # of the updates, the first place 0
    layers: dict[str, Layer]

    def total(self, field: str) -> np.ndarray:
        return sum(
            (getattr(layer, field) for layer in self.layers.values()), np.zeros(len(self.steps), int)
        )

    @property
    def size(self) -> int:
        return sum(layer.size for layer in self.layers.values())


def read_history(rows: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]) -> History:
    """Rows of masks.jsonl; the starting mask is the first row's, undone."""
    layers = {}
    for name, size in sizes.items():
        kept, grown, dropped, ever = np.array([row["layers"][name] for row in rows], np.int64).T
        start = kept[0] - grown[0] + dropped[0]
        of = lambda first, values: np.concatenate([[first], values])  # noqa: E731
        layers[name] = Layer(size, of(start, kept), of(0, grown), of(0, dropped), of(start, ever))
    return History(np.array([0, *(row["step"] for row in rows)]), layers)


def ranks(kernel: np.ndarray) -> tuple[int, int]:
    """How many singular values are not 0, and the fewest that leave out no more than LEFT_OUT."""
    values = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]).astype(np.float64), compute_uv=False)
    if values[0] == 0:
        return 0, 0
    noise = values[0] * max(kernel.size // kernel.shape[-1], kernel.shape[-1]) * np.finfo(np.float32).eps
    left = np.cumsum((values**2)[::-1]) / np.sum(values**2)
    return int((values > noise).sum()), len(values) - int((left <= LEFT_OUT).sum())


def largest(kernel: np.ndarray, kept: int) -> np.ndarray:
    """The kernel under the mask of its `kept` largest weights; ties go to the first."""
    order = np.argsort(-np.abs(kernel).ravel(), kind="stable")[:kept]
    mask = np.zeros(kernel.size, bool)
    mask[order] = True
    return np.where(mask.reshape(kernel.shape), kernel, 0)


def layer_table(history: History, ticket: tickets.Ticket, against: tickets.Ticket | None) -> tables.Table:
    """One row a layer."""
    header = ["layer", "weights", "kept", "density", "ever kept", "moved an update", "rank", "rank of 90%"]
    if against is not None:
        header += ["magnitude: rank", "magnitude: rank of 90%"]
    rows = [header]
    weights = trees.named_leaves(ticket.params)
    others = trees.named_leaves(against.params) if against is not None else {}
    for name, layer in history.layers.items():
        kept = int(layer.kept[-1])
        cells = [name.removesuffix("/kernel"), f"{layer.size:,}", f"{kept:,}", f"{kept / layer.size:.4f}"]
        cells += [f"{layer.ever[-1] / layer.size:.4f}", f"{churn(layer.grown, layer.kept)[1:].mean():.4f}"]
        cells += [str(rank) for rank in ranks(np.asarray(weights[name]))]
        if against is not None:
            cells += [str(rank) for rank in ranks(largest(np.asarray(others[name]), kept))]
        rows.append(cells)
    return rows


def check_denser(history: History, other: tickets.Ticket, name: str | None) -> None:
    """A magnitude mask takes as many weights from every layer of another ticket as are kept here."""
    weights = trees.named_leaves(other.params)
    for layer, own in history.layers.items():
        kept, there = int(own.kept[-1]), int(np.count_nonzero(weights[layer]))
        if there < kept:
            raise Refusal(
                f"--against={name} has {there:,} weights in {layer}, of which the {kept:,} largest are "
                "wanted: give a denser ticket, such as a dense network's"
            )


def churn(grown: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Which part of what an update keeps is new."""
    return grown / np.maximum(kept, 1)


def update_table(history: History) -> tables.Table:
    """One row an update, the starting mask first."""
    kept, ever = history.total("kept"), history.total("ever")
    grown, dropped = history.total("grown"), history.total("dropped")
    rows = [["step", "kept", "density", "grown", "dropped", "moved", "ever kept"]]
    for i, step in enumerate(history.steps):
        rows.append(
            [
                str(step),
                str(kept[i]),
                f"{kept[i] / history.size:.6f}",
                str(grown[i]),
                str(dropped[i]),
                f"{churn(grown, kept)[i]:.6f}",
                f"{ever[i] / history.size:.6f}",
            ]
        )
    return rows


def some_rows(table: tables.Table) -> tables.Table:
    """The header and at most FEW rows, the first and the last among them."""
    return [table[0], *(table[1 + i] for i in tables.thinned(len(table) - 1, FEW))]


def notes(history: History, result: Mapping[str, Any], against: str | None) -> list[str]:
    """What the numbers are."""
    updates = len(history.steps) - 1
    best, split = result["scores"]["best"], result["selected_on"]
    lines = [
        f"Density: kept / {history.size:,} prunable weights; {result['parameters']:,} parameters in all.",
        f"Moved: the part of the mask after an update that the one before did not keep; {updates:,} "
        "updates. Ever kept: by any mask so far, of all weights of the layer. Layers and ranks: of "
        f"{paths.LAST}.",
        f"Test accuracy {100 * best['test']['accuracy']:.2f}% of the ticket of step "
        f"{result['best_step']:,}, chosen by {result['selected_by']} on {split} among those of "
        "the final density.",
    ]
    if "flops" in result:
        lines.append(accounting.describe_flops(accounting.Totals(**result["flops"])) + ".")
    if result.get("training_flops"):
        lines.append(accounting.describe_training(*result["training_flops"]) + ", selections not counted.")
    lines.append(
        "Magnitude: ranks of the largest weights of "
        + (
            f"{against}, as many in every layer as are kept here."
            if against
            else "another ticket, --against=TICKET."
        )
    )
    return lines


def rows_of(run: Run) -> tuple[list[Row], list[Row]] | None:
    """Of a run, finished or not: its layers over time, and its moves; None before its first update."""
    rows = records.read_moves(run.place.folder)
    if not rows:
        return None
    history = read_history(rows, {name: size for name, (_, size) in run.counts["layers"].items()})
    return layer_rows(history, run.series), move_rows(history, run.series)


def line(history: History, values: np.ndarray, first: int = 0) -> list[Row]:
    """At most POINTS of its updates, the first and the last among them; every third has a point."""
    drawn = [first + i for i in tables.thinned(len(history.steps) - first, POINTS)]
    return [
        {"step": int(history.steps[i]), "value": float(values[i])}
        | dict.fromkeys(("low", "high"), None if k % 3 else float(values[i]))
        for k, i in enumerate(drawn)
    ]


def layer_rows(history: History, name: str) -> list[Row]:
    """Density of every layer over time, and of the whole."""
    shares = {"whole network": history.total("kept") / history.size}
    shares |= {n.removesuffix("/kernel"): layer.kept / layer.size for n, layer in history.layers.items()}
    return [
        {"panel": name, "series": layer} | row
        for layer, share in shares.items()
        for row in line(history, np.maximum(share, LEAST))
    ]


def move_rows(history: History, name: str) -> list[Row]:
    """Percent of the mask that an update brought in; part of the weights that is kept, or ever was."""
    new = 100 * churn(history.total("grown"), history.total("kept"))
    found = {("new in the mask (%)", "new"): new}
    for field, label in (("kept", "kept"), ("ever", "ever kept")):
        found["part of the prunable weights", label] = history.total(field) / history.size
    return [
        {"panel": f"{name}: {panel}", "run": name, "series": label} | row
        for (panel, label), values in found.items()
        for row in line(history, values, first=label == "new")  # the starting mask is no update
    ]


def has_history(folder: epath.Path) -> bool:
    return (folder / records.MOVES).exists()


def write_report(
    folder: epath.Path | str,
    against: str | None = None,
    drawn: Sequence[Chart] = (),
    warned: Sequence[str] = (),
    out: epath.Path | None = None,
) -> epath.Path:
    """Writes the report of one finished run as text, with its figures, and prints its tables."""
    folder = epath.Path(folder)
    result, rows = records.read_result(folder), records.read_moves(folder)
    if result is None:
        raise Refusal(f"{folder} is not finished: run its command again, it goes on from where it was")
    if not rows:
        raise Refusal(f"{folder / records.MOVES} has no update: the mask of this run did not change")
    history = read_history(rows, {name: size for name, (_, size) in result["layers"].items()})
    own = tickets.read_ticket(folder / paths.LAST)
    other = tickets.read_ticket(against) if against else None
    problem = trees.first_mismatch(own.params, other.params) if other is not None else None
    if problem:
        raise Refusal(f"--against={against} is of another architecture: {problem}")
    if other is not None:
        check_denser(history, other, against)
    report = out or folder / paths.REPORT
    report.mkdir(parents=True, exist_ok=True)
    updates = update_table(history)
    found = {"layers": layer_table(history, own, other), "updates": some_rows(updates)}
    markdown = tables.to_markdown(found["layers"]) + "\n\n" + tables.to_markdown(found["updates"])
    for name, table in {"layers": found["layers"], "updates": updates}.items():
        paths.write_bytes(report / f"{name}.csv", tables.write_csv(table).encode())
    explained = notes(history, result, against)
    title = f"# {os.path.basename(os.path.abspath(folder))}: what happened to the mask"
    told = [*explained, *(f"Warning: {line}" for line in warned)]
    body = [title, "", markdown, "", *(f"- {line}" for line in told), "", *map(charts.markdown, drawn)]
    paths.write_bytes(report / "report.md", "\n".join(body).encode())
    print("\n" + markdown + "\n\n" + "\n".join(explained) + "\n")
    return report
