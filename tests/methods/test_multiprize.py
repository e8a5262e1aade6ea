import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import (
    kernels,
    make_bench,
    make_method,
    make_model,
    random_variables,
)

from giung2_ext.core import allocate, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.methods import multiprize
from giung2_ext.training.optimizers import make_optimizer

STEPS = 10
RAMP = dict(threshold="global", ramp=0.55, stairs=3, ni=STEPS)  # ends at step 5.5

# Surrogates worked by hand: W, s, x, t, and of each rule dL/dW_eff, dL/ds, s after a step of SGD.
TOY_W, TOY_S = [[0.5, -1.0], [2.0, -0.25]], [[0.3, -0.8], [-0.1, 0.6]]
TOY = [
    (
        False,
        [[0, -1], [0, -0.25]],
        [[-0.5, -0.5], [4, 0.25]],
        [[0.349997, -0.749992], [-0.499999, 0.574994]],
    ),
    (
        True,
        [[0, -0.625], [0, -0.625]],
        [[-0.5, -0.875], [4, 0.4375]],
        [[0.349997, -0.712492], [-0.499999, 0.556244]],
    ),
]

# The gain worked by hand: how many of the six are kept, and what the network sees.
GAIN_W, GAIN_S = [[0.5, -1, 0.25], [-1.5, 0.75, -0.125]], [[0.3, -0.8, 0.1], [-0.5, 0.2, 0.6]]
GAINS = [
    (3, [[0, -0.875, 0], [-0.875, 0, -0.875]]),
    (5, [[0.775, -0.775, 0], [-0.775, 0.775, -0.775]]),
    (1, [[0, -1, 0], [0, 0, 0]]),
    (6, [[0.6875, -0.6875, 0.6875], [-0.6875, 0.6875, -0.6875]]),
    (0, [[0, 0, 0], [0, 0, 0]]),
]


def state_of(weight, kept):
    return multiprize.MultiprizeState({"w": jnp.array(weight)}, {"w": jnp.int32(kept)}, jnp.int32(kept))


def keeping(density):
    """Random masks that keep floor(density * n) of every kernel."""

    def masks(params):
        draw = np.random.default_rng(1)
        rank = lambda m: draw.permutation(m.size).reshape(m.shape)  # noqa: E731
        return trees.map_present(
            lambda m: rank(m) < int(density * m.size), masking.dense(params, "kernels")
        )

    return masks


class Moment(NamedTuple):
    trainable: Any
    method: Any
    masks: Any
    weights: Any

    @property
    def kept(self):
        return [int(mask.sum()) for mask in trees.present(self.masks)]


def moments(bench):
    """What there is before the first step and after every one, on the host."""
    look = jax.jit(lambda t, m: Moment(t, m, bench.method.masks(t, m), bench.method.weights(t, m)))
    states = [bench.state, *bench.run(STEPS)]
    return [jax.device_get(look(state.trainable, state.method)) for state in states]


@pytest.fixture(scope="module")
def by_layer():
    bench = make_bench("multiprize", rate=0.5, masks=keeping(0.1))
    return bench, moments(bench)


@pytest.fixture(scope="module")
def ramped():
    bench = make_bench(make_method("multiprize", **RAMP), rate=0.5, masks=keeping(0.02))
    return bench, moments(bench)


@pytest.mark.parametrize(("binarise", "seen", "gradient", "stepped"), TOY)
def test_the_score_gradient_and_one_step_are_those_worked_by_hand(binarise, seen, gradient, stepped):
    method, state = multiprize.build(binarise), state_of(TOY_W, 2)
    scores = {"w": jnp.array(TOY_S)}

    def loss(s):
        y = jnp.array([[1.0, 2.0]]) @ method.weights(s, state)["w"]
        return 0.5 * ((y - jnp.array([[1.0, -1.0]])) ** 2).sum()

    found, grad = jax.jit(lambda s: (method.weights(s, state), jax.grad(loss)(s)))(scores)
    np.testing.assert_array_equal(found["w"], seen)
    np.testing.assert_allclose(grad["w"], gradient, rtol=1e-6)
    optimizer = make_optimizer("sgd", 0.9, 1e-4)
    updates, _ = jax.jit(lambda g: optimizer.update(g, optimizer.init(scores), scores))(grad)
    np.testing.assert_allclose(scores["w"] + 0.1 * updates["w"], stepped, atol=1e-7)


binarised = jax.jit(multiprize.build().weights)


