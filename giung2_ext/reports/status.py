"""Where every run and chain below a folder stands, read from what they have written.

Nothing is written and JAX is not imported: it is for looking at what goes on. What cannot be read is shown
as damaged and stops nothing. A chain is what imp.py has worked on; its runs are told of as one.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.reports.standing import (
    NO_REASON,
    STATES,
    Best,
    Found,
    Standing,
    command_of,
    guarded,
    last_seen,
    processes_of,
    read_run,
    states_in,
    typed,
)
from giung2_ext.storage import buckets, locks, paths, records

NOT_RUNS = (paths.TICKETS, paths.STATES, paths.CHAIN_STATES, paths.DAMAGED, paths.REPORT, paths.PREDICTIONS)
SIGNS = (records.METRICS, records.RESULT, paths.STATES)  # of a run, whose config.json must be there


def survey(folder: epath.Path) -> list[Standing]:
    """Every run and chain at or below a folder, by name; the runs of a chain within it."""
    buckets.check(folder)
    if not folder.is_dir():
        raise Refusal(f"there is no folder {folder}")
    planned: dict[str, str] = {}
    found = list(_walk(folder, planned))
    chains: dict[str, list[Found]] = {}
    for one in found:
        root = _chain_of(one)
        if root is not None:
            chains.setdefault(os.fspath(root), []).append(one)
    starting = {one.standing.folder for one in found if not one.stored and one.standing.state != "damaged"}
    wanted = {root: {*_wanted(epath.Path(root), members)} for root, members in chains.items()}
    alone = []
    for one in found:
        place, state = one.standing.folder, one.standing.state
        root = next((root for root in chains if f"{place}/".startswith(f"{root}/")), None)
        if _chain_of(one) is not None:
            continue
        if root is not None and one.stored and place in wanted[root]:  # typed with train.py
            chains[root].append(one)
        elif one.stored:  # a run of its own, wherever it lies
            alone.append(one)
        elif root is not None:
            chains[root] += [one] if state == "damaged" else []
        elif state == "damaged" or not _hidden(one, found, starting):
            alone.append(one)
    known = {one.standing.folder for one in found} | chains.keys()
    waiting = [
        Standing(place, "run", "waiting", command=command)
        for place, command in planned.items()
        if place not in known
    ]
    told = [_chain(epath.Path(root), members) for root, members in chains.items()]
    told += [_with_plan(one.standing, planned) for one in alone]
    return sorted([*told, *waiting], key=lambda one: one.folder)


def _hidden(one: Found, found: Sequence[Found], starting: Collection[str]) -> bool:
    """Of what has a lock and no more: a trial of a chain that starts, or a folder of runs."""
    place = one.standing.folder
    below = [other.standing.folder for other in found if other.standing.folder.startswith(f"{place}/")]
    inner = any(place.startswith(f"{outer}/") for outer in starting)
    return inner or (one.standing.holder is None and not starting.issuperset(below))


def _with_plan(standing: Standing, planned: Mapping[str, str]) -> Standing:
    """With what a sweep knows of a run that was stopped before it could say how it was started."""
    if standing.command is None and standing.folder in planned:
        return standing._replace(command=planned[standing.folder])
    return standing


def _walk(folder: epath.Path, planned: dict[str, str]) -> Iterator[Found]:
    """Every run from a folder down; `planned` is filled with the commands of sweeps."""

    def bare(state: str, why: str, holder: str | None = None) -> Found:
        return Found(folder, Standing(os.fspath(folder), "run", state, why, holder=holder), {})

    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        yield bare("damaged", str(error))
        return
    others = NOT_RUNS
    if records.SWEEP in names:
        others = (*others, paths.LOGS, paths.JOBS)
        planned.update(guarded(lambda: _plan(folder), {}))
    below = [n for n in sorted(names) if n not in others and not n.startswith(".")]
    children = [folder / n for n in below if not n.endswith(".ckpt") and (folder / n).is_dir()]
    signs = sorted(names.intersection(SIGNS))
    if records.CONFIG in names:
        yield read_run(folder, names)
    elif signs:
        yield bare("damaged", f"it has {signs[0]} and no {records.CONFIG}")
    elif locks.LOCK in names and records.SWEEP not in names:
        holder = locks.holder(folder)
        yield bare("running", "", holder) if holder else bare("stopped", "before its first step")
    for child in children:
        yield from _walk(child, planned)


def _plan(folder: epath.Path) -> dict[str, str]:
    """{folder of a run: its command}, as a sweep has noted them."""
    notes = records.read_json(folder / records.SWEEP) or {}
    return {
        os.fspath(folder / name): typed(run["command"], run.get("directory"))
        for name, run in notes["runs"].items()
    }


def _by_imp(session: Mapping[str, Any]) -> bool:
    words = session["environment"]["command"]
    return (
        os.path.basename(words[0]) == "imp.py" and {"cycles", "trials", "arms"} <= session["chain"].keys()
    )


def _last_by_imp(one: Found) -> Mapping[str, Any] | None:
    return guarded(lambda: next((s for s in reversed(one.sessions) if _by_imp(s)), None), None)


def _chain_of(one: Found) -> epath.Path | None:
    """The top folder of the chain that a run belongs to, by its place in it; None of a run by itself."""
    session = _last_by_imp(one)
    if session is None:
        return None
    place = one.folder.parent if paths.is_cycle(one.folder) else one.folder
    if place.name in session["chain"]["arms"]:
        place = place.parent
    return place.parent if session["chain"]["trials"] > 1 else place


def _planned(members: Sequence[Found]) -> Mapping[str, Any]:
    """The newest session of imp.py on a chain."""
    sessions = [session for one in members if (session := _last_by_imp(one)) is not None]
    return max(sessions, key=lambda s: str(s["environment"].get("started", "")))


def _bases(root: epath.Path, chain: Mapping[str, Any]) -> list[epath.Path]:
    return [root / paths.trial(i) for i in range(chain["trials"])] if chain["trials"] > 1 else [root]


def _wanted(root: epath.Path, members: Sequence[Found]) -> Iterator[str]:
    """The folders in which a finished chain has results; an arm's starting point is there before."""
    chain = _planned(members)["chain"]
    cycles, arms = chain["cycles"], chain["arms"]
    for base in _bases(root, chain):
        yield os.fspath(base)
        for n in range(cycles + 1):
            yield os.fspath(base / paths.cycle(n))
            yield from (os.fspath(base / arm / paths.cycle(n)) for arm in arms if n)


