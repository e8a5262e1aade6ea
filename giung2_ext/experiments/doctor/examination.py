"""Looks at a ticket, a run or a chain, and says what is wrong with it."""

import os
import sys

import jax
from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments.doctor import chain, run, state, ticket
from giung2_ext.experiments.doctor.findings import Exam, plural
from giung2_ext.experiments.evaluate import say
from giung2_ext.experiments.lottery import ARMS
from giung2_ext.storage import paths, records, survival, tickets
from giung2_ext.training import processes

KINDS = ("run", "ticket", "mask", "parent", "rewinding", "state")  # of what is looked at


def kind_of(place: epath.Path) -> str | None:
    """map (of a chain), ticket, chain or run; None of anything else."""
    if paths.is_single(place):
        return "map" if survival.is_survival(place.read_bytes()) else "ticket"
    if place.name.endswith(".ckpt") or any((place / n).exists() for n in (tickets.META, tickets.ARRAYS)):
        return "ticket"
    if chain.is_chain(place):
        return "chain"
    return "run" if run.is_run(place) else None


def examine(place: epath.Path) -> Exam:
    """Everything that is there, whatever is damaged."""
    place = epath.Path(os.path.abspath(place)) if paths.is_local(place) else place
    if place.name in ARMS and paths.cycles(place):
        place = place.parent  # an arm's parents are its trial's tickets
    kind = kind_of(place)
    exam = Exam(place.parent if kind in ("map", "ticket") else place)
    with exam.part(exam.place(place)):
        if kind == "map":
            _examine_map(exam, place)
        elif kind == "ticket":
            ticket.examine(exam, place)
        elif kind == "chain":
            chain.examine(exam, place)
        else:
            alone = run.read(exam, place)
            run.check(exam, alone)
            if alone.recipe and any(seen.meta and seen.meta.get("parents") for seen in alone.sound):
                exam.note(alone.where, "is looked at alone: its parents are, with the chain's folder")
            state.examine(exam, place / paths.STATES, [alone])
    return exam


def _examine_map(exam: Exam, place: epath.Path) -> None:
    """Every cycle's mask is the one that was written; that they are nested follows from the form."""
    found = survival.from_bytes(place.read_bytes(), os.fspath(place))
    for cycle in range(found.cycles):
        found.masks(cycle)
        exam.looked["mask"] += 1


def compare_hosts(exam: Exam) -> None:
    """All processes of a job must have read the same; what this one has read otherwise it says itself."""
    try:
        processes.check_same(exam.digests, "what they read here")
        return
    except Refusal as error:
        exam.fault(
            exam.place(exam.root),
            f"{error}: some see other files, or older ones; put them on one file system that all share",
        )
    mine, theirs = exam.digests, processes.agree(lambda: exam.digests)
    for where in sorted(mine.keys() | theirs.keys()):
        if mine.get(where) != theirs.get(where):
            print(
                f"process {jax.process_index()}: {where} is {_short(mine.get(where))} here and "
                f"{_short(theirs.get(where))} for the first process",
                file=sys.stderr,
                flush=True,
            )


def _short(read: object) -> str:
    return str(read)[:40] if read is not None else "not there"


def report(place: str | os.PathLike[str]) -> bool:
    """Prints every finding, faults first, and what was looked at; says whether all is well."""
    folder = epath.Path(place)
    processes.require(
        kind_of(folder) is not None,
        f"{folder} is no ticket (NAME.ckpt, or a folder with {tickets.META}), no run (a folder with "
        f"{records.CONFIG}) and no chain (a folder with cycles 000, 001, …), or not every process sees it",
    )
    exam = examine(folder)
    compare_hosts(exam)
    order = sorted(exam.findings, key=lambda finding: finding.severity)
    say([f"{severity}: {where}: {text}" for severity, where, text in order] + [summary(exam, folder)])
    return processes.all_of(not exam.faults)


def summary(exam: Exam, folder: epath.Path) -> str:
    looked = [plural(exam.looked[kind], kind) for kind in KINDS if kind != "mask" or exam.looked["mask"]]
    hosts = f" in {jax.process_count()} processes" if processes.joined() else ""
    faults, notes = len(exam.faults), len(exam.findings) - len(exam.faults)
    return (
        f"{folder}: looked at {', '.join(looked[:-1])} and {looked[-1]}{hosts}: "
        f"{plural(faults, 'fault') if faults else 'no fault'}, {plural(notes, 'note')}"
    )
