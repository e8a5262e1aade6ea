"""One process a directory. The lock is the operating system's, so it dies with its holder.

Object stores have no such lock; there the launcher must see to it.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator

from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.storage import paths


@contextlib.contextmanager
def locked(folders: Iterable[epath.Path]) -> Iterator[None]:
    """Holds the locks of all `folders`, created if need be; refuses one that is in use."""
    with contextlib.ExitStack() as held:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            if not paths.is_local(folder):
                continue
            file = held.enter_context(open(folder / ".lock", "a+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip()
                raise Refusal(
                    f"{folder} is in use by process {holder or 'unknown'}; "
                    "wait for it, or choose another --save"
                ) from None
            file.truncate(0)
            file.write(f"{os.getpid()} on {os.uname().nodename}")
            file.flush()
        yield
