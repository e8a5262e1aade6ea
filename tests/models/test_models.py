import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import giung2_ext.models
from giung2_ext.core import discovery
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.models._layers import BatchNorm
from giung2_ext.training import state as states


def build(name, classes=10, **options):
    return discovery.build(giung2_ext.models, "model", name, num_classes=classes, **options)


def test_lenet_on_mnist_has_the_published_266200_weights(key):
    params, _ = states.init_variables(build("lenet"), key, (28, 28, 1))
    assert masking.size(masking.dense(params, "kernels")) == 266200
    assert sorted(params) == ["Dense_0", "Dense_1", "cls"]


def test_lenet_kernels_are_glorot_normal_and_biases_zero(key):
    params, _ = states.init_variables(build("lenet"), key, (28, 28, 1))
    kernel = params["Dense_0"]["kernel"]
    assert float(kernel.std()) == pytest.approx((2 / (784 + 300)) ** 0.5, rel=0.01)
    assert not params["Dense_0"]["bias"].any()


def test_an_unknown_model_is_refused_with_what_is_known():
    known = discovery.names(giung2_ext.models)
    assert {"convnet", "lenet"} <= set(known)
    listed = re.escape(", ".join(known))
    with pytest.raises(
        Refusal, match=rf"^unknown model 'lenett'; known: {listed}; did you mean 'lenet'\?$"
    ):
        build("lenett")


def apply_norm(layer, x, train=True):
    variables = layer.init(jax.random.key(0), x, False)
    return layer.apply(variables, x, train, mutable=["batch_stats"])


def test_grouped_batchnorm_is_batchnorm_of_each_group():
    x = jax.random.normal(jax.random.key(1), (12, 3, 3, 5)) * 3 + 1
    y, updated = apply_norm(BatchNorm(group_size=4), x)
    parts = [apply_norm(BatchNorm(), x[i : i + 4]) for i in (0, 4, 8)]
    np.testing.assert_allclose(y, jnp.concatenate([p[0] for p in parts]), atol=1e-5)
    for stat in ("mean", "var"):
        mean = np.mean([p[1]["batch_stats"][stat] for p in parts], axis=0)
        np.testing.assert_allclose(updated["batch_stats"][stat], mean, rtol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_one_group_is_linens_batchnorm(train):
    x = jax.random.normal(jax.random.key(2), (8, 4, 4, 3)) * 2 - 1
    linen = nn.BatchNorm(momentum=0.9, epsilon=1e-5)
    variables = linen.init(jax.random.key(0), x, use_running_average=True)
    theirs, their_stats = linen.apply(variables, x, use_running_average=not train, mutable=["batch_stats"])
    ours, our_stats = apply_norm(BatchNorm(), x, train)
    assert jax.tree.structure(our_stats) == jax.tree.structure(their_stats)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), our_stats, their_stats)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_batchnorm_computes_and_keeps_float32_and_returns_its_inputs_type(dtype, train):
    x = (jax.random.normal(jax.random.key(3), (64, 8, 8, 2)) * 3 + 40).astype(dtype)
    y, updated = apply_norm(BatchNorm(), x, train)
    exact, expected = apply_norm(BatchNorm(), x.astype(jnp.float32), train)
    assert y.dtype == dtype
    assert jnp.array_equal(y, exact.astype(dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype(jnp.float32)}
    assert jax.tree.all(jax.tree.map(jnp.array_equal, updated, expected))


def test_a_batch_that_does_not_divide_into_groups_is_an_error():
    with pytest.raises(ValueError, match="does not divide"):
        apply_norm(BatchNorm(group_size=5), jnp.ones((12, 2)))
