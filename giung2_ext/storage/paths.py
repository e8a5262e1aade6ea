"""Names, and writes that are whole or not there.

    save/<run>/ config.json metrics.jsonl result.json parameters.txt .lock
        tickets/<digest>/   immutable; last.ckpt, best_acc.ckpt and iter_016000.ckpt point at one
        states/<step>/      resumable training states (`chain_states/NNN` for a population's cycle)
        damaged/            states that could not be read or were not what was saved
        000/ 001/ ...       cycles, runs of their own; trial_<i>/ and <arm>/ hold chains of their own

A name is a symbolic link on a disk and a small file with the target's path on an object store. There
a directory is what its objects' names begin with: it appears with its first file, is whole with its last.
"""

import os
import uuid
from collections.abc import Iterator, Sequence

from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.storage import buckets
from giung2_ext.storage.buckets import is_local

TICKETS, STATES, CHAIN_STATES, DAMAGED = "tickets", "states", "chain_states", "damaged"
LAST = "last.ckpt"
BESTS = {"accuracy": "best_acc.ckpt", "loss": "best_loss.ckpt"}
INSTABILITY, REPORT, PREDICTIONS = "instability.json", "report", "predictions"
LOGS, JOBS = "logs", "jobs"  # of a sweep
POINTER = "giung2-ext-pointer:"
META = "ticket.json"  # of a ticket: lineage and counts


def check_folder(path: epath.Path) -> None:
    """Refuses a place that is no folder and cannot become one."""
    buckets.check(path)
    if not is_local(path) or path.is_dir():
        return
    above = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not above.is_dir():
        raise Refusal(f"{path} cannot be a folder: {above} is a file")
    if not os.access(above, os.W_OK):
        raise Refusal(f"{path} cannot be made: no permission to write to {above}")


def iteration(step: int) -> str:
    return f"iter_{step:06d}.ckpt"


def best(by: str) -> str:
    """The name of a run's best ticket, by what it was selected by: accuracy or loss."""
    return BESTS[by]


def cycle(index: int) -> str:
    return f"{index:03d}"


def trial(index: int) -> str:
    return f"trial_{index}"


def trial_bases(folder: epath.Path) -> dict[int, epath.Path]:
    """Where each trial of a chain lies: below its folder, or one trial in the folder itself."""
    several = {int(p.name[6:]): p for p in folder.glob("trial_*") if p.name[6:].isdigit()}
    return dict(sorted(several.items())) or {0: folder}


def cycles(base: epath.Path) -> list[epath.Path]:
    """The cycles of a chain, by number."""
    return sorted(base.glob("[0-9][0-9][0-9]"))


def chain_cycles(folder: epath.Path) -> Iterator[tuple[int, str, epath.Path]]:
    """Trial, arm ("" of the tickets) and folder of every cycle of a chain, with one trial or several."""
    for trial, base in trial_bases(folder).items():
        arms = {p.parent for p in base.glob("*/[0-9][0-9][0-9]") if not p.parent.name.isdigit()}
        for chain in [base, *sorted(arms)]:
            yield from ((trial, "" if chain == base else chain.name, cycle) for cycle in cycles(chain))


def is_cycle(folder: epath.Path) -> bool:
    return len(folder.name) == 3 and folder.name.isdecimal()


def finished_cycles(folder: epath.Path) -> list[epath.Path]:
    """Those of one chain that have a last ticket, from the dense one on; a gap is refused."""
    bases = trial_bases(folder)
    if len(bases) > 1:
        raise Refusal(f"{folder} has {len(bases)} trials: name one, such as {next(iter(bases.values()))}")
    [base] = bases.values()
    found = [cycle for cycle in cycles(base) if (cycle / LAST).exists()]
    names, wanted = [f.name for f in found], [cycle(n) for n in range(len(found))]
    if not found or names != wanted:
        raise Refusal(
            f"{base} has the finished cycles {', '.join(names) or '(none)'}, and the masks of a chain are "
            "those of 000, 001, … without a gap"
        )
    return found


def is_chain(folder: epath.Path) -> bool:
    """Whether there are cycles below, one trial's or several."""
    return any(cycles(base) for base in trial_bases(folder).values())


