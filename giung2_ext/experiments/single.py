"""One training run, or several equal ones side by side: start, continue or recognise as finished.

A folder that holds a result of the same recipe is finished; one with the same recipe and no result is
continued from its newest state; one with another recipe is refused with the difference.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.core.errors import Failure, Refusal
from giung2_ext.data.reader import Reader
from giung2_ext.experiments.bounds import check_config
from giung2_ext.experiments.config import Config, recipe, with_defaults
from giung2_ext.experiments.evaluate import datasets_of, judge_best
from giung2_ext.experiments.joining import check_job, check_place
from giung2_ext.experiments.progress import Progress, scores_line, summary
from giung2_ext.experiments.recording import (
    end_told,
    open_logs,
    peak_steps,
    training_flops,
    write_parameters,
    write_start,
)
from giung2_ext.experiments.recover import recover
from giung2_ext.experiments.settling import settled
from giung2_ext.experiments.setup import Setup, Setups, check_setup, describe_devices
from giung2_ext.experiments.start import check_parents, check_start, start_state
from giung2_ext.storage import locks, paths, records, tickets
from giung2_ext.storage.checkpoints import StateStore
from giung2_ext.training import processes, signals
from giung2_ext.training.hooks import Keeper, Member
from giung2_ext.training.loop import NonFinite, SaveEvery, run_loop
from giung2_ext.training.speed import Speed
from giung2_ext.training.state import State
from giung2_ext.training.step import Metrics
from giung2_ext.training.tracing import Trace

Tree = Any

_count = jax.jit(masking.counts)


class Run(NamedTuple):
    folder: epath.Path
    config: Config  # with its seed


def check_precision(config: Config) -> None:
    if config.mixed_precision and config.precision is not None:
        raise Refusal(
            "--mixed_precision=true chooses a precision and "
            f"config.precision={config.precision} names one: leave one of them out"
        )


def results_of(runs: Sequence[Run]) -> list[dict[str, Any] | None]:
    """The results of finished runs of these recipes; another recipe in a run's folder is refused."""

    def one(run: Run) -> dict[str, Any] | None:
        tickets.refuse_inside(run.folder)
        recorded = records.recorded_recipe(run.folder)
        if recorded is not None:
            records.check_recipe(run.folder, with_defaults(recorded), recipe(run.config))
        return records.read_result(run.folder)

    return processes.agree(lambda: [one(run) for run in runs])


def train(
    runs: Sequence[Run],
    setups: Setups,
    states_folder: epath.Path,
    progress: Progress,
    label: str,
    held: Sequence[epath.Path] = (),
) -> list[dict[str, Any]]:
    """Trains unfinished runs of one shape side by side and writes their results.

    `held` are folders whose lock the caller has already.
    """
    with contextlib.ExitStack() as open_until_done:
        folders = [run.folder for run in runs if run.folder not in held]
        lock = locks.locked(folders, runs[0].config.placement.lease, progress.line)
        processes.agree(lambda: open_until_done.enter_context(lock))
        if any(results_of(runs)):
            raise Refusal(f"{label} was finished by another process meanwhile; run the command again")
        alive = open_until_done.enter_context(signals.watched(runs[0].config.placement.stalled_after))
        setup = setups.get(runs[0].config, len(runs))
        for split in setup.source.splits:
            if split in setup.source.about:
                name = runs[0].config.data.name
                progress.once(f"{name} {split}: {setup.source.about[split]}")
        if setup.micro_batches > 1:
            size = runs[0].config.feed.batch_size // setup.micro_batches
            progress.line(f"{label}: {setup.micro_batches} micro-batches of {size:,}")
        for run in runs:
            processes.agree(lambda run=run: records.check_images(run.folder, setup.data.images))
        starts = [start_state(run.config, setup) for run in runs]
        for run in runs:
            warn_of_other_images(run.config, setup.data.images["train"], progress)
        parents = [lineage["parents"] for _, lineage in starts]
        processes.check_same(parents, "the checkpoints that they read; start them again")
        densities = []
        for run, (state, _) in zip(runs, starts, strict=True):
            kept = jax.device_get(_count(setup.method.masks(state.trainable, state.method)))
            size = masking.size(masking.dense(setup.shapes, run.config.masks.prunable))
            densities.append(sum(trees.present(kept)) / size if size else 1.0)
            if processes.first():
                write_start(run.folder, run.config, setup, kept)
        open_until_done.enter_context(end_told([run.folder for run in runs]))
        density = sum(densities) / len(densities)
        results = _train_from(runs, setup, starts, states_folder, progress, label, density, alive)
        if processes.first():
            for run, result in zip(runs, results, strict=True):
                counts = {name: count for name, (count, _) in result["layers"].items()}
                result["flops"] = write_parameters(run.folder, counts, setup)._asdict()
                result["training_flops"] = training_flops(run.folder, run.config, counts, setup)
                result["images"] = setup.data.images
                result["data"] = {s: a for s, a in setup.source.about.items() if s in setup.source.splits}
                records.write_result(run.folder, result)
        for folder in (states_folder, *(run.folder / paths.STATES for run in runs)):
            StateStore(folder, 1).clear()
        return results_of(runs)


