import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import make_bench

from giung2_ext.core import masks as masking
from giung2_ext.core import schedules
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


def test_the_swap_is_the_sorted_rule_on_random_cases():
    draw = np.random.default_rng(0)
    swap = jax.jit(jackpots.swap)
    for case in range(200):
        scores = (draw.integers(-6, 7, 12) / 4).astype(np.float32)  # many ties
        mask = draw.permutation(12) < draw.integers(1, 12)
        rate = [1.0, 0.5, 0.25][case % 3]
        revive = sorted(np.flatnonzero(~mask), key=lambda i: (-scores[i], i))
        drop = sorted(np.flatnonzero(mask), key=lambda i: (scores[i], i))
        beaten = sum(scores[r] > scores[d] for r, d in zip(revive, drop, strict=False))
        expected = mask.copy()
        for r, d in list(zip(revive, drop, strict=False))[: int(np.ceil(beaten * rate))]:
            expected[[r, d]] = True, False
        found = swap(scores, mask, jnp.int32(schedules.to_q31(1 - rate)))
        assert np.array_equal(found, expected), (scores, mask, rate)


def test_the_score_gradient_and_one_step_are_those_worked_by_hand():
    weight = {"w": jnp.array([[0.5, -1.0], [2.0, -0.25]])}
    scores = {"w": jnp.array([[0.3, -0.8], [-0.1, 0.6]])}
    mask = {"w": jnp.array([[True, False], [False, True]])}
    method = jackpots.build()
    state = jackpots.JackpotsState(weight, mask)

    def loss(s):
        y = jnp.array([[1.0, 2.0]]) @ method.weights(s, state)["w"]
        return 0.5 * ((y - jnp.array([[1.0, -1.0]])) ** 2).sum()

    grad = jax.grad(loss)(scores)
    np.testing.assert_allclose(grad["w"], [[-0.25, -0.5], [-2.0, -0.25]])
    optimizer = make_optimizer("sgd", 0.9, 1e-4)
    updates, _ = optimizer.update(grad, optimizer.init(scores), scores)
    stepped = scores["w"] + 0.1 * updates["w"]
    np.testing.assert_allclose(stepped, [[0.324997, -0.749992], [0.100001, 0.624994]], atol=1e-7)


@pytest.mark.parametrize("rule", ["kernels", "body"])
def test_frozen_weights_are_bit_identical_and_only_scores_train(rule):
    def masks(params):
        return jax.tree.map(lambda m: m, masking.dense(params, rule))

    bench = make_bench("jackpots", rate=0.5, masks=masks)
    before = jax.device_get(bench.state.method.frozen)
    *_, state = bench.run(10)
    after = jax.device_get(state.method.frozen)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), before, after))
    assert len(jax.tree.leaves(state.trainable)) == {"kernels": 3, "body": 2}[rule]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), bench.state.trainable, state.trainable)
    assert all(jax.tree.leaves(moved))


def test_the_mask_moves_but_never_its_counts():
    bench = make_bench("jackpots", rate=0.5)
    *_, state = bench.run(10)
    old, new = bench.masks, bench.masks_of(state)
    assert jax.device_get(masking.counts(old)) == jax.device_get(masking.counts(new))
    assert masking.overlap(old, new) < 1
