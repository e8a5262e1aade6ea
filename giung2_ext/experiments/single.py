"""One training run, or several equal ones side by side: start, continue or recognise as finished.

A folder that holds a result of the same recipe is finished; one with the same recipe and no result is
continued from its newest state; one with another recipe is refused with the difference.
"""

import math
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from giung2_ext.core import accounting, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Failure, Refusal
from giung2_ext.experiments.config import Config, recipe, with_defaults
from giung2_ext.experiments.progress import Progress, percent
from giung2_ext.experiments.setup import Setup, Setups, check_config, mixed_precision
from giung2_ext.experiments.start import check_start, start_state
from giung2_ext.storage import locks, paths, records, tickets
from giung2_ext.storage.checkpoints import StateStore
from giung2_ext.training.hooks import Keeper, Member, Scores
from giung2_ext.training.loop import NonFinite, run_loop
from giung2_ext.training.population import stack
from giung2_ext.training.state import State
from giung2_ext.training.step import Metrics

Tree = Any


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
    """A copy with what is decided once for a run and recorded: its seed and its precision.

    What the folder has recorded holds where the config gives none; else the seed is `seed`, or drawn,
    and the precision what the machine makes of `mixed_precision`. A seed in the config means that
    `seed`, derived from it, is asked for, whatever is recorded.
    """
    given = config.seed is not None
    config = config.copy_and_resolve_references()
    recorded = records.recorded_recipe(folder)
    if seed is not None:
        config.seed = seed
    if not given and recorded is not None:
        config.seed = recorded["seed"]
    elif config.seed is None:
        config.seed = secrets.randbelow(2**31)
    if config.precision is None and recorded is not None:
        config.precision = recorded.get("precision", "float32")
    elif config.precision is None:
        config.precision = mixed_precision() if config.mixed_precision else "float32"
    return config


def result_of(run: Run) -> dict[str, Any] | None:
    """The result of a finished run of this recipe; another recipe in its folder is refused."""
    check_start(run.config)
    tickets.refuse_inside(run.folder)
    recorded = records.recorded_recipe(run.folder)
    if recorded is not None:
        records.check_recipe(run.folder, with_defaults(recorded), recipe(run.config))
    return records.read_result(run.folder)


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
    with locks.locked(run.folder for run in runs if run.folder not in held):
        if any(result_of(run) is not None for run in runs):
            raise Refusal(f"{label} was finished by another process meanwhile; run the command again")
        setup = setups.get(runs[0].config, len(runs))
        starts = [start_state(run.config, setup) for run in runs]
        for run, (state, _) in zip(runs, starts, strict=True):
            paths.sweep_temporaries(run.folder)
            session = {
                "placement": run.config.placement.to_dict(),
                "chain": run.config.chain.to_dict(),
                "environment": records.environment(),
            }
            records.record_session(run.folder, recipe(run.config), session)
            counts = trees.named_leaves(masking.counts(setup.method.masks(state.trainable, state.method)))
            _write_parameters(run.folder, {k: int(n) for k, n in counts.items() if n is not None}, setup)
        results = _train_from(runs, setup, starts, states_folder, progress, label)
        for run, result in zip(runs, results, strict=True):
            kept = {name: count for name, (count, _) in result["layers"].items()}
            result["flops"] = _write_parameters(run.folder, kept, setup)._asdict()
            records.write_result(run.folder, result)
        for folder in (states_folder, *(run.folder / paths.STATES for run in runs)):
            StateStore(folder, 1).clear()
        return results


def _train_from(
    runs: Sequence[Run],
    setup: Setup,
    starts: Sequence[tuple[State, dict[str, Any]]],
    states_folder: epath.Path,
    progress: Progress,
    label: str,
) -> list[dict[str, Any]]:
    config = runs[0].config
    where = config.placement
    store = StateStore(states_folder, where.keep_states)
    identity = [recipe(run.config) for run in runs]
    members_at_0 = [state.replace(step=None) for state, _ in starts]
    found = _recover(store, members_at_0[0], identity, progress)
    step = 0 if found is None else found.step
    state = setup.population.place(stack(members_at_0 if found is None else found.members))
    state = state.replace(step=step)

    members = [
        Member(run.folder, lineage, records.MetricsLog(run.folder, step, where.tensorboard))
        for run, (_, lineage) in zip(runs, starts, strict=True)
    ]
    keeper = Keeper(
        members,
        setup.program,
        setup.population,
        setup.evaluation,
        config.evaluation.select_on,
        store,
        identity,
        lambda now, scores: progress.sign_of_life(_scores_line(label, now, scores, progress)),
    )
    if found is not None:
        keeper.recall(found.notes, found.rows)
        progress.line(f"{label}: continuing from step {step:,}")
    periodic = config.tickets.every if config.tickets.periodic else None
    hooks = keeper.hooks(
        config.evaluation.every,
        periodic,
        where.save_every_steps,
        where.save_every_seconds,
        where.log_every,
    )

    at = [step]

    def on_metrics(now: int, metrics: Metrics) -> None:
        keeper.on_metrics(metrics)
        seen = int(metrics.seen.sum())  # 0 if every step overflowed
        progress.advance(now - at[0], float(metrics.loss.sum()) / seen if seen else math.nan)
        at[0] = now

    progress.open(label, config.optim.ni, step)
    try:
        state = run_loop(
            setup.program,
            state,
            setup.data,
            total=config.optim.ni,
            due=setup.method.due,
            hooks=hooks,
            log_every=where.log_every,
            on_metrics=on_metrics,
        )
        return keeper.finish(config.optim.ni, state)
    except NonFinite as error:
        raise _diverged(runs[min(error.member, len(runs) - 1)], error.step) from error
    finally:
        progress.close()
        store.close()


