"""What one run has written, finished or not, as it was read; damage becomes a warning.

A place is one run's folder: a plain run, a chain's rewind point, or one of its cycles.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from giung2_ext.core import accounting
from giung2_ext.core.errors import Refusal
from giung2_ext.reports import standing
from giung2_ext.storage import paths, predictions, records, tickets

Row = dict[str, Any]
SIGNS = (records.CONFIG, records.METRICS, records.MOVES, records.RESULT)


class Place(NamedTuple):
    run: str  # what the report calls the chain or run
    trial: int
    arm: str
    cycle: int | None  # None: a rewind point, or a plain run
    folder: epath.Path
    root: epath.Path  # of the chain, or the folder itself
    plain: bool


class Run(NamedTuple):
    """One place as it was read; what could not be read is empty."""

    place: Place
    series: str
    state: str
    why: str
    command: str | None
    stored: Mapping[str, Any]
    result: Mapping[str, Any]
    best: epath.Path | None
    meta: Mapping[str, Any]
    """Of the best ticket, or the newest that an unfinished run has"""
    judged: tuple[Mapping[str, Any], ...]

    @property
    def counted(self) -> bool:
        """Whether it is one of a chain's cycles or a plain run, which figures show."""
        return self.place.plain or self.place.cycle is not None

    @property
    def cycle(self) -> int:
        return self.place.cycle or 0

    @property
    def usual(self) -> list[Mapping[str, Any]]:
        """What it was judged to be, once a set: of several pipelines not `tf`, that of training."""
        return list(predictions.usual(self.judged).values())

    @property
    def counts(self) -> Mapping[str, Any]:
        return self.result or self.meta


def listed(folder: epath.Path) -> set[str]:
    return standing.guarded(lambda: {entry.name for entry in folder.iterdir()}, set())


class Reader:
    """Reads what can be read and collects what could not."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def read(self, what: str, read: Callable[[], Any], otherwise: Any) -> Any:
        try:
            found = read()
        except standing.UNREADABLE as error:
            reason = (
                str(error) if isinstance(error, Refusal | OSError | ValueError) else type(error).__name__
            )
            self.warn(f"{what} is damaged and left out: {reason}")
            return otherwise
        return otherwise if found is None else found

    def drawn(self, what: str, build: Callable[[], Sequence[Any]]) -> Sequence[Any]:
        """A chart that fails does not cost the others, and does not hide that it failed."""
        try:
            return build()
        except Exception as error:  # of any kind
            told = f"{type(error).__name__}: {error}"
            self.warn(f"{what}: not drawn, as records are damaged or this report is at fault ({told})")
            return []

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def run(self, place: Place, several: bool) -> Run | None:
        folder = place.folder
        names = listed(folder)
        if not names.intersection((*SIGNS, paths.TICKETS)):
            return None  # it begins just now, or is a chain without a rewind point of its own
        if records.CONFIG not in names:
            names = listed(folder)  # it may have begun as it was looked at
        found = standing.read_run(folder, names).standing
        state, why = found.state, found.why
        if records.CONFIG not in names:
            state, why = "damaged", f"it has no {records.CONFIG}"
        stored = self.read(
            f"{folder}: {records.CONFIG}", lambda: whole(records.read_json(folder / records.CONFIG)), {}
        )
        result = self.read(f"{folder}: {records.RESULT}", lambda: checked(records.read_result(folder)), {})
        best, meta = self.ticket(folder, names, result.get("selected_by", "accuracy"))
        digest = result.get("tickets", {}).get("best") or meta.get("digest")
        judged = self.read(f"{folder}: {paths.PREDICTIONS}", lambda: judged_in(folder, digest), ())
        told = any(line.startswith((f"{folder}: ", f"{folder}/")) for line in self.warnings)
        if state == "damaged" and (result or not told):
            counted = "; its result is whole and counts" if result else ""
            self.warn(f"{folder} is shown as damaged: {why}{counted}")
        label = " ".join(
            filter(None, [place.run if several else "", place.arm or "tickets" * (not place.plain)])
        )
        series = label or place.run
        return Run(place, series, state, why, command_of(place, stored), stored, result, best, meta, judged)

    def ticket(self, folder: epath.Path, names: set[str], by: str) -> tuple[epath.Path | None, Any]:
        for name in (paths.BESTS.get(by, ""), *paths.BESTS.values(), paths.LAST):
            if name in names:
                meta = self.read(f"{folder / name}", lambda name=name: tickets.read_meta(folder / name), {})
                return (folder / name if meta else None), meta
        return None, {}


def command_of(place: Place, stored: Mapping[str, Any]) -> str | None:
    """The command that made it, to be typed anywhere; a cycle of imp.py is made by its chain's."""

    def read() -> str | None:
        session = stored["sessions"][-1]
        by_chain = os.path.basename(session["environment"]["command"][0]) == "imp.py"
        return standing.command_of(session, place.root if by_chain else place.folder)

    return standing.guarded(read, None)


def whole(stored: Any) -> Any:
    """A config.json in which everything is what it should be, or an error."""
    if stored is not None:
        stored.get("recipe", {}).items()
        for session in stored.get("sessions", ()):
            session.get("environment", {}).get("packages", {}).items()
    return stored


def checked(result: Any) -> Any:
    """A result with what every figure needs, or an error that names what is missing."""
    if result is not None:
        for when in ("start", "best", "last"):
            float(result["scores"][when]["test"]["accuracy"])
            1 / int(result["scores"][when]["test"]["seen"])
        for when, split, own in records.miscounted(result["scores"]):
            raise ValueError(f"accuracy {own['accuracy']} of {when} on {split} is not its counts'")
        sizes = [int(kept) and int(size) for kept, size in result["layers"].values()]
        if not sizes and result["prunable"]:
            raise ValueError("it tells of no layer")
        int(result["kept"]), int(result["prunable"]), int(result["parameters"])
        result.get("images", {}).items()
        if result.get("flops"):
            accounting.Totals(**result["flops"])
        result["tickets"]["best"], result["parents"].items(), result["seed"], result["steps"]
        str(result["selected_on"]), int(result["best_step"])
    return result


def judged_in(folder: epath.Path, digest: str | None) -> tuple[Mapping[str, Any], ...]:
    if not digest:
        return ()
    found = predictions.all_scores(predictions.folder_in(folder, digest))
    for scores in found:
        first = [*scores["scores"].values()][0]  # noqa: RUF015
        [*map(float, first["top1"])], int(scores["seen"]), str(scores["dataset"]), str(scores["pipeline"])
    return tuple(found)
