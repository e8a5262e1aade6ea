"""Placed batches, read ahead of the step by a thread."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

LEAVES_WITHIN = 10.0  # seconds that a reader is waited for: a disk may hang


class Reader:
    """Places the batches of one run on the devices, `ahead` of them before they are asked for.

    `open_at(step)` gives host batches from a step on, `place` puts one where the step wants it. Steps are
    asked for in order; another one starts anew there.
    """

    def __init__(self, open_at: Callable[[int], Iterator[Any]], place: Callable[[Any], Any], ahead: int):
        self._open_at, self._place, self._ahead = open_at, place, max(1, ahead)
        self._next: int | None = None
        self._queue: queue.Queue[Any] = queue.Queue()
        self._leave = threading.Event()
        self._thread: threading.Thread | None = None
        self.waited = 0.0  # seconds that batches were not there when they were asked for

    def batch(self, step: int) -> Any:
        if step != self._next:
            self.close()
            self._queue, self._leave = queue.Queue(self._ahead), threading.Event()
            self._thread = threading.Thread(
                target=self._fill, args=(step, self._queue, self._leave), daemon=True, name="feed"
            )
            self._thread.start()
        self._next = step + 1
        began = time.perf_counter()
        found = self._queue.get()
        self.waited += time.perf_counter() - began
        if isinstance(found, BaseException):
            self.close()
            raise found
        return found

    def _fill(self, step: int, out: "queue.Queue[Any]", leave: threading.Event) -> None:
        def give(what: Any) -> bool:
            while not leave.is_set():
                try:
                    out.put(what, timeout=0.2)
                    return True
                except queue.Full:
                    continue
            return False

        try:
            with contextlib.closing(self._open_at(step)) as batches:
                for batch in batches:
                    if leave.is_set() or not give(self._place(batch)):
                        return
            give(StopIteration())
        except BaseException as error:  # it is the asking thread's to handle
            give(error)

    def close(self) -> None:
        self._leave.set()
        self._next = None
        if self._thread is not None:
            self._thread.join(LEAVES_WITHIN)
        self._queue = queue.Queue()  # lets go of what was placed
