"""The one training step, as two pure functions: the ordinary step and the mask-update step.

In order: weights from the trainables, made whole where devices own parts of them; the dense gradient
with respect to those weights (growth wants it at pruned places, where the gradient through a masked
product is 0); the penalty's gradient; the pull back to the trainables and the optimizer, unless an
update replaces it; `follow`; on due steps `update`. Micro-batches average dense gradients and BatchNorm
statistics; the pull is linear and runs once. In float16 a step that overflows moves nothing but the
step count and the loss scale; an update is tried again on the same batch at half the scale, so that
none is lost.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from giung2_ext.core import losses, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.method import Method
from giung2_ext.core.schedules import Schedule
from giung2_ext.training import loss_scale
from giung2_ext.training.loss_scale import LossScale
from giung2_ext.training.optimizers import edit_slots
from giung2_ext.training.sharding import LOCAL, Layout
from giung2_ext.training.state import UPDATE, State, averaged_part

Tree = Any
Batch = Mapping[str, Array]


class Metrics(NamedTuple):
    """Sums over the steps of a chunk; they stay on the device until somebody asks."""

    loss: Array
    correct: Array
    seen: Array
    bad_step: Array  # the first step whose loss was not finite, or -1
    skipped: Array  # steps that overflowed in float16; they count nowhere else

    @classmethod
    def zeros(cls) -> "Metrics":
        return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0), jnp.int32(-1), jnp.int32(0))

    def merge(self, later: "Metrics") -> "Metrics":
        bad = jnp.where(self.bad_step >= 0, self.bad_step, later.bad_step)
        return jax.tree.map(jnp.add, self, later)._replace(bad_step=bad)


class Moves(NamedTuple):
    """What an update did to every leaf's mask: int32 counts, trees of scalars."""

    kept: Tree
    grown: Tree
    dropped: Tree
    ever: Tree  # kept by any mask so far

    @classmethod
    def between(cls, before: Tree, after: Tree, ever: Tree) -> "Moves":
        new = trees.map_present(lambda b, a: a & ~b, before, after)
        gone = trees.map_present(lambda b, a: b & ~a, before, after)
        return cls(*map(masking.counts, (after, new, gone, ever)))


def network(model: nn.Module, weights: Tree, statistics: Tree, images: Array, train: bool) -> Any:
    """Logits, and with `train` the updated collections too; pixels are standardised here."""
    others = {k: v for k, v in statistics.items() if k != "image_stats"}
    mean, std = (statistics["image_stats"][name].reshape(1, 1, 1, -1) for name in ("m", "s"))
    scale = 255.0 if jnp.issubdtype(images.dtype, jnp.integer) else 1.0
    x = (images.astype(jnp.float32) / scale - mean) / std
    variables = {"params": weights, **others}
    if not train:
        return model.apply(variables, x, train=False)
    return model.apply(variables, x, train=True, mutable=list(others))


def evaluate_sums(model: nn.Module, weights: Tree, statistics: Tree, batches: Batch) -> dict[str, Array]:
    """Summed loss, hits and number of padded batches; each real example counts once."""

    def one(batch: Batch) -> dict[str, Array]:
        logits = network(model, weights, statistics, batch["images"], train=False)
        valid = batch["valid"]
        return {
            "loss": jnp.where(valid, losses.cross_entropy(logits, batch["labels"]), 0.0).sum(),
            "correct": (valid & losses.correct(logits, batch["labels"])).sum(dtype=jnp.int32),
            "seen": valid.sum(dtype=jnp.int32),
        }

    return jax.tree.map(lambda x: x.sum(0), jax.lax.map(one, dict(batches)))


