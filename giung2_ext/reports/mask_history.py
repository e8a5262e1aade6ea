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
from giung2_ext.reports import figures, tables
from giung2_ext.storage import paths, records, tickets

REPORT = paths.REPORT
LEFT_OUT = 0.1  # of the energy
FEW = 12  # rows of updates in the text


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
    count = len(table) - 1
    picked = sorted({round(i * (count - 1) / max(1, FEW - 1)) for i in range(min(FEW, count))})
    return [table[0], *(table[1 + i] for i in picked)]


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


def pictures(history: History) -> dict[str, figures.Picture]:
    return {
        "layers_over_time": figures.Picture(
            lambda figure: draw_layers(figure, history), "Density of every layer over time.", (7.2, 4.6)
        ),
        "moves": figures.Picture(
            lambda figure: draw_moves(figure, history),
            "What moved at every update, and what was ever kept.",
            (9, 4),
        ),
    }


def _time_axis(axes: Any, history: History) -> None:
    axes.set_xlim(0, history.steps[-1])
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)


def draw_layers(figure: Any, history: History) -> None:
    """Lines of few layers; of many a map, layers from the first to the last, colour the density."""
    axes = figure.subplots()
    shares = {name: layer.kept / layer.size for name, layer in history.layers.items()}
    if len(shares) <= len(figures.STYLES):
        for (_, line, colour), (name, share) in zip(figures.STYLES, shares.items(), strict=False):
            axes.plot(history.steps, share, ls=line, color=colour, label=name.removesuffix("/kernel"))
        total = history.total("kept") / history.size
        axes.plot(history.steps, total, color="0.5", lw=1, label="whole network")
        axes.set_yscale("log")
        axes.set_ylabel("density of the layer")
        _time_axis(axes, history)
        axes.legend(frameon=False, fontsize=9)
    else:
        from matplotlib.colors import LogNorm

        grid = np.array(list(shares.values()))
        low = max(float(grid[grid > 0].min()), 1e-4)
        ends = [*history.steps, 2 * history.steps[-1] - history.steps[-2]]
        places = np.arange(len(shares) + 1) - 0.5
        image = axes.pcolormesh(ends, places, np.maximum(grid, low), norm=LogNorm(low, 1), cmap="viridis")
        axes.invert_yaxis()
        axes.set_xlabel("step")
        axes.set_ylabel("layer, in the order of names")
        figure.colorbar(image, ax=axes, label="density of the layer")
    axes.set_title("Where the kept weights are", fontsize=10)


def draw_moves(figure: Any, history: History) -> None:
    """Left: the part of the mask that is new. Right: what was ever kept, and what is."""
    left, right = figure.subplots(1, 2)
    moved = churn(history.total("grown"), history.total("kept"))
    left.plot(history.steps[1:], 100 * moved[1:], ".-", ms=3, lw=0.8, color=figures.STYLES[0][2])
    left.set_ylim(bottom=0)
    left.set_ylabel("new in the mask (%)")
    left.set_title("Moved at every update", fontsize=10)
    for field, label, (_, line, colour) in zip(
        ("ever", "kept"), ("ever kept", "kept"), figures.STYLES, strict=False
    ):
        right.plot(history.steps, history.total(field) / history.size, ls=line, color=colour, label=label)
    right.set_ylim(0, 1.02)
    right.set_ylabel("part of all prunable weights")
    right.set_title("Explored", fontsize=10)
    right.legend(frameon=False, fontsize=9)
    for axes in (left, right):
        _time_axis(axes, history)


def has_history(folder: epath.Path) -> bool:
    return (folder / records.MOVES).exists()


def write_report(folder: epath.Path | str, against: str | None = None) -> epath.Path:
    """Writes the report of one finished run and prints its tables and where everything is."""
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
    report = folder / REPORT
    (report / "figures").mkdir(parents=True, exist_ok=True)
    updates = update_table(history)
    found = {"layers": layer_table(history, own, other), "updates": some_rows(updates)}
    markdown = tables.to_markdown(found["layers"]) + "\n\n" + tables.to_markdown(found["updates"])
    for name, table in {"layers": found["layers"], "updates": updates}.items():
        paths.write_bytes(report / f"{name}.csv", tables.write_csv(table).encode())
    drawn = figures.draw_all(pictures(history), report / "figures")
    explained = notes(history, result, against)
    title = f"# {os.path.basename(os.path.abspath(folder))}: what happened to the mask"
    body = [title, "", markdown, "", *(f"- {line}" for line in explained), ""]
    body += [f"![{key}](figures/{key}.png)\n\n{pictures(history)[key].caption}\n" for key in drawn]
    paths.write_bytes(report / "report.md", "\n".join(body).encode())
    print("\n" + markdown + "\n\n" + "\n".join(explained) + "\n")
    told = f", figures/ ({', '.join(drawn)})" if drawn else "; no figures: matplotlib is missing"
    print(f"report: {report}/ with report.md, layers.csv, updates.csv{told}")
    return report
