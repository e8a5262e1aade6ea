"""Rates of training, and the share of time in which it waits for images."""

import itertools
import time

import numpy as np

from giung2_ext.data.reader import Reader
from giung2_ext.training.loop import Hook
from giung2_ext.training.speed import Speed


def run(slow, work, steps=20):
    """Steps of `work` seconds on batches that take `slow` seconds to make, and one hook that takes long."""

    def batches(step):
        for n in itertools.count(step):
            time.sleep(slow)
            yield n

    reader = Reader(batches, lambda batch: batch, 2)
    speed = Speed(64, peak_steps=1000.0)
    speed.waited = lambda: reader.waited
    hook = speed.aside(Hook(1, lambda step, state: time.sleep(0.5)))
    for step in range(steps):
        assert reader.batch(step) == step
        time.sleep(work)
        speed.advance(1)
    hook.call(steps, None)
    reader.close()
    return speed


def test_the_wait_of_a_run_that_is_bound_by_its_input_is_most_of_it():
    assert run(0.05, 0.001).rates()["input_wait"] > 0.7
    assert run(0.001, 0.05).rates()["input_wait"] < 0.3


def test_what_is_no_training_does_not_count():
    """The first step, and half a second in a hook."""
    found = run(0.0, 0.02).rates()
    assert found["images_per_second"] == 64 * found["steps_per_second"]
    np.testing.assert_allclose(found["share_of_peak"], found["steps_per_second"] / 1000)
    assert found["steps_per_second"] > 19 / 0.5  # with the hook it would be 19 in 0.9 s


def test_a_hook_that_asks_does_not_count_itself():
    speed, told = Speed(64), []
    for _ in range(3):
        time.sleep(0.01)
        speed.advance(1)

    def call(step, state):
        time.sleep(0.5)
        told.append(speed.rates()["steps_per_second"])

    speed.aside(Hook(1, call)).call(3, None)
    assert told[0] > 2 / 0.3


def test_there_is_nothing_to_tell_before_the_second_chunk():
    speed = Speed(64)
    assert speed.describe() == ""
    speed.advance(10)
    assert speed.rates() is None
    speed.advance(10)
    assert "waiting" not in speed.describe()  # resident data
    assert "peak" not in speed.describe()
