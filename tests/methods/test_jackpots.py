import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import kernels, make_bench, start_masks

from giung2_ext.core import masks as masking
from giung2_ext.core import schedules
from giung2_ext.core.errors import Refusal
from giung2_ext.methods import jackpots
from giung2_ext.training.optimizers import make_optimizer

# The swap rule worked by hand (exact fractions, literal loops): scores, mask, rate, new mask.
SWAPS = [
    (".9 .2 .7 .4 .8 .1 .6 .3", "11001100", 1.0, "10101010"),
    (".9 .2 .7 .4 .8 .1 .6 .3", "11001100", 0.51, "10101010"),
    (".9 .2 .7 .4 .8 .1 .6 .3", "11001100", 0.5, "11101000"),
    (".9 .2 .7 .4 .8 .1 .6 .3", "11001100", 0.1, "11101000"),
    (".5 -.3 .1 -.9 .0 .45 -.6 .2", "11010100", 1.0, "10100101"),
    (".5 .5 .5 .2 .9 .1 .5 .3", "11010001", 1.0, "11101000"),  # ties
    (".9 .8 .7 .6 .4 .3 .2 .1", "11110000", 1.0, "11110000"),  # in order already
    (".9 .8 .7 .3 .6 .4 .2 .1", "11110000", 0.1, "11101000"),  # a single pair is swapped
    (".9 .1 .2 .8 .3 .7 .4 .6", "11000000", 1.0, "10010000"),
    (".10 .15 .20 .25 .80 .75 .70 .05", "11110000", 1.0, "00011110"),
    (".10 .15 .20 .25 .80 .75 .70 .05", "11110000", 81 / 256, "01111000"),
]


@pytest.mark.parametrize(("scores", "mask", "rate", "expected"), SWAPS)
def test_the_swap_gives_the_masks_worked_by_hand(scores, mask, rate, expected):
    values = jnp.array([float(s) for s in scores.split()])
    kept = jnp.array([c == "1" for c in mask])
    skipped = jnp.int32(schedules.to_q31(1 - rate))
    new = jackpots.swap(values, kept, skipped)
    assert "".join("1" if k else "0" for k in new) == expected


def literal_swap(scores, mask, share):
    """The published rule by plain sorting, ties to the lowest index: the new mask and the pairs swapped."""
    revive = sorted(np.flatnonzero(~mask), key=lambda i: (-scores[i], i))
    drop = sorted(np.flatnonzero(mask), key=lambda i: (scores[i], i))
    beaten = sum(scores[r] > scores[d] for r, d in zip(revive, drop, strict=False))
    new, count = mask.copy(), math.ceil(beaten * share)
    for r, d in list(zip(revive, drop, strict=False))[:count]:
        new[[r, d]] = True, False
    return new, count


def test_the_swap_is_the_sorted_rule_on_random_cases():
    draw = np.random.default_rng(0)
    swap = jax.jit(jackpots.swap)
    for case in range(200):
        scores = (draw.integers(-6, 7, 12) / 4).astype(np.float32)  # many ties
        mask = draw.permutation(12) < draw.integers(1, 12)
        rate = Fraction([1, 0.5, 0.25][case % 3])
        expected, _ = literal_swap(scores, mask, rate)
        found = swap(scores, mask, jnp.int32(schedules.to_q31(float(1 - rate))))
        assert np.array_equal(found, expected), (scores, mask, rate)


SHARES = {
    "constant": lambda done: Fraction(1, 2),
    "quartic": lambda done: Fraction(1, 2) * (1 - done) ** 4,
    "cosine": lambda done: Fraction((1 + math.cos(math.pi * done)) / 4),
}


