"""Makes jaxpruner.json: what jaxpruner does with the network and the weights of tests/core/test_peer.py.

Run as `PYTHONPATH=JAXPRUNER:tests:tests/core python tests/golden/make_jaxpruner.py`, JAXPRUNER being a
checkout of https://github.com/google-research/jaxpruner, where chex is installed. Made with its commit
14f9762 (the files imported here and theirs, empty `__init__`s), jax 0.10.2, flax 0.12.8, chex 0.1.92 and
NumPy 2.4.6 on a CPU; `jax.tree_map`, which it calls and jax no longer has, is restored below. Lists have an
entry for every leaf in flattening order, `sha256` is of packed bits. `norms` are what its global pruner
divides by unless told not to, `normalized`. `patterns` have groups along `axis` and keep the last of ties.
"""

import functools
import json

import jax
import jax.numpy as jnp
import test_peer
from jaxpruner import sparsity_distributions, sparsity_schedules, sparsity_types
from jaxpruner.algorithms import global_pruners, pruners

from giung2_ext.core import trees

SPARSITIES = (0.8, 0.9, 0.95, 0.98)
PRUNED = (0.8, 0.9)
DISTRIBUTIONS = {"uniform": sparsity_distributions.uniform, "erk": sparsity_distributions.erk}
STRUCTURED = ("Conv_1", "Conv_2", "Conv_47", "cls")
STEPS = (0, 9999, 10000, 10001, 11000, 12000, 15000, 17500, 20000, 24000, 24998, 24999, 25000, 26000)


def distribute(shapes, how: str, sparsity: float) -> list[float]:
    tree = DISTRIBUTIONS[how](shapes, sparsity)
    return [float(leaf) for leaf in trees.present(tree)]


def prune(weights, how: str, sparsity: float) -> dict:
    if how in DISTRIBUTIONS:
        chosen = functools.partial(DISTRIBUTIONS[how], sparsity=sparsity)
        pruner = pruners.MagnitudePruning(sparsity_distribution_fn=chosen)
    else:
        pruner = global_pruners.GlobalMagnitudePruning(
            sparsity=sparsity, use_normalization=how == "normalized"
        )
    return test_peer.describe(pruner.instant_sparsify(weights)[1])


def prune_pattern(weights, n: int, m: int, axis: int) -> dict:
    some = {name: weights[name] for name in STRUCTURED}
    pruner = pruners.MagnitudePruning(
        sparsity_type=sparsity_types.NByM(n, m, axis),
        # not what is pruned; but with its default, 0, nothing would be
        sparsity_distribution_fn=functools.partial(sparsity_distributions.uniform, sparsity=1 - n / m),
    )
    return {"axis": axis, **test_peer.describe(pruner.instant_sparsify(some)[1])}


def follow_schedule() -> dict:
    options = dict(update_freq=1000, update_start_step=10000, update_end_step=25000, power=3)
    schedule = sparsity_schedules.PolynomialSchedule(**options)
    return {
        **options,
        "sparsity": 0.8,
        "steps": STEPS,
        "updates": [bool(schedule.is_mask_update_iter(step)) for step in STEPS],
        "sparsities": [float(schedule.get_sparsity_at_step({"w": 0.8}, step)["w"]) for step in STEPS],
    }


def main() -> None:
    jax.tree_map = jax.tree.map
    kernels = test_peer.find_kernels()
    weights = jax.tree.map(jnp.asarray, test_peer.draw_weights(kernels))
    leaves = trees.named_leaves(weights)
    made = {
        "leaves": {name: list(leaf.shape) for name, leaf in leaves.items()},
        "weights": [test_peer.sha256(leaf) for leaf in jax.device_get(list(leaves.values()))],
        "sparsities": {
            how: {str(sparsity): distribute(kernels, how, sparsity) for sparsity in SPARSITIES}
            for how in DISTRIBUTIONS
        },
        "masks": {
            how: {str(sparsity): prune(weights, how, sparsity) for sparsity in PRUNED}
            for how in (*DISTRIBUTIONS, "global", "normalized")
        },
        "norms": [float(jnp.linalg.norm(jnp.abs(leaf))) for leaf in leaves.values()],
        "pattern_leaves": [f"{name}/kernel" for name in sorted(STRUCTURED)],
        "patterns": {
            f"{n}:{m}": [prune_pattern(weights, n, m, axis) for axis in (-1, -2)]
            for n, m in ((2, 4), (1, 4))
        },
        "schedule": follow_schedule(),
    }
    test_peer.GOLDEN.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