@pytest.mark.parametrize(("kept", "seen"), GAINS)
def test_the_gain_is_the_mean_size_of_the_kept_weights(kept, seen):
    found = binarised({"w": jnp.array(GAIN_S)}, state_of(GAIN_W, kept))
    np.testing.assert_allclose(found["w"], seen, rtol=1e-6)


def test_a_kept_weight_of_zero_is_seen_as_plus_the_gain():
    found = binarised({"w": jnp.array(GAIN_S)}, state_of([[0.0, -0.0, -6.0], [0, 0, 0]], 6))
    np.testing.assert_array_equal(found["w"], [[1, 1, -1], [1, 1, 1]])


def test_the_signs_of_the_scores_change_nothing_in_the_network():
    flips = [{"w": sign * np.float32(GAIN_S)} for sign in (1, -1)]
    seen = [binarised(scores, state_of(GAIN_W, 3))["w"] for scores in flips]
    np.testing.assert_array_equal(*seen)


def test_with_every_weight_kept_it_is_the_binary_weight_network():
    weight, score = np.random.default_rng(0).normal(size=(2, 2, 3)).astype(np.float32)
    found = binarised({"w": score}, state_of(weight, 6))
    np.testing.assert_allclose(found["w"], np.sign(weight) * abs(weight).mean(), rtol=1e-6)


@pytest.mark.parametrize("binarise", [True, False])
def test_the_gradient_is_the_slope_of_the_network_whose_sizes_of_scores_move_its_weights(binarise):
    draw = np.random.default_rng(0)
    frozen, scores = ({n: draw.normal(size=s) for n, s in (("a", (5, 4)), ("b", (4, 3)))} for _ in range(2))
    x, t = draw.normal(size=(6, 5)), draw.normal(size=(6, 3))

    def loss(w, maximum):
        return ((maximum(x @ w["a"], 0) @ w["b"] - t) ** 2).mean()

    def surrogate(moved):  # the mask and the gain stay those of `scores`
        seen = {}
        for name, w in frozen.items():
            size = abs(scores[name])
            mask = size >= np.sort(size, axis=None)[-6]
            hard = np.sign(w) * abs(w)[mask].mean() if binarise else w
            seen[name] = np.where(mask, hard, 0) + (abs(moved[name]) - size) * w
        return loss(seen, np.maximum)

    method = multiprize.build(binarise)
    state = multiprize.MultiprizeState(
        jax.tree.map(np.float32, frozen), dict.fromkeys("ab", jnp.int32(6)), jnp.int32(12)
    )
    grad = jax.grad(lambda s: loss(method.weights(s, state), jnp.maximum))(
        jax.tree.map(jnp.float32, scores)
    )
    for name in "ab":
        for place in np.ndindex(scores[name].shape):
            step = np.zeros(scores[name].shape)
            step[place] = 1e-5
            ends = [surrogate({**scores, name: scores[name] + sign * step}) for sign in (1, -1)]
            assert float(grad[name][place]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-5)


def test_the_starting_mask_is_met_exactly(key):
    params = {"a": jnp.ones((16, 20)), "b": jnp.ones((3, 3, 5, 20)), "c": jnp.ones(20)}
    every = {"a": np.ones((16, 20), bool), "b": np.ones((3, 3, 5, 20), bool), "c": None}
    few = trees.map_present(lambda m: np.arange(m.size).reshape(m.shape) == 7, every)
    most = trees.map_present(np.logical_not, few)
    none = trees.map_present(np.zeros_like, every)
    method = multiprize.build()
    start = jax.jit(lambda masks: method.init(key, params, masks))
    found = jax.jit(method.masks)
    for masks in (every, most, few, none):
        scores, state = start(masks)
        assert jax.tree.all(jax.tree.map(np.array_equal, found(scores, state), masks))
        assert all((leaf != 0).all() for leaf in jax.tree.leaves(scores))


def test_rounding_never_puts_a_pruned_score_among_the_kept():
    extremes = jnp.array([2**-24, 3 * 2**-24, 0.5, 1 - 3 * 2**-24, 1 - 2**-24])
    found = jax.jit(jax.vmap(multiprize.ranked, (None, 0, 0)), static_argnums=())
    kept = np.array([[True] * k + [False] * (2000 - k) for k in (1, 2, 3, 7, 777, 1000, 1998, 1999)])
    for bound in 1 / np.sqrt([1, 3, 9, 27, 576, 4608, 25088]).astype(np.float32):
        size = found(jnp.tile(extremes, 400), kept, jnp.full(len(kept), bound))
        low = jnp.min(jnp.where(kept, size, jnp.inf), axis=1)
        high = jnp.max(jnp.where(kept, 0, size), axis=1)
        assert (low > high).all()
        assert (size > 0).all()