def _chain(root: epath.Path, members: Sequence[Found]) -> Standing:
    session = _planned(members)
    cycles, bases = session["chain"]["cycles"], _bases(root, session["chain"])
    runs = {one.standing.folder: one.standing for one in members}

    def of_all(names: Sequence[epath.Path]) -> list[Standing]:
        return [runs[os.fspath(name)] for name in names if os.fspath(name) in runs]

    begun = {n: of_all([base / paths.cycle(n) for base in bases]) for n in range(cycles + 1)}
    newest = max((n for n, own in begun.items() if own), default=None)
    now = begun[newest] if newest is not None else of_all(bases)
    judged = next((own for _, own in sorted(begun.items(), reverse=True) if own and own[0].best), now)
    holder = locks.holder(root)
    finished = all(name in runs and runs[name].state == "finished" for name in _wanted(root, members))
    state, why = _state_of_chain(finished, holder, runs.values())
    times = [run.seen for run in runs.values()] + [last_seen(root, {locks.LOCK})]
    return Standing(
        *(os.fspath(root), "chain", state, why, _step(root, newest, now, finished)),
        steps=now[0].steps if now else None,
        cycle=newest,
        cycles=cycles,
        finished=sum(run.state == "finished" for run in runs.values()),
        best=_mean([run.best for run in judged if run.best]),
        density=next((run.density for run in judged if run.density is not None), None),
        seen=max((time for time in times if time is not None), default=None),
        holder=holder,
        command=None if finished else command_of(session, root),
        processes=processes_of([session]),
        runs=tuple(runs[name]._replace(command=None) for name in sorted(runs)),  # the chain's goes on
    )


def _state_of_chain(finished: bool, holder: str | None, runs: Iterable[Standing]) -> tuple[str, str]:
    """Of a chain: damaged if one of its runs is, and else why it left one unfinished."""
    bad = [run for run in runs if run.state == "damaged"]
    if bad:
        return "damaged", f"{bad[0].folder}: {bad[0].why}"
    if finished or holder:
        return "finished" if finished else "running", ""
    left = [(run.state, run.why) for run in runs if run.state != "finished"]
    return min(left, default=("stopped", NO_REASON))  # failed before stopped; nothing between two cycles


def _step(root: epath.Path, cycle: int | None, now: Sequence[Standing], finished: bool) -> int:
    """How far the newest cycle is: measured, or saved as one state of all that train side by side."""
    step = max([0, *(run.step for run in now if run.step is not None)])
    if cycle is None or finished:
        return step
    places = (root / paths.CHAIN_STATES).glob(f"{paths.cycle(cycle)}*")
    return max([step, *(saved for place in places for saved in states_in(place))])


def _mean(bests: Sequence[Best]) -> Best | None:
    if not bests:
        return None
    value = sum(best.value for best in bests) / len(bests)
    return bests[0]._replace(value=value, step=max(best.step for best in bests))


def as_json(standing: Standing) -> dict[str, Any]:
    plain = standing._asdict()
    plain["best"] = standing.best and standing.best._asdict()
    plain["runs"] = [as_json(run) for run in standing.runs]
    return plain


def ago(seconds: float) -> str:
    """`40 s`, `12 min`, `5 h`, `3 d`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def line(standing: Standing, now: float) -> str:
    """One line of a run or a chain."""
    parts = [f"{standing.state:<8}", standing.folder]
    if standing.kind == "chain":
        of = f" of {standing.cycles:03d}, {standing.finished} runs finished"
        parts.append("rewind point" + of if standing.cycle is None else f"cycle {standing.cycle:03d}{of}")
    if standing.step is not None and standing.steps is not None:
        parts.append(f"step {standing.step:,} of {standing.steps:,}")
    if standing.best is not None:
        best = standing.best
        value = f"{100 * best.value:.2f}%" if best.by == "accuracy" else f"loss {best.value:.4f}"
        parts.append(f"best {value} on {best.split}")
    if standing.density is not None:
        parts.append(f"density {standing.density:.4f}")
    if standing.seen is not None:
        parts.append(f"{ago(now - standing.seen)} ago")
    if standing.holder:
        parts.append(f"by process {standing.holder}")
    if standing.why:
        parts.append(standing.why)
    return " · ".join(parts)


def text(standings: Sequence[Standing], now: float) -> str:
    """A line for every run and chain, under those that do not go on what goes on with them; then counts."""
    lines = []
    for one in standings:
        lines.append(line(one, now))
        if one.command and one.state in ("stopped", "failed", "waiting"):
            each = f"in each of {one.processes} processes: " if one.processes > 1 else ""
            lines.append(f"         {each}{one.command}")
    counts = {state: sum(one.state == state for one in standings) for state in STATES}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return "\n".join([*lines, told or "no run and no chain"])
