"""What happens to a run's members between chunks: they are measured, kept and saved.

The best ticket is chosen by the number of hits on one split, strictly more than before, never at step
0. A name is moved to a new ticket before the surpassed one is removed, so it always resolves.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from giung2_ext.storage import paths, tickets
from giung2_ext.storage.checkpoints import StateStore
from giung2_ext.storage.records import MetricsLog
from giung2_ext.training.loop import Hook, NonFinite
from giung2_ext.training.population import Population, stack
from giung2_ext.training.program import Program
from giung2_ext.training.state import State
from giung2_ext.training.step import Metrics

Tree = Any
Scores = dict[str, dict[str, float]]  # {split: {accuracy, loss, seen}}


class Member(NamedTuple):
    folder: epath.Path
    lineage: dict[str, Any]
    log: MetricsLog


def measure(
    program: Program, population: Population, network: tuple[Tree, Tree], splits: Mapping[str, Tree]
) -> list[Scores]:
    """Every member's scores on every split; `correct` is the exact number of hits."""
    sums = {name: program.evaluate(network, batches) for name, batches in splits.items()}
    return [{name: _means(member) for name, member in scores.items()} for scores in population.gather(sums)]


def _means(sums: Mapping[str, Any]) -> dict[str, float]:
    seen = int(sums["seen"])
    return {
        "accuracy": int(sums["correct"]) / seen,
        "loss": float(sums["loss"]) / seen,
        "correct": int(sums["correct"]),
        "seen": seen,
    }


