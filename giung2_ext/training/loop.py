"""The loop: chunks of compiled steps between the steps where somebody wants the state.

It knows nothing of evaluation, files or printing: hooks do. Metrics of a chunk are fetched after the
next one is dispatched, so the device does not wait for Python.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from giung2_ext.core.errors import Refusal
from giung2_ext.training.program import Program
from giung2_ext.training.state import State
from giung2_ext.training.step import Metrics, Moves
from giung2_ext.training.tracing import Trace

Tree = Any


class Hook(NamedTuple):
    """Called with (step, state) at step 0 if `at_start`, at multiples of `every`, and at the end."""

    every: int
    call: Callable[[int, State], None]
    at_start: bool = False
    ready: Callable[[], bool] = lambda: True
    """Asked first: a hook that is not ready costs no synchronisation"""


class NonFinite(Exception):
    """The loss stopped being finite; `member` and `step` say where first."""

    def __init__(self, member: int, step: int):
        super().__init__(f"the loss is not finite at step {step}")
        self.member, self.step = member, step


def stops(
    step: int, total: int, every: list[int], due: Callable[[int], bool], also: tuple[int, ...] = ()
) -> Iterator[int]:
    """The steps to halt at after `step`: multiples of each of `every`, due steps, `also`, and the end."""
    while step < total:
        limit = min([total] + [step + e - step % e for e in every if e > 0] + [s for s in also if s > step])
        step = next((s for s in range(step + 1, limit) if due(s)), limit)
        yield step


class SaveEvery(NamedTuple):
    """When a resumable state is saved: every so many steps, and when so many seconds have passed."""

    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def read(cls, text: str) -> "SaveEvery":
        """`1000` is steps, `300s` seconds, `1000,300s` both, `never` neither."""
        every = {"steps": 0.0, "seconds": 0.0}
        for part in () if text == "never" else text.split(","):
            kind = "seconds" if part.endswith("s") else "steps"
            number = part.removesuffix("s")
            if every[kind] or not number.replace(".", "", kind == "seconds").isdigit() or not float(number):
                raise Refusal(
                    f"--save_every={text}: write 1000 (steps), 300s (seconds), 1000,300s or never"
                )
            every[kind] = float(number)
        return cls(int(every["steps"]), every["seconds"])


def run_loop(
    program: Program,
    state: State,
    data: Tree,
    *,
    total: int,
    due: Callable[[int], bool] | None,
    hooks: list[Hook],
    log_every: int,
    on_metrics: Callable[[int, Metrics], None],
    on_moves: Callable[[int, Moves], None] = lambda step, moves: None,
    trace: Trace | None = None,
) -> State:
    """Trains from the state's step to `total`; `on_metrics` gets host arrays, one call a chunk, and
    `on_moves` one an update of the mask."""
    step = int(state.step)
    is_due = due or (lambda step: False)
    pending: list[tuple[int, Metrics, Moves | None]] = []

    def drain() -> None:
        while pending:
            at, *found = pending.pop(0)
            host, moves = jax.tree.map(np.atleast_1d, jax.device_get(found))
            bad = np.flatnonzero(host.bad_step >= 0)
            if bad.size:
                first = bad[np.argmin(host.bad_step[bad])]
                raise NonFinite(int(first), int(host.bad_step[first]))
            on_metrics(at, host)
            if moves is not None:
                on_moves(at, moves)

    def call_hooks(now: int, start: bool) -> None:
        def reached(hook: Hook) -> bool:
            return hook.at_start if start else now % hook.every == 0 or now == total

        wanted = [hook for hook in hooks if reached(hook) and hook.ready()]
        if wanted:
            drain()  # nothing is evaluated or saved before its loss is known to be finite
        for hook in wanted:
            hook.call(now, state)

    if step == 0:
        call_hooks(0, start=True)
    traced = (trace.first, trace.last) if trace is not None else ()
    for stop in stops(step, total, [log_every] + [h.every for h in hooks], is_due, traced):
        while step < stop:
            if is_due(step):
                state, metrics, moves = program.update(state, data)
                step += 1
            else:
                state, metrics = program.chunk(state, data, stop - step)
                step, moves = stop, None
            drain()
            pending.append((step, metrics, moves))
        if trace is not None:
            trace.reach(step, state)
        call_hooks(step, start=False)
    drain()
    return state
