"""One training run, or several equal ones side by side: start, continue or recognise as finished.

A folder that holds a result of the same recipe is finished; one with the same recipe and no result is
continued from its newest state; one with another recipe is refused with the difference.
"""

import contextlib
import json
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Failure, Refusal
from giung2_ext.experiments.bounds import check_config
from giung2_ext.experiments.config import Config, recipe, with_defaults
from giung2_ext.experiments.evaluate import datasets_of, judge_best
from giung2_ext.experiments.feeding import is_streamed
from giung2_ext.experiments.progress import Progress, scores_line, summary
from giung2_ext.experiments.recording import training_flops, write_parameters, write_start
from giung2_ext.experiments.recover import recover
from giung2_ext.experiments.setup import (
    Setup,
    Setups,
    check_setup,
    describe_devices,
    mixed_precision,
)
from giung2_ext.experiments.start import check_start, start_state
from giung2_ext.storage import locks, paths, records, tickets
from giung2_ext.storage.checkpoints import StateStore
from giung2_ext.training import processes, signals
from giung2_ext.training.hooks import Keeper, Member
from giung2_ext.training.loop import NonFinite, SaveEvery, run_loop
from giung2_ext.training.state import State
from giung2_ext.training.step import Metrics

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


def settled(folder: epath.Path, config: Config, seed: int | None = None) -> Config:
    """A copy with what is decided once for a run and recorded: its seed, precision and augmentation.

    What the folder has recorded holds where the config gives none; else the seed is `seed`, or drawn,
    the precision what the machine makes of `mixed_precision`, and streamed images are cropped at
    random. A seed in the config means that `seed`, derived from it, is asked for, whatever is recorded.
    """

    def decide() -> tuple[int, str, str]:
        recorded = records.recorded_recipe(folder)
        chosen = config.seed if seed is None else seed
        if config.seed is None and recorded is not None:
            chosen = recorded["seed"]
        elif chosen is None:
            chosen = secrets.randbelow(2**31)
        precision = config.precision
        if precision is None and recorded is not None:
            precision = recorded.get("precision", "float32")
        elif precision is None:
            precision = mixed_precision() if config.mixed_precision else "float32"
        augment = config.feed.augment
        if augment is None and recorded is not None:
            augment = recorded["feed"]["augment"]
        elif augment is None:
            augment = "resized_crop" if is_streamed(config.data.name) else "none"
        return chosen, precision, augment

    decided = config.copy_and_resolve_references()
    decided.seed, decided.precision, decided.feed.augment = processes.agree(decide)
    return decided


def results_of(runs: Sequence[Run]) -> list[dict[str, Any] | None]:
    """The results of finished runs of these recipes; another recipe in a run's folder is refused."""

    def one(run: Run) -> dict[str, Any] | None:
        check_start(run.config)
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
        processes.agree(lambda: open_until_done.enter_context(locks.locked(folders)))
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
        for run, (state, _) in zip(runs, starts, strict=True):
            kept = jax.device_get(_count(setup.method.masks(state.trainable, state.method)))
            if processes.first():
                write_start(run.folder, run.config, setup, kept)
        results = _train_from(runs, setup, starts, states_folder, progress, label, alive)
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
    alive: Callable[[], None],
) -> list[dict[str, Any]]:
    config = runs[0].config
    where = config.placement
    store = StateStore(states_folder, where.keep_states)
    identity = [recipe(run.config) for run in runs]
    members_at_0 = [state.replace(step=None) for state, _ in starts]
    found = recover(store, setup.population, members_at_0[0], identity, progress)
    step = 0 if found is None else found.step
    state = setup.population.join(members_at_0 if found is None else found.members)
    state = state.replace(step=step)

    def log_of(run: Run) -> records.MetricsLog | None:
        return records.MetricsLog(run.folder, step, where.tensorboard) if processes.first() else None

    members = [
        Member(run.folder, lineage, log_of(run)) for run, (_, lineage) in zip(runs, starts, strict=True)
    ]
    keeper = Keeper(
        members,
        setup.program,
        setup.population,
        setup.data.evaluation,
        setup.select_on,
        store,
        identity,
        lambda now, scores: progress.sign_of_life(scores_line(label, now, scores, progress.left())),
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

    at = [step]

    def on_metrics(now: int, metrics: Metrics) -> None:
        alive()
        keeper.on_metrics(metrics)
        seen = int(metrics.seen.sum())  # 0 if every step overflowed
        progress.advance(now - at[0], float(metrics.loss.sum()) / seen if seen else math.nan)
        at[0] = now

    progress.open(label, config.optim.ni, step)
    try:
        with signals.in_loop(), setup.data.open(config.seed) as data:
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
            )
            return keeper.finish(config.optim.ni, state)
    except NonFinite as error:
        raise _diverged(runs[min(error.member, len(runs) - 1)], error.step) from error
    finally:
        progress.close()
        store.close()


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


def train_one(config: Config, save: str) -> dict[str, Any]:
    """What scripts/train.py does: one run in one folder."""
    folder = epath.Path(save)
    check_precision(config)
    check_job(folder, config)
    run = Run(folder, settled(folder, config))
    check_config(run.config)
    check_setup(run.config)
    [result] = results_of([run])
    progress = Progress(config.optim.ni, patience=0.0)
    datasets = datasets_of(config, progress.line)  # what is missing is told before the run
    if result is not None:
        progress.line(f"{folder}: already finished, nothing to do")
    else:
        progress.line(
            f"{config.method.name}{describe_mask(config)} · {config.model.name} on {config.data.name} · "
            f"{config.optim.ni:,} steps of {config.feed.batch_size} · seed {run.config.seed} · "
            f"{run.config.precision} on {describe_devices(config)} → {folder}"
        )
        [result] = train([run], Setups(), folder / paths.STATES, progress, folder.name)
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


def check_job(folder: epath.Path, config: Config) -> None:
    """Refuses a job whose processes were not given the same command, or do not see the same folder."""
    processes.check_same(
        json.loads(config.to_json_best_effort()), "their command: give all of them the same"
    )
    processes.agree(lambda: tickets.refuse_inside(folder))
    if not processes.joined():
        return
    mark = folder / f".seen_{processes.agree(lambda: secrets.token_hex(4))}.tmp"
    if processes.first():
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text("does every process see this?")
    processes.together("mark")
    try:
        processes.require(
            mark.exists(),
            f"the processes of this job do not all see {folder}: name a --save on a shared file system "
            "or in an object store (gs://bucket/...)",
        )
    finally:
        if processes.first():
            mark.unlink(missing_ok=True)
