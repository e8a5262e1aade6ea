import jax.numpy as jnp
import numpy as np
import pytest

from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal

PARAMS = {
    "Conv_0": {"kernel": jnp.ones((3, 3, 2, 4))},
    "Dense_0": {"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5)},
    "cls": {"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3)},
}


@pytest.mark.parametrize(("rule", "size"), [("conv", 72), ("kernels", 72 + 20 + 15), ("body", 72 + 20)])
def test_a_rule_names_the_prunable_leaves(rule, size):
    masks = masking.dense(PARAMS, rule)
    assert masking.size(masks) == size
    assert masks["Dense_0"]["bias"] is None


def test_an_unknown_rule_is_refused_with_the_nearest():
    with pytest.raises(Refusal, match="did you mean 'kernels'"):
        masking.dense(PARAMS, "kernel")


def test_masking_hides_even_infinities_and_leaves_the_rest_alone():
    weight = jnp.array([jnp.inf, jnp.nan, 2.0, -3.0])
    masked = masking.apply(
        {"w": jnp.array([False, False, True, False]), "b": None}, {"w": weight, "b": weight}
    )
    assert masked["w"].tolist() == [0.0, 0.0, 2.0, 0.0]
    assert np.array_equal(masked["b"], weight, equal_nan=True)


@pytest.mark.parametrize("shape", [(1,), (8,), (3, 3, 5), (2, 17)])
def test_packing_is_one_bit_a_weight_and_loses_nothing(shape):
    mask = np.random.default_rng(0).random(shape) < 0.4
    packed = masking.pack(mask)
    assert packed.nbytes == -(-mask.size // 8)
    assert np.array_equal(masking.unpack(packed, shape), mask)


def test_unpacking_into_another_shape_is_an_error():
    with pytest.raises(ValueError, match="does not fit"):
        masking.unpack(masking.pack(np.ones(20, bool)), (30,))


def test_density_overlap_and_nesting_are_what_sets_say():
    a = {"w": np.array([True, True, False, False]), "b": None}
    b = {"w": np.array([True, False, False, True]), "b": None}
    inner = {"w": np.array([False, True, False, False]), "b": None}
    assert int(masking.kept(a)) == 2
    assert float(masking.density(a)) == 0.5
    assert masking.overlap(a, b) == pytest.approx(1 / 3)
    assert bool(masking.nested(inner, a))
    assert not bool(masking.nested(b, a))