class Found(NamedTuple):
    """A state to go on from: the wanted members, and which of the saved members they are."""

    step: int
    members: list[State]
    rows: list[int]
    notes: dict[str, Any]


def _recover(store: StateStore, like: State, identity: list[Any], progress: Progress) -> Found | None:
    """The newest state that can be read; the members may be some of those that were saved."""
    for step in store.steps():
        try:
            notes = store.notes(step)
            saved = [with_defaults(recorded) for recorded in notes["identity"]]
            if any(recipe not in saved for recipe in identity):
                raise Refusal(
                    f"{store.folder} holds the running state of other runs, at step {step:,}; finish them "
                    "with the flags they were started with, or delete it"
                )
            count = len(saved)
            axis = () if count == 1 else (count,)
            target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(axis + x.shape, x.dtype), like)  # noqa: B023
            state = store.restore(step, target)
        except Refusal:
            raise
        except Exception as error:  # orbax and tensorstore raise many kinds on a damaged file
            reason = str(error).splitlines()[0][:100]
            progress.line(f"{store.folder}: the state of step {step:,} is damaged ({reason}); trying older")
            continue
        rows = [saved.index(recipe) for recipe in identity]
        members = [jax.tree.map(lambda x: x[i], state) if axis else state for i in rows]  # noqa: B023
        return Found(step, members, rows, notes)
    return None


def _scores_line(label: str, step: int, scores: list[Scores], progress: Progress) -> str:
    parts = [f"{label}: step {step:,}"]
    trained = [member["train"] for member in scores if "train" in member]
    losses = [train["loss"] for train in trained if "loss" in train]
    if losses:
        parts.append(f"loss {sum(losses) / len(losses):.4f}")
    for split in (split for split in scores[0] if all("accuracy" in member[split] for member in scores)):
        parts.append(f"{split} {percent([member[split]['accuracy'] for member in scores])}")
    skipped = sum(train.get("skipped_steps", 0) for train in trained)
    if skipped:
        parts.append(f"{skipped:,} steps skipped (float16 overflow)")
    return " · ".join([*parts, f"{progress.left()} left"])


def _diverged(run: Run, step: int) -> Failure:
    kept = sorted(p.name for p in run.folder.glob("*.ckpt"))
    return Failure(
        f"{run.folder}: the loss is not finite at step {step} (config.optim.lr={run.config.optim.lr:g}); "
        f"stopped before it could overwrite anything. Kept: {', '.join(kept) or 'no ticket yet'}. "
        "Try a lower rate or --optim_global_clipping in a new --save"
    )


def _write_parameters(folder: epath.Path, kept: dict[str, int], setup: Setup) -> accounting.Totals:
    """parameters.txt: every leaf with what masks keep of it, and what it costs; returns the FLOPs."""
    rows = accounting.layers(setup.shapes, kept, setup.uses)
    weights, flops = accounting.totals(rows, setup.uses)
    try:
        from clu import parameter_overview
    except ImportError:  # it is for reading, not for training
        return flops
    lines = [
        parameter_overview.make_table(
            rows, value_formatter=lambda v: f"{v:,}" if type(v) is int else str(v)
        ),
        accounting.describe_weights(weights),
        accounting.describe_flops(flops),
        "Kept is None where a leaf is not prunable; FLOPs are those of convolutions and matrix products",
    ]
    paths.write_bytes(folder / "parameters.txt", "\n".join([*lines, ""]).encode())
    return flops


def density_text(result: dict[str, Any]) -> str:
    return f"{result['kept'] / result['prunable']:.4f}"


def train_one(config: Config, save: str) -> dict[str, Any]:
    """What scripts/train.py does: one run in one folder."""
    folder = epath.Path(save)
    check_precision(config)
    run = Run(folder, settled(folder, config))
    check_config(run.config)
    result = result_of(run)
    if result is not None:
        print(f"{folder}: already finished, nothing to do")
    else:
        where = f"{jax.default_backend()} ({jax.devices()[0].device_kind})"
        print(
            f"{config.method.name} · {config.model.name} on {config.data.name} · "
            f"{config.optim.ni:,} steps of {config.feed.batch_size} · seed {run.config.seed} · "
            f"{run.config.precision} on {where} → {folder}",
            flush=True,
        )
        progress = Progress(config.optim.ni, patience=0.0)
        [result] = train([run], Setups(), folder / paths.STATES, progress, folder.name)
    print(summary(result, folder))
    return result


def summary(result: dict[str, Any], folder: epath.Path) -> str:
    """What was kept, how good it is and on what, what it costs, where it is."""
    select, best, last = result["selected_on"], result["scores"]["best"], result["scores"]["last"]
    weights = accounting.totals_of(result["prunable"], result["kept"], result["parameters"])
    flops = [accounting.describe_flops(accounting.Totals(**result["flops"]))] if "flops" in result else []
    return "\n".join(
        [
            accounting.describe_weights(weights),
            *flops,
            f"best at step {result['best_step']:,} (chosen on {select}: "
            f"{percent([best[select]['accuracy']])}): test {percent([best['test']['accuracy']])}; "
            f"last: {select} {percent([last[select]['accuracy']])}, "
            f"test {percent([last['test']['accuracy']])}",
            f"tickets: {folder / paths.BEST}, {folder / paths.LAST}",
        ]
    )
