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
