"""What happens to a run's members between chunks: they are measured, kept and saved.

The best ticket is chosen on one split, by more hits or by a lower loss than ever before, never at step 0 or
before the mask has its final density; by the loss its step is the early stop of Frankle & Carbin 2019. A
name is moved to a new ticket before the surpassed one is removed, so it always resolves.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.storage import paths, tickets
from giung2_ext.storage.checkpoints import StateStore
from giung2_ext.storage.records import MetricsLog
from giung2_ext.training import processes, signals
from giung2_ext.training.loop import Hook, NonFinite, SaveEvery
from giung2_ext.training.measurement import Scores, measure
from giung2_ext.training.population import Population
from giung2_ext.training.program import Program
from giung2_ext.training.state import State
from giung2_ext.training.step import Metrics, Moves

Tree = Any


class Member(NamedTuple):
    folder: epath.Path
    lineage: dict[str, Any]
    log: MetricsLog | None  # of the first process


def _layers(moves: Moves, member: int) -> dict[str, list[int]]:
    named = [trees.named_leaves(part) for part in moves]
    return {
        name: [int(part[name][member]) for part in named]
        for name, leaf in named[0].items()
        if leaf is not None
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
        select_by: str = "accuracy",
        settled: Callable[[int], bool] | None = None,
    ):
        self.members, self.program, self.population = members, program, population
        self.splits, self.select_on, self.select_by = splits, select_on, select_by
        self.settled = settled or (lambda step: True)
        self._count = population.compile(masking.kept) if settled else None
        self.store, self.identity, self.on_scores = store, identity, on_scores
        self.start: list[Scores] = []
        self.best: list[dict[str, Any]] = [dict(correct=-1, loss=0.0, step=-1, digest="") for _ in members]
        self.latest: list[Scores] = []
        self._train: Metrics | None = None
        self._moved: list[tuple[int, Moves]] = []  # updates of the mask that are not written yet
        self._seen: tuple[int, Any] = (-1, None)  # what was observed last, on the device
        self._held: tuple[int, Any] = (-1, None)  # and on the host, member by member
        self._protected: dict[int, list[str]] = {}  # the members' bests at every step that is retained
        self._saved_at = time.monotonic()
        self._vote = processes.Ballot()
        self._wishes: tuple[int, ...] = (0, 0)

    def hooks(
        self,
        evaluate_every: int,
        tickets_every: int | None,
        save_every: SaveEvery,
        log_every: int,
        test_every: int = 0,
    ) -> list[Hook]:
        hooks = [Hook(evaluate_every, self.evaluate, at_start=True)]
        if test_every:
            hooks.append(Hook(test_every, self.test))
        if tickets_every is not None:
            hooks.append(Hook(tickets_every, self.keep_iteration, at_start=True))
        if save_every.steps:
            hooks.append(Hook(save_every.steps, self.save))
        hooks.append(Hook(log_every, self.answer, ready=lambda: self._asked(save_every.seconds)))
        return hooks

    def _asked(self, seconds: float) -> bool:
        """Whether the clock or a signal, of any process, asks for a state."""
        late = seconds > 0 and time.monotonic() - self._saved_at >= seconds
        self._wishes = self._vote(late, signals.received())
        return any(self._wishes)

    def answer(self, step: int, state: State) -> None:
        """Saves because it is time, or because of a signal, and then leaves."""
        self.save(step, state)
        if self._wishes[1]:
            self.store.close()
            raise signals.stopped(self._wishes[1], f"saved at step {step:,}", agreed=True)

    def on_metrics(self, metrics: Metrics) -> None:
        """Adds a chunk's sums to what the next evaluation reports as training scores."""
        self._seen = self._held = (-1, None)  # of a step that has passed: they fill the devices
        metrics = jax.tree.map(lambda x: x[: len(self.members)], metrics)  # without filling
        if self._train is not None:
            metrics = jax.tree.map(np.add, self._train, metrics)
        self._train = metrics

    def on_moves(self, step: int, moves: Moves) -> None:
        self._moved.append((step, moves))

    def _write_moves(self) -> None:
        """A row for every update since the last time: kept, grown, dropped, ever kept of every leaf."""
        for i, member in enumerate(self.members):
            if member.log is not None and self._moved:
                member.log.moves.write([{"step": s, "layers": _layers(m, i)} for s, m in self._moved])
        self._moved = []

    def evaluate(self, step: int, state: State) -> None:
        everything = step == 0
        splits = self.splits if everything else {self.select_on: self.splits[self.select_on]}
        weights, masks, statistics = self._observe(step, state)
        scores = measure(self.program, self.population, (weights, statistics), splits)
        if self._count:  # of a mask whose density changes
            counts = self.population.gather(self._count(masks))
            for own, count in zip(scores, counts, strict=True):
                for split in own.values():
                    split["kept"] = int(count)
        for i in range(len(self.members)):
            if not math.isfinite(scores[i][self.select_on]["loss"]):
                raise NonFinite(i, step)
        for i, member in enumerate(self.members):
            rows = [{"step": step, "split": name, **values} for name, values in scores[i].items()]
            train = self._train_scores(i)
            if train:
                scores[i]["train"] = train
                rows.append({"step": step, "split": "train", **train})
            if member.log is not None:
                member.log.write(rows)
            if step > 0 and self.settled(step):
                self._consider(i, step, state, scores[i])
        self._train = None
        self._write_moves()
        self.latest = scores
        if everything:
            self.start = scores
        self.on_scores(step, scores)

    def test(self, step: int, state: State) -> None:
        """Scores of the splits that nothing is selected on, for the record."""
        others = {name: rows for name, rows in self.splits.items() if name != self.select_on}
        weights, _, statistics = self._observe(step, state)
        scores = measure(self.program, self.population, (weights, statistics), others)
        for member, own in zip(self.members, scores, strict=True):
            if member.log is not None:
                member.log.write([{"step": step, "split": name, **v} for name, v in own.items()])

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
        hits, loss = scores[self.select_on]["correct"], scores[self.select_on]["loss"]
        best = self.best[i]
        better = best["step"] < 0 or (
            loss < best["loss"] if self.select_by == "loss" else hits > best["correct"]
        )
        if better:
            digest = self._keep(i, step, state, paths.best(self.select_by))
            self.best[i] = {"correct": hits, "loss": loss, "step": step, "digest": digest}

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
        if not processes.first():
            return ""
        folder, lineage, _ = self.members[i]
        params, masks, statistics = self._hold(step, state)[i]
        ticket, meta = tickets.write_ticket(folder, params, masks, statistics, lineage | {"step": step})
        tickets.name_ticket(folder, name, ticket)
        tickets.drop_unnamed(folder, [digests[i] for digests in self._protected.values()])
        return meta["digest"]

    def save(self, step: int, state: State) -> None:
        window = None if self._train is None else [field.tolist() for field in self._train]
        notes = {
            "identity": self.identity,
            "stacked": not self.population.solo,  # whether the state has an axis of members
            "best": self.best,
            "start": self.start,
            "latest": self.latest,
            "train": window,
        }
        self._protected[step] = [best["digest"] for best in self.best]
        self._write_moves()
        self.store.save(step, self.population.trim(state.replace(step=None)), notes)
        retained = sorted(self._protected)[-self.store.keep - 1 :]  # the newest may not be whole yet
        self._protected = {step: self._protected[step] for step in retained}
        self._saved_at = time.monotonic()

    def recall(
        self,
        step: int,
        notes: Mapping[str, Any],
        older: Mapping[int, Mapping[str, Any]],
        rows: Sequence[int],
    ) -> None:
        """Takes up where the run that wrote these notes was saved; member i was its member rows[i].

        A best found after that is forgotten: where arithmetic is not repeatable it may not come again.
        Those that `older` states name are kept, should this one be found damaged one day.
        """
        self.best, self.start, self.latest = (
            [notes[name][row] for row in rows] if notes[name] else []
            for name in ("best", "start", "latest")
        )
        self._protected = {
            at: [state["best"][row]["digest"] for row in rows]
            for at, state in {**older, step: notes}.items()
        }
        for member, best in zip(self.members, self.best, strict=True):
            if best["digest"] and processes.first():
                place = tickets.place_of(member.folder, best["digest"])
                tickets.name_ticket(member.folder, paths.best(self.select_by), place)
        if notes["train"] is not None:
            stored = dict(zip(Metrics._fields, notes["train"], strict=False))
            none = [0] * len(notes["identity"])  # for a field that was not there when it was saved
            self._train = Metrics._make(
                np.asarray([stored.get(name, none)[row] for row in rows], zero.dtype)
                for name, zero in jax.device_get(Metrics.zeros())._asdict().items()
            )

    def finish(self, step: int, state: State) -> list[dict[str, Any]]:
        """The last tickets, and the result of every member: scores at the start, best and last.

        Results are the first process's to write; the others have none.
        """
        self._protected = {}
        self._write_moves()
        last = [self._keep(i, step, state, paths.LAST) for i in range(len(self.members))]
        for i, best in enumerate(self.best):
            if best["step"] < 0:  # of no steps, or none with its final density: the last state is the best
                self._keep(i, step, state, paths.best(self.select_by))
                best.update(step=step, digest=last[i])
        weights, _, statistics = self._observe(step, state)
        if step > 0:
            at_last = measure(self.program, self.population, (weights, statistics), self.splits)
        else:
            at_last = list(self.start)
        processes.together("tickets")
        at_best = self._measure_best() if any(best["step"] != step for best in self.best) else at_last
        results: list[dict[str, Any]] = []
        if not processes.first():
            return results
        for i, member in enumerate(self.members):
            best, meta = self.best[i], tickets.read_meta(member.folder / paths.LAST)
            if i < len(self.latest) and "train" in self.latest[i]:
                at_last[i] = at_last[i] | {"train": self.latest[i]["train"]}
            results.append(
                {
                    "steps": step,
                    "seed": meta["seed"],
                    "selected_on": self.select_on,
                    "selected_by": self.select_by,
                    "best_step": best["step"],
                    "scores": {"start": self.start[i], "best": at_best[i], "last": at_last[i]},
                    "tickets": {"best": best["digest"], "last": last[i]},
                    "parents": meta["parents"],
                    **{key: meta[key] for key in ("kept", "prunable", "parameters", "layers")},
                }
            )
        return results

    def _measure_best(self) -> list[Scores]:
        name = paths.best(self.select_by)
        best = [tickets.read_ticket(member.folder / name) for member in self.members]
        network = self.population.place([(t.params, t.statistics) for t in best])
        return measure(self.program, self.population, network, self.splits)