@pytest.mark.parametrize("restriction", SHARES)
def test_every_step_of_a_run_swaps_as_many_pairs_as_the_literal_rule(restriction):
    ni = 8
    method = jackpots.build(restriction=restriction, rate=0.5, ni=ni)
    bench = make_bench(method, rate=0.5)
    masks, counts = bench.masks, []
    for step, state in enumerate(bench.run(ni)):
        share = SHARES[restriction](Fraction(step, ni))
        for scores, mask, new in zip(
            *map(kernels, (state.trainable, masks, bench.masks_of(state))), strict=True
        ):
            expected, count = literal_swap(np.asarray(scores).ravel(), np.asarray(mask).ravel(), share)
            assert np.array_equal(np.asarray(new).ravel(), expected)
            counts.append(count)
        masks = bench.masks_of(state)
    assert max(counts) > 5  # there was something to swap


def test_the_restriction_is_that_of_the_fraction_done_and_never_stops_all_swaps():
    done = {0: 1, 1: 81 / 256, 2: 1 / 16, 3: 1 / 256}  # (1 - e/E)^4
    table = jackpots.skipped_fractions("quartic", 1.0, 4)
    assert [round(1 - int(q) / 2**31, 9) for q in table] == [round(v, 9) for v in done.values()]
    last = jackpots.skipped_fractions("quartic", 1.0, 200_000)[-1]  # 1 - 6e-22 is 1 in floats
    scores, mask = jnp.array([0.2, 0.1, 0.9, 0.8]), jnp.array([True, True, False, False])
    assert jackpots.swap(scores, mask, jnp.int32(last)).tolist() == [True, False, True, False]