class Keeper:
    """Measures and keeps the members of one running program."""

    def __init__(
        self,
        members: Sequence[Member],
        program: Program,
        population: Population,
        splits: Mapping[str, Tree],
        select_on: str,
        store: StateStore,
        identity: Any,
        on_scores: Callable[[int, list[Scores]], None],
    ):
        self.members, self.program, self.population = members, program, population
        self.splits, self.select_on = splits, select_on
        self.store, self.identity, self.on_scores = store, identity, on_scores
        self.start: list[Scores] = []
        self.best: list[dict[str, Any]] = [dict(correct=-1, step=-1, digest="") for _ in members]
        self.latest: list[Scores] = []
        self._train: Metrics | None = None
        self._seen: tuple[int, Any] = (-1, None)  # what was observed last, on the device
        self._held: tuple[int, Any] = (-1, None)  # and on the host, member by member
        self._protected: list[list[str]] = []  # the best of every state that is retained
        self._saved_at = time.monotonic()

    def hooks(
        self,
        evaluate_every: int,
        tickets_every: int | None,
        save_every_steps: int,
        save_every_seconds: float,
        log_every: int,
    ) -> list[Hook]:
        hooks = [Hook(evaluate_every, self.evaluate, at_start=True)]
        if tickets_every is not None:
            hooks.append(Hook(tickets_every, self.keep_iteration, at_start=True))
        if save_every_steps:
            hooks.append(Hook(save_every_steps, self.save))
        if save_every_seconds:
            late = lambda: time.monotonic() - self._saved_at >= save_every_seconds  # noqa: E731
            hooks.append(Hook(log_every, self.save, ready=late))
        return hooks

    def on_metrics(self, metrics: Metrics) -> None:
        """Adds a chunk's sums to what the next evaluation reports as training scores."""
        metrics = jax.tree.map(lambda x: x[: len(self.members)], metrics)  # without filling
        if self._train is not None:
            metrics = jax.tree.map(np.add, self._train, metrics)
        self._train = metrics

    def evaluate(self, step: int, state: State) -> None:
        everything = step == 0
        splits = self.splits if everything else {self.select_on: self.splits[self.select_on]}
        weights, _, statistics = self._observe(step, state)
        scores = measure(self.program, self.population, (weights, statistics), splits)
        for i in range(len(self.members)):
            if not math.isfinite(scores[i][self.select_on]["loss"]):
                raise NonFinite(i, step)
        for i, member in enumerate(self.members):
            rows = [{"step": step, "split": name, **values} for name, values in scores[i].items()]
            train = self._train_scores(i)
            if train:
                scores[i]["train"] = train
                rows.append({"step": step, "split": "train", **train})
            member.log.write(rows)
            if step > 0:
                self._consider(i, step, state, scores[i])
        self._train = None
        self.latest = scores
        if everything:
            self.start = scores
        self.on_scores(step, scores)

    def _train_scores(self, i: int) -> dict[str, float]:
        """Member i's training scores since the last evaluation; float16 steps that overflowed are told."""
        if self._train is None:
            return {}
        seen, skipped = int(self._train.seen[i]), int(self._train.skipped[i])
        scores: dict[str, float] = {"skipped_steps": skipped} if skipped else {}
        if seen:
            scores |= {
                "accuracy": int(self._train.correct[i]) / seen,
                "loss": float(self._train.loss[i]) / seen,
            }
        return scores | {"seen": seen}

    def _consider(self, i: int, step: int, state: State, scores: Scores) -> None:
        hits = scores[self.select_on]["correct"]
        if hits > self.best[i]["correct"]:
            digest = self._keep(i, step, state, paths.BEST)
            self.best[i] = {"correct": hits, "step": step, "digest": digest}

    def keep_iteration(self, step: int, state: State) -> None:
        for i in range(len(self.members)):
            self._keep(i, step, state, paths.iteration(step))

    def _observe(self, step: int, state: State) -> Any:
        if self._seen[0] != step:
            self._seen = (step, self.program.observe(state))
        return self._seen[1]

    def _hold(self, step: int, state: State) -> Any:
        if self._held[0] != step:
            self._held = (step, self.population.gather(self._observe(step, state)))
        return self._held[1]

    def _keep(self, i: int, step: int, state: State, name: str) -> str:
        """Writes member i's ticket, moves the name to it and drops what has lost its last name."""
        folder, lineage, _ = self.members[i]
        params, masks, statistics = self._hold(step, state)[i]
        ticket, meta = tickets.write_ticket(folder, params, masks, statistics, lineage | {"step": step})
        tickets.name_ticket(folder, name, ticket)
        tickets.drop_unnamed(folder, [digests[i] for digests in self._protected])
        return meta["digest"]

    def save(self, step: int, state: State) -> None:
        window = None if self._train is None else [field.tolist() for field in self._train]
        notes = {
            "identity": self.identity,
            "best": self.best,
            "start": self.start,
            "latest": self.latest,
            "train": window,
        }
        self._protected.append([best["digest"] for best in self.best])
        self.store.save(step, self.population.trim(state.replace(step=None)), notes)
        self._protected = self._protected[-self.store.keep :]
        self._saved_at = time.monotonic()

    def recall(self, notes: Mapping[str, Any], rows: Sequence[int]) -> None:
        """Takes up where the run that wrote these notes was saved; member i was its member rows[i].

        A best found after that is forgotten: where arithmetic is not repeatable it may not come again.
        """
        self.best, self.start, self.latest = (
            [notes[name][row] for row in rows] if notes[name] else []
            for name in ("best", "start", "latest")
        )
        self._protected = [[best["digest"] for best in self.best]]
        for member, best in zip(self.members, self.best, strict=True):
            if best["digest"]:
                place = tickets.place_of(member.folder, best["digest"])
                tickets.name_ticket(member.folder, paths.BEST, place)
        if notes["train"] is not None:
            stored = dict(zip(Metrics._fields, notes["train"], strict=False))
            none = [0] * len(notes["identity"])  # for a field that was not there when it was saved
            self._train = Metrics._make(
                np.asarray([stored.get(name, none)[row] for row in rows], zero.dtype)
                for name, zero in jax.device_get(Metrics.zeros())._asdict().items()
            )

    def finish(self, step: int, state: State) -> list[dict[str, Any]]:
        """The last tickets, and the result of every member: scores at the start, best and last."""
        self._protected = []
        last = [self._keep(i, step, state, paths.LAST) for i in range(len(self.members))]
        for i, best in enumerate(self.best):
            if best["step"] < 0:  # a run of no steps: its only state is the best
                self._keep(i, step, state, paths.BEST)
                best.update(step=step, digest=last[i])
        weights, _, statistics = self._observe(step, state)
        at_last = measure(self.program, self.population, (weights, statistics), self.splits)
        at_best = self._measure_best() if any(best["step"] != step for best in self.best) else at_last
        results = []
        for i, member in enumerate(self.members):
            best, meta = self.best[i], tickets.read_meta(member.folder / paths.LAST)
            if i < len(self.latest) and "train" in self.latest[i]:
                at_last[i] = at_last[i] | {"train": self.latest[i]["train"]}
            results.append(
                {
                    "steps": step,
                    "seed": meta["seed"],
                    "selected_on": self.select_on,
                    "best_step": best["step"],
                    "scores": {"start": self.start[i], "best": at_best[i], "last": at_last[i]},
                    "tickets": {"best": best["digest"], "last": last[i]},
                    "parents": meta["parents"],
                    **{key: meta[key] for key in ("kept", "prunable", "parameters", "layers")},
                }
            )
        return results

    def _measure_best(self) -> list[Scores]:
        best = [tickets.read_ticket(member.folder / paths.BEST) for member in self.members]
        network = self.population.place(stack([(t.params, t.statistics) for t in best]))
        return measure(self.program, self.population, network, self.splits)
