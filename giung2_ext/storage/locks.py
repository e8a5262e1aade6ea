"""One process a directory. The lock is the operating system's, so it dies with its holder.

An object store has no such lock: there it is a lease (see `leases`), which outlives its holder by a little.
Who asks whether a lock is held takes it for an instant, shared with others who ask; so a process that wants
to hold it tries for a moment.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.storage import leases, paths

LOCK = leases.FILE
TRIES, PAUSE = 5, 0.05  # seconds between them
NOWHERE = (errno.ENOENT, errno.EPERM)  # what file systems of a kernel's own say
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


@contextlib.contextmanager
def locked(
    folders: Iterable[epath.Path], lease: float = leases.SECONDS, say: Callable[[str], None] = print
) -> Iterator[None]:
    """Holds the locks of all `folders`, created if need be; refuses one that is in use.

    On an object store for `lease` seconds at a time; `say` is told of waiting for one to run out.
    """
    with contextlib.ExitStack() as held:
        for folder in folders:
            if not paths.is_local(folder):
                held.enter_context(leases.held(folder, lease, say))
                continue
            _make(folder)
            file = held.enter_context(open(folder / LOCK, "a+"))
            if not _taken(file):
                file.seek(0)
                holder = file.read().strip()
                raise Refusal(
                    f"{folder} is in use by process {holder or 'unknown'}; "
                    "wait for it, or choose another --save"
                )
            file.truncate(0)
            file.write(f"{os.getpid()} on {os.uname().nodename}")
            file.flush()
        yield


def _make(folder: epath.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in NOWHERE:  # such as a full disk: to be mended, and gone on from
            raise
        raise Refusal(f"{folder} cannot be made ({error.strerror}): choose another folder") from error


def _taken(file: TextIO) -> bool:
    for left in reversed(range(TRIES)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(PAUSE if left else 0)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise Refusal(
                f"{file.name}: no locks on this file system ({error.strerror}), without which two "
                "processes could write one run: mount it with them, or choose another --save"
            ) from error
    return False


def holder(folder: epath.Path) -> str | None:
    """Who works on a folder now (`123 on host`); None if nobody does, or where it cannot be known."""
    if not paths.is_local(folder):
        return leases.holder(folder)
    try:
        with open(folder / LOCK) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "unknown"
    except OSError:  # no lock was ever taken there, or it is another user's
        return None
    return None