def _train_from(
    runs: Sequence[Run],
    setup: Setup,
    starts: Sequence[tuple[State, dict[str, Any]]],
    states_folder: epath.Path,
    progress: Progress,
    label: str,
    density: float,
    alive: Callable[[], None],
) -> list[dict[str, Any]]:
    config = runs[0].config
    where = config.placement
    closing = contextlib.ExitStack()
    store = StateStore(states_folder, where.keep_states)
    closing.callback(store.close)
    identity = [recipe(run.config) for run in runs]
    members_at_0 = [state.replace(step=None) for state, _ in starts]
    found = recover(store, setup.population, members_at_0[0], identity, progress)
    step = 0 if found is None else found.step
    state = setup.population.join(members_at_0 if found is None else found.members)
    state = state.replace(step=step)

    speed = Speed(config.feed.batch_size * len(runs), peak_steps(config, setup, len(runs)))

    logs = open_logs(runs, step, closing)
    members = [
        Member(run.folder, lineage, log) for run, (_, lineage), log in zip(runs, starts, logs, strict=True)
    ]
    keeper = Keeper(
        members,
        setup.program,
        setup.population,
        setup.data.evaluation,
        setup.select_on,
        store,
        identity,
        lambda now, scores: progress.sign_of_life(
            scores_line(label, now, scores, progress.left(), speed.describe(), density)
        ),
        config.evaluation.select_by,
        setup.method.settled,
    )
    if found is not None:
        keeper.recall(found.step, found.notes, found.older, found.rows)
        progress.line(f"{label}: continuing from step {step:,}")
    periodic = config.tickets.every if config.tickets.periodic else None
    every = SaveEvery.read(where.save_every)
    measured = config.evaluation
    hooks = keeper.hooks(measured.every, periodic, every, where.log_every, measured.test_every)
    hooks = [speed.aside(hook) for hook in hooks]
    trace = None
    if where.profile:  # by one process, at whose steps the chunks of all must end
        first = min(step + where.log_every, max(step + 1, config.optim.ni - where.profile))
        trace = Trace(runs[0].folder / "profile", first, where.profile, processes.first())
        closing.callback(trace.close)

    at = [step]

    def on_metrics(now: int, metrics: Metrics) -> None:
        alive()
        keeper.on_metrics(metrics)
        speed.advance(now - at[0])
        seen = int(metrics.seen.sum())  # 0 if every step overflowed
        progress.advance(now - at[0], float(metrics.loss.sum()) / seen if seen else math.nan)
        at[0] = now

    progress.open(label, config.optim.ni, step)
    closing.callback(progress.close)
    try:
        with signals.in_loop(), setup.data.open(config.seed) as data:
            if isinstance(data, Reader):
                speed.waited = lambda: data.waited
            state = run_loop(
                setup.program,
                state,
                data,
                total=config.optim.ni,
                due=setup.method.due,
                hooks=hooks,
                log_every=where.log_every,
                on_metrics=on_metrics,
                on_moves=keeper.on_moves,
                trace=trace,
            )
            progress.sign_of_life(f"{label}: {speed.describe()}" if speed.describe() else "")
            return keeper.finish(config.optim.ni, state)
    except NonFinite as error:
        raise _diverged(runs[min(error.member, len(runs) - 1)], error.step) from error
    finally:
        closing.close()


def warn_of_other_images(config: Config, images: str, progress: Progress) -> None:
    """A chain should be trained on one set of images; where it is not, that is said."""
    for parent in dict.fromkeys(filter(None, (config.start.matching_ckpt, config.start.previous_ckpt))):
        theirs = tickets.read_meta(parent).get("images", images)
        if theirs != images:
            progress.once(f"warning: {parent} was trained on other images (their number, order or pixels)")


def _diverged(run: Run, step: int) -> Failure:
    kept = sorted(p.name for p in run.folder.glob("*.ckpt"))
    error = Failure(
        f"{run.folder}: the loss is not finite at step {step} (config.optim.lr={run.config.optim.lr:g}); "
        f"stopped before it could overwrite anything. Kept: {', '.join(kept) or 'no ticket yet'}. "
        "Try a lower rate or --optim_global_clipping in a new --save"
    )
    error.agreed = True  # metrics are every process's
    return error


def prepare(config: Config, folder: epath.Path, start: bool = True) -> Run:
    """What is decided and checked before anything is computed; without `start` no folder is touched."""
    check_precision(config)
    check_place(folder, config)
    if start:
        check_job(folder, config)
    run = Run(folder, settled(folder, config))
    check_config(run.config)
    check_start(run.config)
    check_setup(run.config)
    processes.agree(lambda: check_parents(run.config))
    return run


def train_one(config: Config, save: str) -> dict[str, Any]:
    """What scripts/train.py does: one run in one folder."""
    folder = epath.Path(save)
    run = prepare(config, folder)
    [result] = results_of([run])
    progress = Progress(config.optim.ni, patience=0.0)
    datasets = datasets_of(config, progress.line)  # what is missing is told before the run
    if result is not None:
        StateStore(folder / paths.STATES, 1).clear()  # of a run that was killed once its result was written
        progress.line(f"{folder}: already finished, nothing to do")
    else:
        progress.line(
            f"{config.method.name}{describe_mask(config)} · {config.model.name} on {config.data.name} · "
            f"{config.optim.ni:,} steps of {config.feed.batch_size} · seed {run.config.seed} · "
            f"{run.config.precision} on {describe_devices(config)} → {folder}"
        )
        setups = Setups()
        setups.source(run.config)  # what is missing is told before a folder is made
        [result] = train([run], setups, folder / paths.STATES, progress, folder.name)
    assert result is not None
    progress.line(summary(result, folder))
    judged = judge_best(run.config, folder, datasets)
    if judged:
        progress.line(" · ".join(judged))
    return result


def describe_mask(config: Config) -> str:
    """The mask that a criterion gives: ` from random erk masks of density 0.05`."""
    rule = config.masks
    if rule.criterion == "none":
        return ""
    structure = "" if rule.structure == "none" else f" {rule.structure}"
    return f" from {rule.criterion} {rule.allocation}{structure} masks of density {rule.density:g}"
