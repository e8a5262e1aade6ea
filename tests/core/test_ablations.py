import jax
import jax.numpy as jnp
import numpy as np

from giung2_ext.core import ablations
from giung2_ext.core import masks as masking


def tree(seed=0):
    draw = np.random.default_rng(seed)
    params = {
        "a": {"kernel": jnp.float32(draw.normal(0, 2, (20, 30))), "bias": jnp.arange(30.0)},
        "b": {"kernel": jnp.float32(draw.normal(0, 0.1, (30, 5)))},
    }
    kept = {"a": {"kernel": jnp.bool(draw.random((20, 30)) < 0.2), "bias": None}}
    kept["b"] = {"kernel": jnp.bool(draw.random((30, 5)) < 0.6)}
    return params, kept


def test_of_weights_signs_alone_are_left_and_the_layers_deviation():
    params, masks = tree()
    params["a"]["kernel"] = params["a"]["kernel"].at[3, 4].set(0)
    flat = ablations.signs(params, masks)
    for layer in ("a", "b"):
        weights = np.asarray(params[layer]["kernel"], np.float64)
        expected = np.sign(weights) * np.sqrt(np.mean((weights - weights.mean()) ** 2))
        np.testing.assert_allclose(flat[layer]["kernel"], expected, rtol=1e-5)
    assert flat["a"]["bias"] is params["a"]["bias"]


def test_shuffled_masks_keep_every_layers_count_at_other_places():
    _, masks = tree()
    shuffled = ablations.shuffle(jax.random.key(1), masks)
    assert jax.tree.map(int, masking.counts(shuffled)) == jax.tree.map(int, masking.counts(masks))
    assert shuffled["a"]["bias"] is None
    assert 0.05 < masking.overlap(shuffled, masks) < 0.5
    other = ablations.shuffle(jax.random.key(2), masks)
    assert masking.overlap(shuffled, other) < 0.5


def test_shuffled_places_are_uniform():
    _, masks = tree()
    keys = jax.random.split(jax.random.key(0), 500)
    drawn = jax.vmap(lambda key: ablations.shuffle(key, masks)["a"]["kernel"])(keys)
    share = np.asarray(drawn).mean(0)
    expected = float(masks["a"]["kernel"].mean())
    assert abs(share - expected).max() < 5 * np.sqrt(expected * (1 - expected) / 500)


def test_masks_shuffled_by_one_key_are_nested_as_their_counts_shrink():
    _, masks = tree()
    fewer = jax.tree.map(lambda m: m & (jnp.cumsum(m).reshape(m.shape) <= m.sum() // 2), masks)
    key = jax.random.key(3)
    assert bool(masking.nested(ablations.shuffle(key, fewer), ablations.shuffle(key, masks)))