def test_scores_start_as_free_draws_that_happen_to_rank_as_the_mask_does(key):
    mask = jax.random.bernoulli(jax.random.key(5), 0.3, (3, 3, 7, 800))  # fan in 63
    scores = np.asarray(multiprize.start_scores(key, mask)).ravel() * math.sqrt(63)
    spread = np.sort(scores) / 2 + 0.5  # uniform in (-1, 1): its order statistics are a straight line
    assert abs(spread - np.linspace(0, 1, spread.size)).max() < 0.01
    assert abs(np.corrcoef(scores > 0, np.asarray(mask).ravel())[0, 1]) < 0.02
    assert abs(scores[np.asarray(mask).ravel()]).min() > abs(scores[~np.asarray(mask).ravel()]).max()


def test_counts_are_those_of_the_typed_decimal():
    masks = {n: np.ones(s, bool) for n, s in (("a", (784, 300)), ("b", (300, 100)), ("c", (100, 10)))}
    for density, counts in (
        (0.1, (23520, 3000, 100)),
        (0.3, (70560, 9000, 300)),
        (0.7, (164640, 21000, 700)),
    ):
        assert tuple(allocate.layer_counts(masks, density, "uniform").values()) == counts
    for density, size, kept in ((0.9, 10, 9), (0.9, 1000, 900), (0.5, 7, 3), (0.3, 802816, 240844)):
        ones = {"w": np.ones((size, 1), bool)}
        assert allocate.layer_counts(ones, density, "uniform")["w"] == kept


def test_frozen_weights_are_bit_identical_and_only_scores_train(by_layer):
    _, (first, *_, last) = by_layer
    assert jax.tree.all(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), first.method, last.method))
    assert len(jax.tree.leaves(last.trainable)) == len(kernels(last.trainable)) == 3


def test_scores_move_at_pruned_places_too(by_layer):
    _, (first, *_, last) = by_layer
    for mask, before, after in zip(
        *map(kernels, (first.masks, first.trainable, last.trainable)), strict=True
    ):
        assert (before != after)[~mask].mean() > 0.5


def test_every_layer_keeps_its_count_at_every_step_while_its_mask_moves(by_layer):
    bench, seen = by_layer
    counts = [int(mask.sum()) for mask in trees.present(bench.masks)]
    assert all(moment.kept == counts for moment in seen)
    assert masking.overlap(seen[0].masks, seen[-1].masks) < 1


def test_a_binarised_layer_is_seen_in_one_size_the_mean_of_its_kept_weights(by_layer):
    for moment in by_layer[1]:
        frozen, weights = moment.method.frozen, trees.named_leaves(moment.weights)
        for mask, kernel, leaf in zip(*map(kernels, (moment.masks, frozen, weights)), strict=True):
            alpha = abs(kernel[mask]).mean(dtype=np.float64)
            values = np.unique(leaf)
            assert len(values) == 3
            np.testing.assert_allclose(values, [-alpha, 0, alpha], rtol=1e-5)
            assert np.array_equal(np.sign(leaf), np.sign(kernel) * mask)
        assert all(
            np.array_equal(weights[name], leaf)
            for name, leaf in trees.named_leaves(frozen).items()
            if not name.endswith("kernel")
        )


def literal_global(sizes, total):
    """Largest first, ties by flat index, after the first of the largest of every leaf."""
    order = {(leaf, i): (-s, leaf, i) for leaf, size in enumerate(sizes) for i, s in enumerate(size)}
    for leaf, size in enumerate(sizes):
        best = int(np.argmax(size))
        order[leaf, best] = (-np.inf, leaf, best)
    chosen = set(sorted(order, key=order.get)[:total])
    return [np.array([(leaf, i) in chosen for i in range(len(size))]) for leaf, size in enumerate(sizes)]


