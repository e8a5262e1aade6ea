"""What a person sees while a run goes on: lines that stay, and on a terminal one bar that moves."""

import math
import sys
import time
from collections.abc import Iterable
from typing import Any

from etils import epath

from giung2_ext.core import accounting
from giung2_ext.storage import paths
from giung2_ext.training import processes
from giung2_ext.training.measurement import Scores


def clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def percent(values: Iterable[float]) -> str:
    """Mean in percent, with the standard deviation (n - 1) of several trials."""
    values = [100 * v for v in values]
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.2f}%"
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return f"{mean:.2f} ± {spread:.2f}%"


def scores_line(
    label: str, step: int, scores: list[Scores], left: str, speed: str = "", density: float | None = None
) -> str:
    """Where a run stands, its members' scores together; `density` is that of masks that stay."""
    several = f", mean of {len(scores)}" if len(scores) > 1 else ""
    parts = [f"{label}: step {step:,}{several}"]
    trained = [member["train"] for member in scores if "train" in member]
    losses = [train["loss"] for train in trained if "loss" in train]
    if losses:
        parts.append(f"loss {sum(losses) / len(losses):.4f}")
    for split in (split for split in scores[0] if all("accuracy" in member[split] for member in scores)):
        parts.append(f"{split} {percent([member[split]['accuracy'] for member in scores])}")
    kept = [next(iter(member.values())).get("kept") for member in scores]
    if None not in kept:
        parts.append(f"{sum(kept) / len(kept):,.0f} weights kept")
    elif density is not None:
        parts.append(f"density {density:.4f}")
    skipped = sum(train.get("skipped_steps", 0) for train in trained)
    if skipped:
        parts.append(f"{skipped:,} steps skipped (float16 overflow)")
    return " · ".join([*parts, *filter(None, [speed]), left])


def density_text(result: dict[str, Any]) -> str:
    return f"{result['kept'] / result['prunable']:.4f}"


def summary(result: dict[str, Any], folder: epath.Path) -> str:
    """What was kept, how good it is and on what, what it costs, where it is."""
    select, best, last = result["selected_on"], result["scores"]["best"], result["scores"]["last"]
    by = result["selected_by"]
    chosen = percent([best[select]["accuracy"]]) if by == "accuracy" else f"{best[select]['loss']:.4f}"
    weights = accounting.totals_of(result["prunable"], result["kept"], result["parameters"])
    flops = [accounting.describe_flops(accounting.Totals(**result["flops"]))] if "flops" in result else []
    if result.get("training_flops") and result["steps"]:
        flops.append(accounting.describe_training(*result["training_flops"]))
    return "\n".join(
        [
            accounting.describe_weights(weights),
            *flops,
            f"best at step {result['best_step']:,} (chosen by {by} on {select}: "
            f"{chosen}): test {percent([best['test']['accuracy']])}; "
            f"last: {select} {percent([last[select]['accuracy']])}, "
            f"test {percent([last['test']['accuracy']])}",
            f"tickets: {folder / paths.best(by)}, {folder / paths.LAST}",
        ]
    )


class Progress:
    """A whole job of `steps` steps; its bar shows rate, loss and the time left for a run and for all."""

    def __init__(self, steps: int, patience: float = 30.0):
        self.patience = patience
        self.total, self.done = steps, 0
        self._run = 0  # steps that are left of the run that is open
        self.trained, self.seconds = 0, 0.0  # steps run by this process, and how long they took
        self._bar: Any = None
        self._said: set[str] = set()
        self._since = 0.0
        self._spoke = time.monotonic()

    def line(self, text: str) -> None:
        if not processes.first():
            return
        if self._bar is not None:
            self._bar.clear()
        print(text, flush=True)
        self._spoke = time.monotonic()

    def once(self, text: str) -> None:
        """A line, unless it was said before."""
        if text not in self._said:
            self._said.add(text)
            self.line(text)

    def sign_of_life(self, text: str) -> None:
        """A line, if there was none for `patience` seconds: a log of days should show that it lives."""
        if text and time.monotonic() - self._spoke >= self.patience:
            self.line(text)

    def open(self, label: str, steps: int, done: int) -> None:
        """Begins one run of the job, `done` of whose `steps` steps a resumed state has already."""
        self.done += done
        self._run = steps - done
        self._since = time.monotonic()
        if not sys.stderr.isatty() or not processes.first():
            return
        try:
            from tqdm import tqdm
        except ImportError:  # a convenience, absent from many accelerator images
            return
        self._bar = tqdm(total=steps, initial=done, desc=label, unit="step", leave=False)

    def advance(self, steps: int, loss: float) -> None:
        self.done += steps
        self._run -= steps
        self.trained += steps
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {self.left()}", refresh=False)
            self._bar.update(steps)

    def close(self) -> None:
        self.seconds += time.monotonic() - self._since
        self._since = 0.0
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def left(self) -> str:
        """`0:40 left, 1:12:05 of all`: of the open run and of the whole job, by what was run so far."""
        running = time.monotonic() - self._since if self._since else 0.0
        rate = self.trained / (self.seconds + running) if self.trained else 0.0
        run, whole = (clock(n / rate) if rate else "?" for n in (self._run, self.total - self.done))
        if not self._since:
            return f"{whole} left"
        return f"{run} left" if self._run == self.total - self.done else f"{run} left, {whole} of all"
