"""The order of operations of the step, piece by piece, against plain NumPy or jax.grad."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fakes import CLASSES, kernels, make_batch, make_bench, make_method, make_model, start_masks

from giung2_ext.core import losses
from giung2_ext.core import masks as masking
from giung2_ext.core.method import Method
from giung2_ext.data.preprocessing import mixup
from giung2_ext.training.optimizers import make_optimizer
from giung2_ext.training.step import Metrics, make_gradients, make_step, network


def probe(**changes):
    """A fixed-mask method whose state also keeps what `update` and `follow` were given."""

    def init(key, params, masks):
        zeros = jax.tree.map(jnp.zeros_like, params)
        seen = dict(update=zeros, pair=zeros, follow=zeros, step=jnp.int32(-1), key=jax.random.key(0))
        return masking.apply(masks, params), (masks, seen)

    def follow(trainable, state, dense, step):
        return trainable, (state[0], state[1] | {"follow": trainable})

    def update(trainable, opt_state, state, dense, step, key, edit_slots):
        mean, pair = dense if changes.get("abs_over") else (dense, dense)
        seen = state[1] | {"update": mean, "pair": pair, "step": step, "key": key}
        return trainable, opt_state, (state[0], seen)

    method = Method(
        init=init,
        weights=lambda t, s: masking.apply(s[0], t),
        masks=lambda t, s: s[0],
        follow=follow,
        due=lambda step: step == 1,
        update=update,
    )
    return method._replace(**changes)


def task_grads(bench, state, batch, weights=None):
    """jax.grad of the plain mean loss with respect to the effective weights."""

    def loss(w):
        logits, _ = network(bench.model, w, state.statistics, batch["images"], train=True)
        return losses.cross_entropy(logits, batch["labels"]).mean()

    return jax.grad(loss)(bench.weights(state) if weights is None else weights)


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_update_gets_the_dense_gradient_pruned_places_included():
    bench = make_bench(probe(replaces_step=True))
    first = next(bench.run(1))
    batch = make_batch(1)
    after, *_ = bench.update(first, batch)
    expected = task_grads(bench, first, batch)
    close(after.method[1]["update"], expected, rtol=1e-4, atol=1e-7)
    pairs = zip(kernels(expected), kernels(bench.masks), strict=True)
    off = np.concatenate([np.asarray(grad)[~np.asarray(mask)] for grad, mask in pairs])
    assert (off != 0).mean() > 0.5


def test_decay_comes_before_clipping_and_the_step_multiplies_by_the_rate():
    bench = make_bench(
        "ticket", optimizer=("sgd", 0.9, 0.1, 0.05), rate=0.3, masks=lambda p: masking.dense(p, "kernels")
    )
    state, trace = bench.state, None
    for index in range(3):
        batch = make_batch(index)
        grads = jax.tree.map(lambda g, w: g + 0.1 * w, task_grads(bench, state, batch), state.trainable)
        norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
        assert norm > 0.05
        grads = jax.tree.map(lambda g: g / norm * 0.05, grads)  # noqa: B023
        trace = grads if trace is None else jax.tree.map(lambda t, g: 0.9 * t + g, trace, grads)
        expected = jax.tree.map(lambda w, t: w - 0.3 * t, state.trainable, trace)
        state, _ = bench.step(state, batch)
        close(state.trainable, expected, rtol=1e-4, atol=1e-6)


def test_the_rate_counts_replaced_steps():
    seen = []
    bench = make_bench(probe(replaces_step=True), optimizer=("sgd", 0.0))
    rate = lambda step: step.astype(jnp.float32)  # noqa: E731
    step, update = make_step(bench.model, bench.method, make_optimizer("sgd", 0.0), rate)
    state = bench.state
    for index in range(4):
        before = state.trainable
        grads = task_grads(bench, state, make_batch(index))
        state, *_ = (update if bench.method.due(index) else step)(state, make_batch(index))
        moved = jax.tree.map(lambda a, b: a - b, before, state.trainable)["cls"]["bias"]
        seen.append(float(jnp.abs(moved).sum() / jnp.abs(grads["cls"]["bias"]).sum()))
    np.testing.assert_allclose(seen, [0, 0, 2, 3], rtol=1e-3, atol=1e-6)  # step 1 was replaced


@pytest.mark.parametrize("replaces", [True, False])
def test_an_update_stands_in_for_the_optimizers_step_or_follows_it(replaces):
    bench = make_bench(probe(replaces_step=replaces))
    first = next(bench.run(1))
    after, *_ = bench.update(first, make_batch(1))
    same = jax.tree.all(jax.tree.map(np.array_equal, first.trainable, after.trainable))
    slots = jax.tree.all(jax.tree.map(np.array_equal, first.optimizer, after.optimizer))
    assert same == slots == replaces
    assert int(after.step) == 2
    assert int(after.method[1]["step"]) == 1


def test_follow_sees_the_trainables_after_the_optimizer_on_due_steps_too():
    bench = make_bench(probe())
    states = list(bench.run(3))
    for state in states:
        close(state.method[1]["follow"], state.trainable, rtol=0)
    assert not np.array_equal(states[0].trainable["cls"]["bias"], states[1].trainable["cls"]["bias"])


def penalty(weights, state):
    return 0.5 * sum((w**2).sum() for w in jax.tree.leaves(weights)) * 7


@pytest.mark.parametrize("on", ["all", "due"])
def test_the_penalty_joins_the_dense_gradient_in_the_programs_it_names(on):
    bench = make_bench(probe(penalty=penalty, penalty_on=on), optimizer=("sgd", 0.0), rate=1e-3)
    first, _ = bench.step(bench.state, make_batch(0))
    plain = task_grads(bench, bench.state, make_batch(0))
    extra = 7.0 if on == "all" else 0.0
    expected = jax.tree.map(
        lambda w, g: w - 1e-3 * (g + extra * w), bench.state.trainable, masking.apply(bench.masks, plain)
    )
    close(first.trainable, expected, rtol=1e-4, atol=1e-6)
    after, *_ = bench.update(first, make_batch(1))
    dense = jax.tree.map(
        lambda g, w: g + 7 * w, task_grads(bench, first, make_batch(1)), bench.weights(first)
    )
    close(after.method[1]["update"], dense, rtol=1e-3, atol=1e-6)


def test_abs_over_gives_the_mean_and_the_mean_of_absolute_group_gradients():
    bench = make_bench(probe(abs_over=8, penalty=penalty, penalty_on="due"), groups=3)
    first = next(bench.run(1))
    batch = make_batch(1)
    after, *_ = bench.update(first, batch)
    parts = [jax.tree.map(lambda x: x[i : i + 8], batch) for i in (0, 8, 16)]  # noqa: B023
    grads = [task_grads(bench, first, part) for part in parts]
    weights = bench.weights(first)
    mean = jax.tree.map(lambda w, *g: sum(g) / 3 + 7 * w, weights, *grads)
    absolute = jax.tree.map(lambda w, *g: sum(abs(x + 7 * w) for x in g) / 3, weights, *grads)
    close(after.method[1]["update"], mean, rtol=1e-3, atol=1e-6)
    close(after.method[1]["pair"], absolute, rtol=1e-3, atol=1e-6)


def test_every_update_has_a_key_of_its_own():
    bench = make_bench(probe(due=lambda step: True))
    keys = [jax.random.key_data(s.method[1]["key"]).tolist() for s in bench.run(3)]
    assert len({tuple(k) for k in keys}) == 3


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_accumulated_is_the_whole_batch_batchnorm_statistics_included(micro_batches):
    model = make_model("convnet", widths=(4, 6), group_size=6)  # groups fit into micro-batches
    masks = lambda p: start_masks(p, 0.5)  # noqa: E731
    whole = make_bench("ticket", model=model, masks=masks)
    parts = make_bench("ticket", model=model, masks=masks, micro_batches=micro_batches)
    for a, b in zip(whole.run(4), parts.run(4), strict=True):
        close(a.trainable, b.trainable, rtol=2e-4, atol=2e-6)
        close(a.statistics, b.statistics, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_what_is_computed_again_is_what_was_kept_before(micro_batches):
    """With `remat` training is the same, and less waits for the way back."""
    model = make_model("convnet", widths=(4, 6), group_size=6)
    kept, again = (make_bench("ticket", model=model, remat=remat) for remat in (False, True))
    for a, b in zip(kept.run(3), again.run(3), strict=True):
        close(a.trainable, b.trainable, rtol=1e-5, atol=1e-7)
        close(a.statistics, b.statistics, rtol=1e-5, atol=1e-7)
    weights, batch = kept.weights(kept.state), make_batch(0)

    def costs(remat):
        gradients = make_gradients(model, 0.0, remat=remat)
        program = jax.jit(lambda w: gradients(w, kept.state.statistics, batch, micro_batches)[0])
        compiled = program.lower(weights).compile()
        return compiled.cost_analysis()["flops"], compiled.memory_analysis().peak_memory_in_bytes

    (flops, bytes_), (more, fewer) = costs(False), costs(True)
    assert more > 1.05 * flops
    if micro_batches == 1:  # a loop over micro-batches has its own peak elsewhere
        assert fewer < 0.8 * bytes_


def test_parts_with_unequal_numbers_of_valid_examples_still_make_the_batchs_mean():
    batch = make_batch(0) | {"valid": jnp.arange(24) < 10}
    whole, parts = make_bench("ticket"), make_bench("ticket", micro_batches=3)
    a, _ = whole.step(whole.state, batch)
    b, _ = parts.step(parts.state, batch)
    close(a.trainable, b.trainable, rtol=1e-4, atol=1e-7)


def test_pixel_statistics_never_change():
    bench = make_bench("ticket", micro_batches=3)
    pixels = {"m": jnp.full(1, 0.48145467), "s": jnp.full(1, 0.1)}
    start = bench.state.replace(statistics=bench.state.statistics | {"image_stats": pixels})
    *_, state = bench.run(30, start)
    assert jax.tree.map(
        lambda x: x.tobytes(), jax.device_get(state.statistics["image_stats"])
    ) == jax.tree.map(lambda x: x.tobytes(), jax.device_get(pixels))


def test_examples_that_are_not_valid_do_not_count():
    bench = make_bench("ticket")
    batch = make_batch(0)
    half = batch | {"valid": jnp.arange(24) < 12}
    state, metrics = bench.step(bench.state, half)
    alone, _ = bench.step(bench.state, jax.tree.map(lambda x: x[:12], batch))
    assert int(metrics.seen) == 12
    close(state.trainable, alone.trainable, rtol=1e-4, atol=1e-7)


def test_the_first_step_with_a_bad_loss_is_remembered():
    bench = make_bench("ticket")
    broken = bench.state.replace(trainable=jax.tree.map(lambda w: w * jnp.nan, bench.state.trainable))
    state, good = bench.step(bench.state, make_batch())
    _, bad = bench.step(broken.replace(step=state.step), make_batch())
    assert int(good.bad_step) == -1
    assert int(good.merge(bad).merge(bad._replace(bad_step=jnp.int32(9))).bad_step) == 1
    assert int(Metrics.zeros().merge(good).seen) == 24


def test_any_optimizer_of_optax_runs_through_the_step():
    optimizer = optax.chain(optax.scale_by_lion(), optax.scale(-1.0))
    bench = make_bench(make_method("rigl", every=3, stop=12), optimizer=optimizer, rate=1e-3)
    for state in bench.run(8):
        pairs = zip(kernels(bench.masks_of(state)), kernels(state.trainable), strict=True)
        assert not any(np.asarray(weight)[~np.asarray(mask)].any() for mask, weight in pairs)


@pytest.mark.parametrize("slices", [1, 3])
def test_a_mixed_batch_gives_the_gradient_of_its_mixed_targets(slices, key):
    bench = make_bench("ticket")
    batch = mixup(0.4, key, make_batch())
    weights, statistics, smoothing = bench.weights(bench.state), bench.state.statistics, 0.1
    hot = functools.partial(jax.nn.one_hot, num_classes=CLASSES)
    share = batch["share"][:, None]
    targets = share * hot(batch["labels"]) + (1 - share) * hot(batch["partners"])
    targets = (1 - smoothing) * targets + smoothing / CLASSES

    def loss(w):
        logits, _ = network(bench.model, w, statistics, batch["images"], train=True)
        return -(targets * jax.nn.log_softmax(logits)).sum(1).mean()

    gradients = make_gradients(bench.model, smoothing)
    found, _, (total, _, count) = gradients(weights, statistics, batch, slices)
    close(found, jax.grad(loss)(weights), rtol=1e-4, atol=1e-6)
    assert float(total / count) == pytest.approx(float(loss(weights)), rel=1e-5)
