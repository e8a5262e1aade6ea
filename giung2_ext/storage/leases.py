"""One process a directory of an object store: an object there says who, and until when.

It is made on the condition that there is none, renewed by a thread on the condition that nobody else has
written it, and taken over, on that condition too, once its time has passed. Whoever finds a lease waits
until it is renewed, and is refused, or until it has run out: its holder was killed. Clocks of machines may
differ by half a lease. A lease is no fence: a process that was frozen for longer than its lease, and was
replaced meanwhile, ends as soon as it finds out.
"""

import contextlib
import datetime
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from giung2_ext.core.errors import Failure, Refusal
from giung2_ext.storage import buckets
from giung2_ext.storage.buckets import Generation

FILE = ".lock"
SECONDS = 120.0
UNANSWERED = (OSError, TimeoutError, Refusal)  # the last: the bucket itself is gone


def _end(message: str) -> None:
    """Ends the process at once: what it would write now may be somebody else's."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(Failure.status)


@contextlib.contextmanager
def held(
    folder: epath.Path, seconds: float, say: Callable[[str], None], lost: Callable[[str], None] = _end
) -> Iterator[None]:
    """Holds a folder's lease for the time of the block, `seconds` at a time; refuses one that is in use."""
    lease = Lease(folder, seconds, lost)
    lease.take(say)
    try:
        yield
    finally:
        lease.give_back()


class Lease:
    """One folder's lease: `seconds` long, and renewed four times in that."""

    def __init__(self, folder: epath.Path, seconds: float, lost: Callable[[str], None]):
        self.folder, self.seconds, self.lost = folder, seconds, lost
        self.token = uuid.uuid4().hex
        self.name = f"process {os.getpid()} on {os.uname().nodename}"
        self.generation, self.until = b"", 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew_all, name=f"lease of {folder}", daemon=True)

    def take(self, say: Callable[[str], None]) -> None:
        first: dict[str, Any] | None = None
        while True:
            found, generation = _look(self.folder)
            left = found.get("until", 0.0) - time.time()
            if found.get("token") == self.token or left <= 0:
                if self._write(generation):
                    break
                continue  # somebody was faster, or the answer was lost
            if first is None:
                first = found
                say(f"{_used(self.folder, found)} Waiting: it may have been killed")
            elif found != first:
                raise Refusal(
                    f"{_used(self.folder, found)} It is alive: wait for it, or choose another --save"
                )
            time.sleep(min(left, max(self.seconds / 60, 0.05)))
        self._thread.start()

    def _write(self, only_if: Generation, timeout: float | None = None) -> bool:
        until = time.time() + self.seconds
        lease = {"holder": self.name, "until": until, "token": self.token}
        made = buckets.write(self.folder / FILE, json.dumps(lease).encode(), only_if, timeout)
        if made is not None:
            self.generation, self.until = made, until
        return made is not None

    def _renew_all(self) -> None:
        while not self._done.wait(min(self.seconds / 4, max(self.until - time.time(), 0.05))):
            self._renew()

    def _renew(self) -> None:
        """Tries until the lease has run out; ends the process once it is, or may be, another's."""
        began = time.time()
        try:
            if self._write(self.generation, self.seconds / 8):
                return
            found, generation = _look(self.folder, self.seconds / 8)
            if found.get("token") == self.token:  # a write whose answer was lost
                self.generation, self.until = generation, found["until"]
                return
            self.lost(f"this process has lost its lock. {_used(self.folder, found)}")
        except UNANSWERED as error:
            if began <= self.until < time.time():  # frozen amid the request, perhaps: once more, at once
                self._renew()
            elif began > self.until:
                self.lost(
                    f"the lock of {self.folder} could not be renewed for {self.seconds:g} s "
                    f"({error or 'no answer'}). Once the store answers, the same command goes on from the "
                    "newest saved state"
                )

    def give_back(self) -> None:
        """So that the next one need not wait; a lease that cannot be removed runs out by itself."""
        self._done.set()
        self._thread.join()
        with contextlib.suppress(*UNANSWERED):
            buckets.write(self.folder / FILE, None, self.generation, self.seconds / 8)


def _look(folder: epath.Path, timeout: float | None = None) -> tuple[dict[str, Any], Generation]:
    """What the lease says, nothing where there is none; one that cannot be read is none."""
    content, generation = buckets.read(folder / FILE, timeout)
    try:
        found = json.loads(content or b"{}")
        return (found if isinstance(found.get("until"), float) else {}), generation
    except (ValueError, AttributeError):
        return {}, generation


def holder(folder: epath.Path) -> str | None:
    """Whose lease has not run out, if it is anybody's."""
    found, _ = _look(folder)
    return found.get("holder", "unknown") if found.get("until", 0.0) > time.time() else None


def _used(folder: epath.Path, found: dict[str, Any]) -> str:
    if not found:
        return f"The one of {folder} was removed."
    until = datetime.datetime.fromtimestamp(found["until"], datetime.UTC)
    left = max(found["until"] - time.time(), 0.0)
    return (
        f"{folder} is in use by {found.get('holder', 'an unknown process')}, whose lock runs until "
        f"{until:%H:%M:%S} UTC ({left:.0f} s) unless it is renewed."
    )
