import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giung2_ext.core import initial
from giung2_ext.core.errors import Refusal

SHAPE = (5, 5, 8, 100)  # fan in 200
PARAMS = {
    "conv": jnp.full(SHAPE, 7.0),
    "dense": {"kernel": jnp.full((50, 400), 7.0), "bias": jnp.full(3, 7.0)},
    "cls": jnp.full((2, 2), 7.0),
}


def quarter(shape):
    return jnp.arange(np.prod(shape)).reshape(shape) % 4 == 0


MASKS = {
    "conv": quarter(SHAPE),
    "dense": {"kernel": jnp.ones((50, 400), bool), "bias": None},
    "cls": None,
}


@pytest.mark.parametrize("how", initial.INITIALS)
def test_prunable_leaves_are_drawn_with_kaimings_size_and_no_other_leaf_changes(how, key):
    drawn = jax.jit(initial.redraw, static_argnums=3)(key, PARAMS, MASKS, how)
    for leaf, fan in ((drawn["conv"], 200), (drawn["dense"]["kernel"], 50)):
        values = np.asarray(leaf, np.float64) / (2 / fan) ** 0.5
        assert leaf.dtype == jnp.float32
        assert abs((values > 0).mean() - 0.5) < 0.02
        if how == "signed_constant":
            np.testing.assert_allclose(abs(values), 1, rtol=1e-6)
        else:
            assert abs(values.std() - 1) < 0.03
            assert abs((abs(values) < 0.6745).mean() - 0.5) < 0.02  # half of a normal's draws
    assert (drawn["dense"]["bias"] == 7).all()
    assert (drawn["cls"] == 7).all()


def test_every_leaf_has_draws_of_its_own_and_one_key_gives_them_again(key):
    params, masks = (
        {"a": jnp.ones((9, 9)), "b": jnp.ones((9, 9))},
        dict.fromkeys("ab", jnp.ones((9, 9), bool)),
    )
    once, again = (initial.redraw(key, params, masks, "kaiming_normal") for _ in range(2))
    assert (once["a"] != once["b"]).all()
    assert jax.tree.all(jax.tree.map(np.array_equal, once, again))


@pytest.mark.parametrize(("by", "factor"), [("kept", 2.0), ("removed", 1 / 0.75**0.5)])
def test_weights_are_divided_by_the_root_of_the_kept_or_of_the_removed_fraction(by, factor):
    scaled = jax.jit(initial.scale_fan, static_argnums=2)(PARAMS, MASKS, by)
    np.testing.assert_allclose(scaled["conv"], jnp.full(SHAPE, 7.0 * factor), rtol=1e-6)
    assert (scaled["dense"]["kernel"] == 7).all()  # all kept, none removed: not scaled
    assert (scaled["dense"]["bias"] == 7).all()
    assert (scaled["cls"] == 7).all()


def test_a_leaf_of_which_nothing_is_kept_stays_finite():
    params, masks = {"w": jnp.full((2, 2), 7.0)}, {"w": jnp.zeros((2, 2), bool)}
    assert (initial.scale_fan(params, masks, "kept")["w"] == 7).all()


def test_a_drawing_or_scaling_that_is_not_known_is_refused(key):
    with pytest.raises(Refusal, match="did you mean 'kaiming_normal'"):
        initial.redraw(key, PARAMS, MASKS, "kaiming_norm")
    with pytest.raises(Refusal, match="known: kept, removed"):
        initial.scale_fan(PARAMS, MASKS, "none")