def cut(batch: Batch, slices: int, shares: int) -> Batch:
    """The batch as `slices` parts, each with as many rows of every one of `shares` contiguous shares.

    With a share for every device nothing moves between devices; with one the parts are consecutive.
    """

    def one(x: Array) -> Array:
        parts = x.reshape(shares, slices, x.shape[0] // (shares * slices), *x.shape[1:])
        return parts.swapaxes(0, 1).reshape(slices, x.shape[0] // slices, *x.shape[1:])

    return {name: one(x) for name, x in batch.items()}


def _is_heavy(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in ("conv_general_dilated", "dot_general")


def make_gradients(
    model: nn.Module,
    smoothing: float,
    layout: Layout = LOCAL,
    shares: int = 1,
    remat: bool = False,
    unroll: int = 1,
) -> Callable[..., Any]:
    """(weights, statistics, batch, slices, offset=None, scale=None) -> dense grads, statistics, metrics.

    The batch is `cut` into `slices` parts: gradients are those of the mean over its valid examples,
    updated statistics the mean over the parts. With `offset`, a tree of gradients, the grads are the
    pair (mean, mean over parts of |gradient of the part's own mean + offset|), and the parts are
    consecutive. With `scale` the loss is scaled on the way back; the grads are unscaled, in float32. With
    `remat` only what convolutions and products give is kept for the way back, and the rest of it, of
    little arithmetic, is computed again. `unroll` is how many parts one turn of the loop takes, for those
    who count what a program costs.
    """

    def loss(
        weights: Tree, statistics: Tree, batch: Batch, scale: Array | None
    ) -> tuple[Array, tuple[Tree, Array, Array, Array]]:
        logits, updated = network(model, weights, statistics, batch["images"], train=True)
        valid = batch["valid"]
        each = losses.cross_entropy(logits, batch["labels"], smoothing)
        if "partners" in batch:  # mixed with another example
            other = losses.cross_entropy(logits, batch["partners"], smoothing)
            each = batch["share"] * each + (1 - batch["share"]) * other
        total = jnp.where(valid, each, 0.0).sum()
        count = valid.sum(dtype=jnp.int32)
        hits = (valid & losses.correct(logits, batch["labels"])).sum(dtype=jnp.int32)
        mean = total / valid.size  # of all rows: `unbiased` does the rest
        return mean if scale is None else mean * scale, (updated, total, hits, count)

    if remat:
        loss = jax.checkpoint(loss, policy=_is_heavy)

    def unbiased(grads: Tree, rows: int, count: Array) -> Tree:
        """From the mean over all rows, padding too, to the mean over those that are valid.

        Afterwards, when the counts of all parts are known; the factor of a full batch is 1.
        """
        factor = rows / jnp.maximum(count, 1)
        return jax.tree.map(lambda g: g * factor, grads)

    def gradients(
        weights: Tree,
        statistics: Tree,
        batch: Batch,
        slices: int,
        offset: Tree | None = None,
        scale: Array | None = None,
    ) -> tuple[Tree, Tree, tuple[Array, Array, Array]]:
        rows = batch["valid"].size

        def one(part: Batch) -> tuple[Tree, Tree, tuple[Array, Array, Array]]:
            (_, aux), grads = jax.value_and_grad(loss, has_aux=True)(weights, statistics, part, scale)
            if scale is not None:
                grads = jax.tree.map(lambda g: g / scale, grads)
            if offset is not None:
                own = unbiased(grads, rows // slices, aux[3])
                grads = (own, jax.tree.map(lambda g, o: jnp.abs(g + o), own, offset))
            return grads, aux[0], aux[1:]

        if slices == 1:
            grads, updated, sums = one(batch)
        else:
            parts = layout.rows(cut(batch, slices, 1 if offset is not None else shares), axis=1)

            def add(total: Tree, part: Batch) -> tuple[Tree, None]:
                return jax.tree.map(jnp.add, total, one(layout.rows(part))), None

            zeros = jax.tree.map(
                lambda s: jnp.zeros(s.shape, s.dtype),
                jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts)),
            )
            (grads, updated, sums), _ = jax.lax.scan(add, zeros, parts, unroll=unroll)
            grads, updated = jax.tree.map(lambda x: x / slices, (grads, updated))
        if offset is None:
            grads = unbiased(grads, rows, sums[2])
        return layout.owned(grads), {**statistics, **updated}, sums

    return gradients


def differentiate(
    attempt: Callable[[Array | None], Tree], now: LossScale | None, due: bool, paired: bool
) -> tuple[Tree, Array, LossScale | None]:
    """(dense grads, statistics, metrics), whether the grads are finite, the next loss scale."""

    def is_finite(result: Tree) -> Array:
        return loss_scale.all_finite(result[0][0] if paired else result[0])  # without the penalty

    if now is None:
        return attempt(None), jnp.bool(True), None
    if due:
        result, now = loss_scale.retry(attempt, is_finite, now)
    else:
        result = attempt(now.scale)
    finite = is_finite(result)
    return result, finite, loss_scale.adjust(now, finite)


def make_step(
    model: nn.Module,
    method: Method,
    optimizer: optax.GradientTransformation,
    rate: Schedule,
    *,
    smoothing: float = 0.0,
    micro_batches: int = 1,
    groups: int = 1,
    average: float | None = None,
    layout: Layout = LOCAL,
    shares: int = 1,
    remat: bool = False,
    unroll: int = 1,
) -> tuple[Callable[[State, Batch], tuple[State, Metrics]], Callable[..., Any]]:
    """The ordinary step, (state, batch) -> (state, metrics), and the mask-update step, which gives Moves
    too.

    `groups` is how many parts of the batch |gradient| is averaged over for methods with `abs_over`;
    `average` is the decay of the state's moving average; micro-batches are `cut` from `shares` shares.
    """
    gradients = make_gradients(model, smoothing, layout, shares, remat, unroll)

    def run(due: bool, state: State, batch: Batch) -> tuple[State, Metrics]:
        trainable, method_state, opt_state = state.trainable, state.method, state.optimizer
        weights, pull = jax.vjp(lambda t: method.weights(t, method_state), trainable)

        penalised = method.penalty is not None and (due or method.penalty_on == "all")
        offset = jax.tree.map(jnp.zeros_like, weights)
        if penalised:
            assert method.penalty is not None  # for the type checker
            offset = jax.grad(method.penalty)(weights, method_state)
        paired = due and method.abs_over > 0
        slices, pair_with = (groups, offset) if paired else (micro_batches, None)

        whole = layout.whole(weights)

        def attempt(scale: Array | None) -> Tree:
            return gradients(whole, state.statistics, batch, slices, pair_with, scale)

        (dense, statistics, sums), finite, scale = differentiate(attempt, state.loss_scale, due, paired)
        mean = dense[0] if paired else dense
        if penalised:
            mean = jax.tree.map(jnp.add, mean, offset)

        if not (due and method.replaces_step):
            updates, opt_state = optimizer.update(pull(mean)[0], opt_state, trainable)
            lr = rate(state.step)
            trainable = jax.tree.map(lambda t, u: t + lr * u, trainable, updates)
        if method.follow is not None:
            trainable, method_state = method.follow(trainable, method_state, mean, state.step)
        if due:
            assert method.update is not None
            key = jax.random.fold_in(jax.random.fold_in(state.key, UPDATE), state.step)
            given = (mean, dense[1]) if paired else mean
            trainable, opt_state, method_state = method.update(
                trainable, opt_state, method_state, given, state.step, key, edit_slots
            )
        new = state.replace(
            step=state.step + 1,
            trainable=trainable,
            method=method_state,
            optimizer=opt_state,
            statistics=statistics,
            loss_scale=scale,
        )
        if average is not None:
            part = averaged_part(trainable, statistics)
            # the barrier keeps a multiply-add from being fused in one program and not in another
            mix = lambda a, p: a + jax.lax.optimization_barrier((1 - average) * (p - a))  # noqa: E731
            new = new.replace(average=jax.tree.map(mix, state.average, part))
        return settle(due, state, new, finite, sums)

    def update(state: State, batch: Batch) -> tuple[State, Metrics, Moves | None]:
        if method.latent:  # its mask moves between updates too
            return *run(True, state, batch), None
        before = method.masks(state.trainable, state.method)
        state, metrics = run(True, state, batch)
        after = method.masks(state.trainable, state.method)
        state = state.replace(ever=trees.map_present(jnp.logical_or, state.ever, after))
        return state, metrics, Moves.between(before, after, state.ever)

    return functools.partial(run, False), update


def settle(
    due: bool, old: State, new: State, finite: Array, sums: tuple[Array, Array, Array]
) -> tuple[State, Metrics]:
    """The step's outcome; after an overflow nothing but the step count and the loss scale has moved."""
    loss, hits, count = sums
    bad = ~jnp.isfinite(loss)
    if old.loss_scale is None:
        return new, Metrics(loss, hits, count, jnp.where(bad, old.step, jnp.int32(-1)), jnp.int32(0))
    still = old.replace(step=new.step, loss_scale=new.loss_scale)
    new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, still)
    exhausted = jnp.bool(True) if due else old.loss_scale.scale < 2  # the next scale would be below 1
    hopeless = bad | (~finite & exhausted)  # no scale mends a loss that is not finite
    counted = Metrics(loss, hits, count, jnp.where(hopeless, old.step, jnp.int32(-1)), jnp.int32(0))
    skipped = Metrics.zeros()._replace(bad_step=counted.bad_step, skipped=jnp.int32(1))
    return new, jax.tree.map(lambda c, s: jnp.where(finite, c, s), counted, skipped)
