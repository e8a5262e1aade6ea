"""What a run's folder is told of it before the first step and after the last."""

from typing import Any

import jax
from etils import epath

from giung2_ext.core import accounting, trees
from giung2_ext.experiments.config import Config, recipe
from giung2_ext.experiments.setup import Setup
from giung2_ext.storage import paths, records

Tree = Any


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
