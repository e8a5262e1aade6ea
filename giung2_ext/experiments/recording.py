"""What a run's folder is told of it before the first step and after the last."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath

from giung2_ext.core import accounting, trees
from giung2_ext.core.errors import Refusal, Stopped
from giung2_ext.experiments.config import Config, recipe
from giung2_ext.experiments.setup import Setup
from giung2_ext.storage import events, paths, records
from giung2_ext.training import chips, processes

Tree = Any


def open_logs(
    runs: Sequence[tuple[epath.Path, Config]], step: int, closing: contextlib.ExitStack
) -> list[records.MetricsLog | None]:
    """Of runs that go on from a step, in the first process; a refusal is every process's."""
    logs: list[records.MetricsLog | None] = [None] * len(runs)

    def open_all() -> None:
        for i, (folder, config) in enumerate(runs):
            where = config.placement
            sinks = [events.tensorboard(folder, step)] if where.tensorboard else []
            sinks += [events.wandb(folder, where.wandb, recipe(config))] if where.wandb else []
            logs[i] = log = records.MetricsLog(folder, step, sinks)
            closing.callback(log.close)

    processes.agree(open_all)
    return logs


def write_start(folder: epath.Path, config: Config, setup: Setup, kept: Tree) -> None:
    """The recipe, this session, and the network with what `kept` counts of it."""
    paths.sweep_temporaries(folder)
    session = {
        "placement": config.placement.to_dict() | _placed(setup),
        "chain": config.chain.to_dict(),
        "environment": records.environment(),
    }
    records.record_session(folder, recipe(config), session, setup.data.images)
    counts = {name: int(n) for name, n in trees.named_leaves(kept).items() if n is not None}
    write_parameters(folder, counts, setup)


@contextlib.contextmanager
def end_told(folders: Sequence[epath.Path]) -> Iterator[None]:
    """What ends the work on these folders before their results are there is recorded in them."""
    try:
        yield
    except BaseException as error:
        how = "failed" if isinstance(error, Exception) else "stopped"
        why = (str(error).splitlines() or [""])[0]
        if not isinstance(error, (Refusal, Stopped)):
            why = f"{type(error).__name__}: {why}".removesuffix(": ")
        for folder in folders if processes.first() else ():
            with contextlib.suppress(OSError, Refusal):  # a full disk may be what ended it
                records.record_end(folder, how, why)
        raise


def _placed(setup: Setup) -> dict[str, Any]:
    """Where a run lies, as it was decided: for its records."""
    return {
        "mesh": ",".join(f"{axis}:{size}" for axis, size in setup.population.mesh.shape.items()),
        "micro_batches": setup.micro_batches,
        "processes": jax.process_count(),
    }


def write_parameters(folder: epath.Path, kept: dict[str, int], setup: Setup) -> accounting.Totals:
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


def training_flops(
    folder: epath.Path, config: Config, kept: dict[str, int], setup: Setup
) -> list[int] | None:
    """[sparse, dense] of a whole run; None of one whose density changed outside of updates."""
    method = setup.method
    if method.settled is not None and (method.due is None or method.latent):
        return None
    spans = accounting.spans(config.optim.ni, records.read_moves(folder), kept)
    found = accounting.training(setup.shapes, setup.uses, spans, method.dense_grads)
    return [flops * config.feed.batch_size for flops in found]


def peak_steps(config: Config, setup: Setup, members: int) -> float | None:
    """Steps a second at the peak rate of the devices; None where it is unknown."""
    mesh = setup.population.mesh
    chip = chips.of(mesh.devices.flat[0].device_kind)
    if chip is None:
        return None
    _, flops = accounting.totals(accounting.layers(setup.shapes, {}, setup.uses), setup.uses)
    return chip.flops * mesh.size / (3 * flops.all * config.feed.batch_size * members)