FIRST = [[0.3, -0.8], [-0.1, 0.6]]
RULES = {  # the 2x2 example worked by hand: mask, gradient of the scores, scores after a step
    "swap": (
        [[1, 0], [0, 1]],
        [[-0.25, -0.5], [-2.0, -0.25]],
        [[0.324997, -0.749992], [0.100001, 0.624994]],
    ),
    "threshold": (
        [[0, 1], [0, 1]],
        [[-0.5, -0.5], [4.0, 0.25]],
        [[0.349997, -0.749992], [-0.499999, 0.574994]],
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_score_gradient_and_one_step_are_those_worked_by_hand(rule):
    weight, scores = {"w": jnp.array([[0.5, -1.0], [2.0, -0.25]])}, {"w": jnp.array(FIRST)}
    mask, expected_grad, expected_scores = (np.array(part) for part in RULES[rule])
    method = jackpots.build(rule)
    chosen = {"w": jnp.int32(2) if rule == "threshold" else jnp.array(mask == 1)}
    state = jackpots.JackpotsState(weight, chosen)
    assert np.array_equal(method.masks(scores, state)["w"], mask == 1)

    def loss(s):
        y = jnp.array([[1.0, 2.0]]) @ method.weights(s, state)["w"]
        return 0.5 * ((y - jnp.array([[1.0, -1.0]])) ** 2).sum()

    grad = jax.grad(loss)(scores)
    np.testing.assert_allclose(grad["w"], expected_grad)
    optimizer = make_optimizer("sgd", 0.9, 1e-4)
    updates, _ = optimizer.update(grad, optimizer.init(scores), scores)
    stepped = scores["w"] + 0.1 * updates["w"]
    np.testing.assert_allclose(stepped, expected_scores, atol=1e-7)
    after = method.masks({"w": stepped}, state)["w"]
    assert np.array_equal(after, mask == 1)  # by hand: neither rule changes it


@pytest.mark.parametrize("rule", RULES)
def test_the_gradient_is_the_slope_of_the_surrogate_by_finite_differences(rule):
    """The surrogate: the weights as they are plus (score now - score then) * W; or of |score|s."""
    draw = np.random.default_rng(3)
    w, s, x, t = (draw.normal(size=shape) for shape in ((6, 5), (6, 5), (4, 6), (4, 5)))
    size = np.abs if rule == "threshold" else np.asarray
    mask = np.zeros(30, bool)
    mask[np.argsort(-size(s).ravel(), kind="stable")[:12]] = True
    mask = mask.reshape(6, 5)

    def surrogate(scores):
        seen = np.where(mask, w, 0) + (size(scores) - size(s)) * w
        return 0.5 * ((np.tanh(x @ seen) - t) ** 2).sum()

    slope, h = np.zeros_like(s), 1e-6
    for i in np.ndindex(*s.shape):
        step = np.zeros_like(s)
        step[i] = h
        slope[i] = (surrogate(s + step) - surrogate(s - step)) / (2 * h)
    method = jackpots.build(rule)
    chosen = {"w": jnp.int32(12) if rule == "threshold" else jnp.array(mask)}
    state = jackpots.JackpotsState({"w": jnp.asarray(w, jnp.float32)}, chosen)

    def loss(scores):
        seen = method.weights(scores, state)["w"]
        return (
            0.5 * ((jnp.tanh(jnp.asarray(x, jnp.float32) @ seen) - jnp.asarray(t, jnp.float32)) ** 2).sum()
        )

    grad = jax.grad(loss)({"w": jnp.asarray(s, jnp.float32)})["w"]
    np.testing.assert_allclose(grad, slope, rtol=1e-4, atol=1e-5)
    assert np.asarray(grad)[~mask].all()  # pruned ones too


def test_each_generation_starts_with_the_gap_of_its_own_unless_another_is_given():
    for options, expected in ((("swap",), 0.01), (("threshold",), 0.05), (("threshold", 0.3), 0.3)):
        scores, _ = jackpots.build(*options).init(None, {"w": jnp.ones(2)}, {"w": jnp.array([True, False])})
        assert np.array_equal(scores["w"], np.float32([1, 1 - expected]))


def test_the_first_generation_ranks_sizes_and_cuts_ties_by_index():
    method = jackpots.build("threshold", gap=0.05)
    scores = {"w": jnp.array([0.5, -0.3, 0.1, -0.9, 0.0, 0.45, -0.6, 0.2]), "b": None}
    state = jackpots.JackpotsState({"w": jnp.ones(8), "b": jnp.ones(1)}, {"w": jnp.int32(4), "b": None})
    assert np.flatnonzero(method.masks(scores, state)["w"]).tolist() == [0, 3, 5, 6]
    tied = {"w": jnp.array([0.1, -0.5, 0.5, 0.5, -0.5, 0.9, 0.5, 0.1]), "b": None}
    assert np.flatnonzero(method.masks(tied, state)["w"]).tolist() == [1, 2, 3, 5]


@pytest.mark.parametrize("ruled", ["swap", "threshold"])
@pytest.mark.parametrize("prunable", ["kernels", "body"])
def test_frozen_weights_are_bit_identical_and_only_scores_train(prunable, ruled):
    bench = make_bench(
        jackpots.build(ruled), rate=0.5, masks=lambda params: start_masks(params, rule=prunable)
    )
    before = jax.device_get(bench.state.method.frozen)
    counts = jax.device_get(masking.counts(bench.masks))
    for state in bench.run(10):
        assert jax.device_get(masking.counts(bench.masks_of(state))) == counts
    after = jax.device_get(state.method.frozen)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), before, after))
    assert len(jax.tree.leaves(state.trainable)) == {"kernels": 3, "body": 2}[prunable]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), bench.state.trainable, state.trainable)
    assert all(jax.tree.leaves(moved))
    assert masking.overlap(bench.masks, bench.masks_of(state)) < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rule="swop"), "did you mean 'swap'"),
        (dict(restriction="quatric"), "did you mean 'quartic'"),
        (dict(gap=-0.1), "needs gap in"),
        (dict(gap=1e-9), "needs gap in"),  # 1 - 1e-9 is 1 in float32
        (dict(rate=0.0), "needs gap in"),
        (dict(restriction="quartic"), "needs ni"),
        (dict(rule="threshold", rate=0.5), "makes none"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(Refusal, match=message):
        jackpots.build(**options)
