"""What an update of the mask costs in ResNet-50, against a training step and against sorts and full SVDs.

RPG half way through its published schedule, rank loss included: 54 leaves, 25.5 million weights. The other
way is the reference's, in PyTorch (extra `torch`, left out without it): all |w| sorted, every layer's |w|
and |gradient| sorted, one full SVD a convolution, on the same weights and gradients; it keeps the same
weights. A training step is of 32 images of 96x96 in float32 on a CPU, of 256 of 224x224 in bfloat16 on an
accelerator. With an update every 100 steps, at most 4% of the time for RPG's and 2% for RigL's is the aim:
a step of 0.25 and of 0.5 times their update. `--smoke` takes a small network.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.mask_overhead import random_batch, stepper
from giung2_ext.core import criteria, masks, trees
from giung2_ext.methods import rigl, rpg, ticket
from giung2_ext.models import resnet, resnet_cifar
from giung2_ext.training.optimizers import edit_slots
from giung2_ext.training.state import init_variables, seed_key

try:
    import torch
except ModuleNotFoundError:
    torch = None

NI, ROUND = 125_100, 600
OPTIONS = dict(density=0.1, rank_weight=0.5, tolerance=0.1, ni=NI)
REFERENCE, STEP = "sorts and SVDs, PyTorch", "a training step"


def updater(method, params, masks_, grads, updates):
    """Takes the update of this number, on copies, and gives the new masks."""
    state = method.init(None, params, masks_)[1]._replace(updates=jnp.int32(updates))
    slots = jax.tree.map(jnp.ones_like, params)  # SGD's momentum

    @jax.jit
    def update(params, state, grads, slots):
        if method.penalty is not None:
            more = jax.grad(method.penalty)(params, state)
            grads = jax.tree.map(jnp.add, grads, more)
        _, slots, state = method.update(params, slots, state, grads, jnp.int32(0), None, edit_slots)
        return state.masks, slots, grads

    def run():
        return jax.block_until_ready(update(params, state, grads, slots))

    return run


class Reference:
    """The published update on flat leaves."""

    def __init__(self, params, grads, names, ranked, keep, fraction):
        tensor = lambda tree, name: torch.tensor(np.asarray(trees.named_leaves(tree)[name]))  # noqa: E731
        self.kernels = [tensor(params, name) for name in names]
        self.grads = [tensor(grads, name) for name in names]
        self.ranked, self.keep, self.fraction = ranked, keep, fraction

    def rank_gradient(self, kernel):
        matrix = kernel.reshape(-1, kernel.shape[-1]).T
        norm = torch.linalg.norm(matrix)
        unit = matrix / norm
        u, s, vt = torch.linalg.svd(unit, full_matrices=False)
        left = (torch.cumsum((s**2).flip(0), 0) - OPTIONS["tolerance"]).abs().argmin()
        k = len(s) - 1 - int(left)
        rest = unit - (u[:, :k] * s[:k]) @ vt[:k]
        gradient = -2 / norm * (rest - (rest**2).sum() * unit)
        return gradient.T.reshape(kernel.shape)

    def run(self):
        weight = OPTIONS["rank_weight"] / sum(self.ranked)
        grads = [
            grad + weight * self.rank_gradient(kernel) if ranked else grad
            for kernel, grad, ranked in zip(self.kernels, self.grads, self.ranked, strict=True)
        ]
        order = torch.cat([k.abs().flatten() for k in self.kernels]).argsort(descending=True, stable=True)
        flat = torch.zeros(len(order), dtype=torch.bool)
        flat[order[: self.keep]] = True
        found = []
        parts = flat.split([k.numel() for k in self.kernels])
        for kernel, grad, left in zip(self.kernels, grads, parts, strict=True):
            alive = int(left.sum())
            dropped = alive * self.fraction >> 31
            size, score = kernel.abs().flatten(), grad.abs().flatten()
            order = torch.where(left, size, -1).argsort(descending=True, stable=True)
            mask = torch.zeros_like(left)
            mask[order[: alive - dropped]] = True
            order = torch.where(mask, -1, score).argsort(descending=True, stable=True)
            mask[order[:dropped]] = True
            found.append(mask.reshape(kernel.shape))
        return found, grads


def reference_of(params, grads, start, keep, fraction):
    names = [name for name, mask in trees.named_leaves(start).items() if mask is not None]
    return names, Reference(params, grads, names, ["cls" not in name for name in names], keep, fraction)


def check(ours, names, theirs):
    """The same masks but where rounding of the rank loss makes two gradients change places."""
    (found, _, grads), (expected, others) = ours(), theirs()
    found, grads = trees.named_leaves(found), trees.named_leaves(grads)
    different = 0
    for name, mask, grad in zip(names, expected, others, strict=True):
        np.testing.assert_allclose(grads[name], grad.numpy(), atol=2e-6)
        assert int(found[name].sum()) == int(mask.sum())
        different += int((np.asarray(found[name]) != mask.numpy()).sum())
    size = sum(mask.numel() for mask in expected)
    assert different < 1e-5 * size, f"{different} of {size}"
    return different, size


def make(smoke, data_root):
    cpu = jax.default_backend() == "cpu"
    if smoke:
        model, image, batch, steps = resnet_cifar.build(10, depth=8, planes=8), (32, 32, 3), 8, 1
    elif cpu:
        model, image, batch, steps = resnet.build(1000, padding="torch", head="biased"), (96, 96, 3), 32, 1
    else:
        model, image, batch, steps = resnet.build(1000, jnp.bfloat16, head="biased"), (224, 224, 3), 256, 20
    params, statistics = jax.jit(lambda key: init_variables(model, key, image))(seed_key(0))
    statistics = statistics | {"image_stats": {"m": jnp.full(3, 0.5), "s": jnp.full(3, 0.25)}}
    every = masks.dense(params, "kernels")
    size, times = masks.size(every), rpg.make_times(NI, 100, 0.901, 0.9)
    counts = rpg.kept_counts(size, OPTIONS["density"], times)
    start = jax.jit(criteria.prune_magnitude)(params, every, int(counts[ROUND - 1]))
    params = masks.apply(start, params)
    draw = np.random.default_rng(0)
    grads = jax.tree.map(lambda w: jnp.asarray(1e-3 * draw.standard_normal(w.shape), jnp.float32), params)

    method = rpg.build(**OPTIONS)
    with_rank = updater(method, params, start, grads, ROUND)
    without = updater(rpg.build(**(OPTIONS | {"rank_weight": 0.0})), params, start, grads, ROUND)
    swaps = updater(rigl.build(), params, start, grads, 0)
    step = stepper(model, ticket.build(), params, statistics, start, random_batch(image, batch, 10), steps)
    contenders = {"RPG": with_rank, "RPG without the rank loss": without, "RigL": swaps, STEP: step}
    note = f"a training step is of {batch} images of {image[0]}x{image[1]}"
    notes = [f"{len(trees.present(start))} leaves, {size:,} weights; {note}"]
    if torch is None:
        notes.append("without PyTorch, which is not installed (extra torch)")
    else:
        angle = np.pi * (ROUND + 1) * 100 / times.stop
        fraction = int(np.ceil(0.15 * (1 + np.cos(angle)) * 2**31))
        names, other = reference_of(params, grads, start, int(counts[ROUND]), fraction)
        different, whole = check(with_rank, names, other.run)
        contenders[REFERENCE] = other.run
        notes.append(
            f"the same masks but for {different} of {whole:,} places, rank gradients equal to 2e-6; "
            f"torch {torch.__version__}, {torch.get_num_threads()} threads"
        )
    yield contenders, {STEP: 0.25 * steps}, notes, ("updates", 1)
    of_rigl = {"RigL": swaps, STEP: step}
    yield of_rigl, {STEP: 0.5 * steps}, [note], ("updates", 1)