def test_the_global_mask_is_the_sorted_one_with_tied_scores_too():
    draw = np.random.default_rng(0)
    masks = jax.jit(multiprize.build(threshold="global").masks)
    counts = [jnp.int32(0)] * 3
    for _ in range(60):
        scores = [draw.integers(-4 // d, 4 // d + 1, 8).astype(np.float32) for d in (1, 2, 4)]
        total = int(draw.integers(1, 25))
        found = masks(scores, multiprize.MultiprizeState(counts, counts, jnp.int32(total)))
        expected = literal_global([abs(s) for s in scores], total)
        assert all(np.array_equal(f, e) for f, e in zip(found, expected, strict=True)), (scores, total)


def test_the_global_threshold_keeps_the_total_and_empties_no_layer(ramped):
    bench, seen = ramped
    target = int(masking.kept(bench.masks))
    for moment in seen[6:]:
        assert sum(moment.kept) == target
        assert min(moment.kept) >= 1
    # the draws of the second and third layer leave nothing to the first
    sizes = [abs(leaf).ravel() for leaf in jax.tree.leaves(seen[-1].trainable)]
    cut = np.sort(np.concatenate(sizes))[-target]
    assert min((size >= cut).sum() for size in sizes) == 0


def test_the_ramp_falls_from_half_of_all_to_the_target_by_cubic_stairs(ramped):
    bench, seen = ramped
    target, size = int(masking.kept(bench.masks)), masking.size(bench.masks)
    for step, moment in enumerate(seen):
        stair = min(Fraction(step * 3) // Fraction("5.5"), 3)
        expected = math.floor(target + (size // 2 - target) * (1 - Fraction(stair, 3)) ** 3)
        assert int(moment.method.total) == sum(moment.kept) == expected
        assert (step >= 5.5) == (expected == target)
        assert bench.method.settled(step) == (step > 6)


def test_the_ramp_counts_exactly_beyond_float32_and_leaves_a_dense_target_alone():
    total, end = multiprize.make_ramp(0.1, 10, 4700)
    assert end == 470
    size, target = 2**31 - 1, 50_000_003
    for stair in range(11):
        exact = target + (size // 2 - target) * Fraction(10 - stair, 10) ** 3
        for step in (47 * stair, 47 * stair + 46):  # the q31 of a fraction is rounded up: one at the most
            assert 0 <= int(total(jnp.int32(step), jnp.int32(target), size)) - math.floor(exact) <= 1
    for step in (0, 100, 470):
        assert int(total(jnp.int32(step), jnp.int32(61), 120)) == 61


def test_members_of_a_population_may_keep_different_counts(key):
    method, layer = multiprize.build(**RAMP), multiprize.build()
    keys = jax.random.split(key, 3)
    masks = {"w": jnp.arange(120).reshape(1, 10, 12) < jnp.array([12, 40, 90]).reshape(3, 1, 1)}
    params = {"w": jnp.ones((3, 10, 12))}

    @jax.jit
    @jax.vmap
    def members(key, params, masks):
        scores, state = method.init(key, params, masks)
        _, later = method.follow(scores, state, None, jnp.int32(8))
        return state.total, later.total, method.masks(scores, later), layer.masks(scores, state)

    total, later, *found = members(keys, params, masks)
    assert total.tolist() == [60, 60, 90]
    assert later.tolist() == [12, 40, 90]
    assert all(mask["w"].sum((1, 2)).tolist() == [12, 40, 90] for mask in found)


@pytest.mark.parametrize("binarise", [True, False])
def test_leaves_without_a_mask_get_the_dense_gradient_if_asked_and_every_score_its_own(binarise, key):
    params = random_variables(make_model("convnet"))["params"]
    dense = random_variables(make_model("convnet"), seed=1)["params"]
    masks = keeping(0.3)(params)
    for others in (True, False):
        method = multiprize.build(binarise, others=others)
        trainable, state = jax.jit(method.init)(key, params, masks)
        pulled = jax.jit(lambda t, s, m=method: jax.vjp(lambda t: m.weights(t, s), t)[1](dense)[0])
        found, started = (trees.named_leaves(tree) for tree in (pulled(trainable, state), trainable))
        assert sum("BatchNorm" in name for name, leaf in found.items() if leaf is not None) == 4 * others
        for name, g in trees.named_leaves(dense).items():
            w = trees.named_leaves(params)[name]
            if name.endswith("kernel"):
                np.testing.assert_array_equal(found[name], g * w * jnp.sign(started[name]))
            elif others:
                np.testing.assert_array_equal(found[name], g)
                np.testing.assert_array_equal(started[name], w)
                assert trees.named_leaves(state.frozen)[name] is None
            else:
                assert found[name] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(threshold="leaf"), "known: global, layer"),
        (dict(ramp=1.0, threshold="global", ni=9), r"ramp in \[0, 1\)"),
        (dict(ramp=0.1, threshold="global", ni=9, stairs=0), "stairs >= 1"),
        (dict(ramp=0.1, ni=9), "a global threshold only"),
        (dict(ramp=0.1, threshold="global"), "needs the number of steps"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(Refusal, match=message):
        make_method("multiprize", **options)
