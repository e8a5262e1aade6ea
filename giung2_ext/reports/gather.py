"""What runs and chains have written, finished or not, as plain rows; damage becomes a warning.

A place is one run's folder: a plain run, a chain's rewind point, or one of its cycles. A series is what one
line of a figure shows: the tickets or an arm of one chain, or a plain run.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from giung2_ext.core import accounting
from giung2_ext.core.errors import Refusal
from giung2_ext.reports import standing, status
from giung2_ext.storage import locks, paths, predictions, records, tickets

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


class Gathered(NamedTuple):
    runs: tuple[Run, ...]
    warnings: tuple[str, ...]
    several: bool = False  # chains or runs, which series are then named after
    standings: tuple[standing.Standing, ...] = ()  # of the chains and runs below the folders

    @property
    def shown(self) -> list[Run]:
        return [run for run in self.runs if run.counted]

    @property
    def firsts(self) -> dict[str, int]:
        """The first trial of every series."""
        found: dict[str, int] = {}
        for run in self.shown:
            found[run.series] = min(found.get(run.series, run.place.trial), run.place.trial)
        return found

    @property
    def series(self) -> list[str]:
        return list(dict.fromkeys(run.series for run in self.shown))

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(run.place.run for run in self.runs))


def roots(folder: epath.Path, surveyed: Sequence[standing.Standing] | None = None) -> list[epath.Path]:
    """The chains and plain runs that a folder is or holds; `surveyed` is what stands there, if known."""
    if not folder.is_dir():
        raise Refusal(f"there is no folder {folder}")
    if paths.is_chain(folder) or any((folder / name).exists() for name in SIGNS):
        return [folder]
    surveyed = status.survey(folder) if surveyed is None else surveyed
    begun = lambda one: one.kind == "chain" and not paths.is_chain(epath.Path(one.folder))  # noqa: E731
    several = [one.runs if begun(one) else (one,) for one in surveyed]
    found = [epath.Path(one.folder) for group in several for one in group]
    if not found:
        raise Refusal(f"no run and no chain in {folder}: name a folder of train.py, imp.py or sweep.py")
    return found


def called(folders: Sequence[epath.Path]) -> dict[str, epath.Path]:
    """A short name for each: the last parts of its path that tell it from the others."""
    whole = [os.path.abspath(folder).split(os.sep) for folder in folders]
    for depth in range(1, max(map(len, whole)) + 1):
        names = [os.sep.join(parts[-depth:]) for parts in whole]
        if len(set(names)) == len(names):
            return dict(zip(names, folders, strict=True))
    raise Refusal(f"{', '.join(map(str, folders))}: a run is named twice")


def places_of(run: str, root: epath.Path) -> Iterator[Place]:
    if not paths.is_chain(root):
        yield Place(run, 0, "", None, root, root, True)
        return
    for trial, base in paths.trial_bases(root).items():
        yield Place(run, trial, "", None, base, root, False)
    starts = {(trial, arm): cycle.parent for trial, arm, cycle in paths.chain_cycles(root) if arm}
    for (trial, arm), base in starts.items():
        yield Place(run, trial, arm, None, base, root, False)
    for trial, arm, cycle in paths.chain_cycles(root):
        yield Place(run, trial, arm, int(cycle.name), cycle, root, False)


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


def gather(folders: Sequence[epath.Path]) -> Gathered:
    """Every run at or below these folders."""
    surveyed = [standing.guarded(lambda f=f: status.survey(f), None) for f in folders]
    found = [root for folder, own in zip(folders, surveyed, strict=True) for root in roots(folder, own)]
    reader, runs = Reader(), []
    for place in (p for name, root in called(found).items() for p in places_of(name, root)):
        run = reader.run(place, len(found) > 1)
        if run is not None:
            runs.append(run)
    runs = pooled(runs, reader)
    if not runs:
        raise Refusal(f"{', '.join(map(str, folders))}: no run has begun there")
    if not any(run.counted for run in runs):  # of a chain that has come no further than its rewind point
        runs = [run._replace(place=run.place._replace(plain=True)) for run in runs]
    standings = tuple(one for own in surveyed for one in own or ())
    return Gathered(tuple(runs), tuple(reader.warnings), len(found) > 1, standings)


def pooled(runs: Sequence[Run], reader: Reader) -> list[Run]:
    """Runs of a sweep that differ in their seed alone are trials of one series, in their order."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        name, named, seed = run.place.run.rpartition(records.SEED)
        if run.place.plain and named and seed.isdecimal():
            groups.setdefault(name, []).append(run)
    called = {run.place.run for run in runs}
    alike = {name for name, own in groups.items() if _alike(name, own, called, reader)}
    found = []
    for run in runs:
        name, _, seed = run.place.run.rpartition(records.SEED)
        if run.place.plain and name in alike:
            run = run._replace(place=run.place._replace(run=name, trial=int(seed)), series=name)
        found.append(run)
    firsts = {run.place.run: i for i, run in reversed([*enumerate(found)])}
    order = lambda run: (firsts[run.place.run], run.place.trial if run.place.run in alike else 0)  # noqa: E731
    return sorted(found, key=order)


def _alike(name: str, runs: Sequence[Run], called: Collection[str], reader: Reader) -> bool:
    """Whether these runs are one series under that name; why not is told."""
    recipes = [records.flatten(run.stored["recipe"]) for run in runs if run.stored.get("recipe")]
    fields = dict.fromkeys(field for recipe in recipes for field in recipe if field != "seed")
    unlike = [f for f in fields if any(recipe.get(f) != recipes[0].get(f) for recipe in recipes)]
    if name in called:
        reader.warn(f"{name}: another run is called so, so each of its seeds is shown by itself.")
    elif unlike:
        more = ", …" if len(unlike) > 4 else ""
        reader.warn(
            f"{name}: its runs differ in more than their seeds ({', '.join(unlike[:4])}{more}), so each is "
            "shown by itself."
        )
    return name not in called and not unlike


def signature(folders: Sequence[epath.Path]) -> frozenset[tuple[str, int, int]]:
    """Changes when a run has written something that a report shows."""
    found = set()
    for root in (root for folder in folders for root in roots(folder)):
        holder = standing.guarded(lambda root=root: locks.holder(root), None)
        found.add((f"{root}/{locks.LOCK}", int(holder is not None), 0))
        stat = standing.guarded(lambda root=root: (root / paths.INSTABILITY).stat(), None)
        found |= {(f"{root}/{paths.INSTABILITY}", int(stat.mtime * 1e3), stat.length)} if stat else set()
        for place in places_of("", root):
            judged = standing.guarded(lambda place=place: [*place.folder.glob("predictions/*/*.json")], [])
            for path in [*(place.folder / name for name in SIGNS), *judged]:
                stat = standing.guarded(lambda path=path: path.stat(), None)
                found |= {(os.fspath(path), int(stat.mtime * 1e3), stat.length)} if stat else set()
    return frozenset(found)
