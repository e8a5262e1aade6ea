"""Which runs and chains a report is of, and as which series.

A series is what one line of a figure shows: the tickets or an arm of one chain, or a plain run with every
seed of a sweep.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.reports import standing, status
from giung2_ext.reports.reading import SIGNS, Place, Reader, Run
from giung2_ext.storage import locks, paths, records


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
    taken = {run.place.run for run in runs}
    alike = {name for name, own in groups.items() if _alike(name, own, taken, reader)}
    found = []
    for run in runs:
        name, _, seed = run.place.run.rpartition(records.SEED)
        if run.place.plain and name in alike:
            run = run._replace(place=run.place._replace(run=name, trial=int(seed)), series=name)
        found.append(run)
    firsts = {run.place.run: i for i, run in reversed([*enumerate(found)])}
    order = lambda run: (firsts[run.place.run], run.place.trial if run.place.run in alike else 0)  # noqa: E731
    return sorted(found, key=order)


def _alike(name: str, runs: Sequence[Run], taken: Collection[str], reader: Reader) -> bool:
    """Whether these runs are one series under that name; why not is told."""
    recipes = [records.flatten(run.stored["recipe"]) for run in runs if run.stored.get("recipe")]
    fields = dict.fromkeys(field for recipe in recipes for field in recipe if field != "seed")
    unlike = [f for f in fields if any(recipe.get(f) != recipes[0].get(f) for recipe in recipes)]
    if name in taken:
        reader.warn(f"{name}: another run is called so, so each of its seeds is shown by itself.")
    elif unlike:
        more = ", …" if len(unlike) > 4 else ""
        reader.warn(
            f"{name}: its runs differ in more than their seeds ({', '.join(unlike[:4])}{more}), so each is "
            "shown by itself."
        )
    return name not in taken and not unlike


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
