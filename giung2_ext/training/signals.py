"""SIGTERM and Ctrl-C: a training loop saves and leaves, at a step that all processes of a job agree on.

JAX's own preemption service is switched off: orbax asks it too, with other numbers, and its processes
would wait for a step that never comes. What it does, telling all processes of one's SIGTERM, is done by
the loop's vote.
"""

import contextlib
import faulthandler
import signal
from collections.abc import Callable, Iterator
from typing import Any

from giung2_ext.core.errors import Stopped
from giung2_ext.training import processes

_received: int | None = None
_in_loop = False


def listen() -> None:
    """From here on a signal lets a loop save and leave; elsewhere it ends the process at once."""

    def on_signal(number: int, frame: Any) -> None:
        global _received
        first, _received = _received is None, number
        if not _in_loop or (number == signal.SIGINT and not first):
            raise stopped(number, "nothing was saved since")

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)


@contextlib.contextmanager
def in_loop() -> Iterator[None]:
    """Here a signal waits until the loop asks for it; a second Ctrl-C does not."""
    global _in_loop
    _in_loop = True
    try:
        yield
    finally:
        _in_loop = False


def received() -> int:
    """The number of the signal that asks this process to stop, or 0."""
    return _received or 0


def stopped(number: int, outcome: str, agreed: bool = False) -> Stopped:
    """What to raise when leaving because of a signal."""
    interrupted = number == signal.SIGINT
    error = Stopped(
        f"{'interrupted' if interrupted else 'told to stop (SIGTERM)'}; {outcome}; "
        "the same command goes on from the newest saved state"
    )
    error.status, error.agreed = 130 if interrupted else Stopped.status, agreed
    return error


@contextlib.contextmanager
def watched(seconds: float) -> Iterator[Callable[[], None]]:
    """Ends a process of a job that has not called what this yields for so long (0: never).

    It says in which line every thread hangs.
    """

    def alive() -> None:
        if seconds and processes.joined():
            faulthandler.dump_traceback_later(seconds, exit=True)

    alive()
    try:
        yield alive
    finally:
        faulthandler.cancel_dump_traceback_later()