def _beside(path: epath.Path) -> epath.Path:
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Replaces the file at once: readers see the old content or the new."""
    if not is_local(path):
        buckets.write(path, content)
        return
    temporary = _beside(path)
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_directory(path: epath.Path, files: dict[str, bytes]) -> None:
    """Makes a directory appear with all its files, the last one written last.

    On an object store they appear one by one: the last one says that the directory is whole.
    """
    if path.exists():
        remove_directory(path, list(reversed(files)))
    target = _beside(path) if is_local(path) else path
    try:
        if is_local(path):
            target.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_bytes(target / name, content)
        if target != path:
            os.replace(target, path)
    except BaseException:
        target.rmtree(missing_ok=True)
        raise


def remove_directory(path: epath.Path, first: Sequence[str] = ()) -> None:
    """Makes a directory disappear at once: a kill leaves none that is half empty under its name.

    On an object store the files `first` go first, so that what is left does not look whole.
    """
    if is_local(path):
        temporary = _beside(path)
        os.replace(path, temporary)
        path = temporary
    else:
        for name in first:
            (path / name).unlink(missing_ok=True)
    path.rmtree(missing_ok=not is_local(path))


def move_directory(path: epath.Path, target: epath.Path) -> None:
    """To a place that is not there yet; on an object store file by file, which takes a while."""
    if is_local(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    else:
        buckets.move(path, target)


def parents_of(folder: epath.Path) -> list[epath.Path]:
    """The folder, where it really is, and those above it; of a bucket nothing above."""
    if is_local(folder):
        real = epath.Path(os.path.realpath(folder))
        return [real, *real.parents]
    return [folder, *(place for place in folder.parents if os.fspath(place).rstrip("/").count("/") > 1)]


def point(name: epath.Path, target: epath.Path) -> None:
    """Makes `name` stand for `target`, a directory below name's own folder, atomically."""
    if is_single(name):
        raise Refusal(f"{name} is a file that this suite has not written: choose another folder")
    relative = os.path.relpath(target, name.parent)
    if not is_local(name):
        buckets.write(name, (POINTER + relative).encode())
        return
    temporary = _beside(name)
    os.symlink(relative, temporary)
    try:
        os.replace(temporary, name)
    except BaseException:
        os.unlink(temporary)
        raise


def is_single(name: epath.Path) -> bool:
    """Whether a ticket is one file, and no directory or name of one."""
    buckets.check(name)
    if not name.exists() or name.is_dir():
        return False
    with name.open("rb") as file:
        return file.read(len(POINTER)) != POINTER.encode()


def resolve(name: epath.Path) -> epath.Path:
    """The directory that a checkpoint path stands for."""
    buckets.check(name)
    if not name.exists():
        where = name.parent
        known = sorted(p.name for p in where.glob("*.ckpt")) if where.exists() else []
        none = f"; {where} has no .ckpt" * name.name.endswith(".ckpt")
        beside = f"; {where} has: {', '.join(known)}" if known else none
        raise Refusal(f"no checkpoint at {name}{beside}")
    if not name.is_dir():
        content = name.read_bytes()[:4096]
        if not content.startswith(POINTER.encode()):
            raise Refusal(f"{name} is not a ticket of this suite (a directory, or a name of one)")
        directory = name.parent / content.decode()[len(POINTER) :]
        if not directory.exists():
            raise Refusal(f"no checkpoint at {name}: it names {directory}, which is not there")
        return directory
    return epath.Path(os.path.realpath(name)) if is_local(name) else name


def target(name: epath.Path) -> str:
    """The last part of what a checkpoint name points at, whether it is there or not."""
    if os.path.islink(name):
        return os.path.basename(os.readlink(name))
    return resolve(name).name


def sweep_temporaries(folder: epath.Path) -> None:
    """Removes what a killed writer left half done in this folder (not in its children)."""
    for parent in (folder, folder / TICKETS):
        if parent.exists():
            for leftover in parent.glob(".*.tmp"):
                if leftover.is_dir() and not os.path.islink(leftover):
                    leftover.rmtree()
                else:
                    leftover.unlink(missing_ok=True)
