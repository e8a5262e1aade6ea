import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giung2_ext.core import losses, ste


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_sum_against_the_smoothed_target(smoothing):
    logits = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    labels = np.array([0, 4, 2, 2])
    target = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
    logp = logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    expected = -(target * logp).sum(1)
    found = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_scores_get_the_weight_as_gradient_also_where_pruned():
    mask, weight, score = jnp.array([True, False]), jnp.array([2.0, -3.0]), jnp.array([0.5, 0.7])
    value = ste.scores_through(mask, weight, score)
    assert value.tolist() == [2.0, 0.0]
    grad = jax.grad(lambda s: (ste.scores_through(mask, weight, s) * jnp.array([10.0, 100.0])).sum())(score)
    assert grad.tolist() == [20.0, -300.0]


def test_weights_get_the_whole_gradient_and_pruned_values_are_exactly_zero():
    mask, weight = jnp.array([True, False]), jnp.array([0.1, 0.3])
    assert ste.weights_through(mask, weight).tolist() == [weight[0], 0.0]
    grad = jax.grad(lambda w: ste.weights_through(mask, w).sum())(weight)
    assert grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_binary_activation_is_exactly_1_from_0_on_and_minus_1_below(dtype):
    x = jnp.array([-jnp.inf, -7, -1, -0.31, -1e-4, -0.0, 0, 1e-4, 0.7, 1, 60], dtype)
    found = jax.jit(ste.binary)(x)
    assert found.dtype == dtype
    assert found.tolist() == 5 * [-1] + 6 * [1]


def test_the_gradient_of_a_binary_activation_is_that_of_a_clipped_parabola():
    def parabola(x):
        return np.where(np.abs(x) < 1, 2 * x - x * np.abs(x), np.sign(x))

    x = np.array([-4, -1.2, -0.9, -0.3, -0.01, 0, 0.02, 0.5, 0.99, 1.01, 3])
    expected = (parabola(x + 1e-6) - parabola(x - 1e-6)) / 2e-6
    given = jnp.arange(1.0, 1 + len(x))
    found = jax.grad(lambda x: (ste.binary(x) * given).sum())(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected * given, rtol=0, atol=2e-5)
    for edge in (-1.0, 1.0):
        assert jax.grad(ste.binary)(edge) == 0
