"""How fast a run trains: steps and images a second, the share of the devices' peak, the wait for input.

Time in which nothing is trained (evaluations, saves) does not count, nor does the first chunk, which is
compiled first.
"""

import time
from collections.abc import Callable
from typing import Any

from giung2_ext.training.loop import Hook


class Speed:
    """Of one run in this process; `waited` gives the seconds that streamed batches were waited for."""

    def __init__(self, images: int, peak_steps: float | None = None):
        self.images, self.peak_steps = images, peak_steps  # of a step; steps a second at the peak rate
        self.waited: Callable[[], float] | None = None
        self._begun: float | None = None
        self._paused: float | None = None  # since when nothing is trained
        self._steps, self._aside, self._waited = 0, 0.0, 0.0

    def advance(self, steps: int) -> None:
        if self._begun is None:  # compiled, and dispatched
            self._begun, self._waited = time.perf_counter(), self._wait()
            self._aside = 0.0
        else:
            self._steps += steps

    def aside(self, hook: Hook) -> Hook:
        """The same hook, whose time is none of training."""

        def call(step: int, state: Any) -> None:
            self._paused = time.perf_counter()
            hook.call(step, state)
            self._aside += time.perf_counter() - self._paused
            self._paused = None

        return hook._replace(call=call)

    def rates(self) -> dict[str, float] | None:
        """Since the first chunk was done; None before there is anything to tell."""
        if self._begun is None or not self._steps:
            return None
        now = time.perf_counter() if self._paused is None else self._paused
        seconds = now - self._begun - self._aside
        steps = self._steps / seconds
        found = {"steps_per_second": steps, "images_per_second": steps * self.images}
        if self.peak_steps:
            found["share_of_peak"] = steps / self.peak_steps
        if self.waited is not None:
            found["input_wait"] = (self._wait() - self._waited) / seconds
        return found

    def _wait(self) -> float:
        return self.waited() if self.waited is not None else 0.0

    def describe(self) -> str:
        found = self.rates()
        if found is None:
            return ""
        told = [f"{found['images_per_second']:,.0f} images/s", f"{found['steps_per_second']:,.4g} steps/s"]
        if "share_of_peak" in found:
            told.append(f"{found['share_of_peak']:.0%} of the peak rate")
        if "input_wait" in found:
            told.append(f"{found['input_wait']:.0%} waiting for input")
        return ", ".join(told)
