import numpy as np
import pytest

from giung2_ext.training import loop
from giung2_ext.training.step import Metrics


class Counter:
    """The smallest state the loop can carry, and a program that only counts."""

    def __init__(self, bad_at=None):
        self.calls, self.bad_at = [], bad_at

    class State:
        def __init__(self, step):
            self.step = step

    def metrics(self, start, stop):
        bad = -1 if self.bad_at is None or not start <= self.bad_at < stop else self.bad_at
        return Metrics(np.float32(1), np.int32(0), np.int32(stop - start), np.int32(bad), np.int32(0))

    def chunk(self, state, data, length):
        self.calls.append(("chunk", state.step, length))
        return self.State(state.step + length), self.metrics(state.step, state.step + length)

    def update(self, state, data):
        self.calls.append(("update", state.step, 1))
        return self.State(state.step + 1), self.metrics(state.step, state.step + 1), None


def run(program, total=25, start=0, due=None, hooks=(), log_every=100, on_metrics=lambda *a: None):
    state = program.State(start)
    how = dict(total=total, due=due, hooks=list(hooks), log_every=log_every, on_metrics=on_metrics)
    return loop.run_loop(program, state, None, **how)


def test_every_step_is_taken_once_and_due_steps_by_the_update():
    program = Counter()
    run(program, due=lambda step: step % 10 == 0 and step < 25)
    taken = [step for _, start, length in program.calls for step in range(start, start + length)]
    assert taken == list(range(25))
    assert [start for kind, start, _ in program.calls if kind == "update"] == [0, 10, 20]


@pytest.mark.parametrize("start", [0, 7, 10])
def test_hooks_are_called_at_their_multiples_and_at_the_end(start):
    seen = []
    hook = loop.Hook(10, lambda step, state: seen.append((step, state.step)), at_start=True)
    run(Counter(), start=start, hooks=[hook])
    assert seen == [(s, s) for s in (0, 10, 20, 25) if s > start or s == start == 0]


def test_a_hook_that_is_not_ready_is_not_called():
    seen = []
    run(Counter(), hooks=[loop.Hook(5, lambda step, state: seen.append(step), ready=lambda: len(seen) < 2)])
    assert seen == [5, 10]


def test_metrics_of_a_chunk_are_fetched_after_the_next_is_dispatched():
    program, fetched = Counter(), []
    run(program, log_every=5, on_metrics=lambda step, m: fetched.append((step, len(program.calls))))
    assert fetched == [(5, 2), (10, 3), (15, 4), (20, 5), (25, 5)]


def test_a_bad_loss_stops_before_any_hook_sees_its_state():
    program, seen = Counter(bad_at=13), []
    with pytest.raises(loop.NonFinite) as error:
        run(program, hooks=[loop.Hook(5, lambda step, state: seen.append(step))])
    assert (error.value.member, error.value.step) == (0, 13)
    assert seen == [5, 10]


def test_no_steps_call_only_the_starting_hooks():
    seen = []
    hooks = [
        loop.Hook(5, lambda s, _: seen.append("a"), at_start=True),
        loop.Hook(5, lambda s, _: seen.append("b")),
    ]
    assert run(Counter(), total=0, hooks=hooks).step == 0
    assert seen == ["a"]
