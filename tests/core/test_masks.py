import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import make_model, shapes_of

import giung2_ext.models
from giung2_ext.core import discovery, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal

RULES = sorted(masking.PRUNABLE)
PARAMS = {
    "Conv_0": {"kernel": jnp.ones((3, 3, 2, 4))},
    "Dense_0": {"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5)},
    "cls": {"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3)},
}


EVERYTHING = {  # every kind of leaf that a network here has, at every depth
    "token": jnp.ones((1, 1, 6)),
    "position": jnp.ones((1, 2, 3, 6)),
    "patches": {"kernel": jnp.ones((2, 2, 3, 6)), "bias": jnp.ones(6)},
    "Conv_0": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
    "BatchNorm_0": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
    "Block_0": {
        "LayerNorm_0": {"scale": jnp.ones(6), "bias": jnp.ones(6)},
        "qkv": {"kernel": jnp.ones((6, 18)), "bias": jnp.ones(18)},
        "kernel": {"table": jnp.ones((6, 6))},
    },
    "Block_10": {"fc1": {"kernel": jnp.ones((6, 5)), "bias": jnp.ones(5)}},
    "cls": {"kernel": jnp.ones((6, 3)), "bias": jnp.ones(3)},
}


def prunable(rule, params=EVERYTHING):
    masks = masking.dense(params, rule)
    return {name for name, mask in trees.named_leaves(masks).items() if mask is not None}


@pytest.mark.parametrize("rule", RULES)
def test_only_leaves_called_kernel_are_prunable(rule):
    assert prunable(rule)
    assert {name.split("/")[-1] for name in prunable(rule)} == {"kernel"}
    for name in ("scale", "bias", "embedding", "kernels", "weight"):  # whatever the shape
        layer = {name: jnp.ones((3, 3, 2, 4))}
        assert not prunable(rule, {"Block_0": layer, "cls": layer}), name


@pytest.mark.parametrize("rule", RULES)
def test_a_dense_mask_is_true_everywhere_and_has_its_leafs_shape(rule):
    masks, params = (trees.named_leaves(tree) for tree in (masking.dense(EVERYTHING, rule), EVERYTHING))
    assert set(masks) == set(params)
    for name in prunable(rule):
        assert masks[name].shape == params[name].shape
        assert masks[name].dtype == bool
        assert masks[name].all()


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_reads_names_and_shapes_alone(rule):
    shapes = jax.eval_shape(lambda: EVERYTHING)
    assert prunable(rule, shapes) == prunable(rule)


def test_every_rule_is_a_part_of_kernels():
    every = {name for name in trees.named_leaves(EVERYTHING) if name.split("/")[-1] == "kernel"}
    assert prunable("kernels") == every
    assert all(prunable(rule) <= every for rule in RULES)


def test_body_is_every_kernel_but_the_classifiers():
    assert prunable("body") | {"cls/kernel"} == prunable("kernels")
    assert "cls/kernel" not in prunable("body")


@pytest.mark.parametrize("name", discovery.names(giung2_ext.models))
def test_inner_leaves_out_the_one_kernel_that_the_image_meets(name):
    params, _ = shapes_of(make_model(name), (8, 12, 3))
    kernels = {k: leaf for k, leaf in trees.named_leaves(params).items() if k.endswith("kernel")}
    meets = [k for k, leaf in kernels.items() if leaf.shape[-2] in (3, 8 * 12 * 3)]  # channels, or pixels
    assert len(meets) == 1
    assert prunable("inner", params) == set(kernels) - set(meets)
    assert "cls/kernel" in prunable("inner", params)


def test_inner_of_a_network_of_one_layer_is_nothing():
    assert prunable("inner", {"cls": {"kernel": jnp.ones((6, 3)), "bias": jnp.ones(3)}}) == set()
    nested = {
        "Block_0": {"Conv_0": {"kernel": jnp.ones((1, 1, 4, 4))}},
        "Dense_0": {"kernel": jnp.ones((2, 2))},
    }
    assert prunable("inner", nested) == {"Block_0/Conv_0/kernel"}
    with pytest.raises(
        Refusal, match="inner knows the first layer as patches, Conv_0, Dense_0, cls; none is"
    ):
        prunable("inner", {"stem": {"kernel": jnp.ones((3, 3, 3, 4))}})


def test_conv_is_every_kernel_of_four_axes():
    assert prunable("conv") == {"Conv_0/kernel", "patches/kernel"}


def test_blocks_is_every_kernel_inside_a_block_at_any_depth():
    assert prunable("blocks") == {"Block_0/qkv/kernel", "Block_10/fc1/kernel"}
    layer = {"kernel": jnp.ones((2, 2))}
    nested = {"encoder": {"Block_3": {"mlp": {"fc2": layer}}}, "Blocked": layer, "MyBlock_0": layer}
    assert prunable("blocks", nested) == {"encoder/Block_3/mlp/fc2/kernel"}


@pytest.mark.parametrize(
    ("rule", "size"), [("conv", 72), ("kernels", 72 + 20 + 15), ("body", 72 + 20), ("inner", 20 + 15)]
)
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


def test_chance_overlap_is_what_independent_masks_have_on_average():
    draw = np.random.default_rng(0)
    densities = [(0.1, 0.3, (40, 50)), (0.8, 0.6, (30, 10)), (0.05, 0.02, (25,))]

    def exact(density, shape):  # a mask with exactly this density
        kept = np.arange(np.prod(shape)) < density * np.prod(shape)
        return draw.permutation(kept).reshape(shape)

    pairs = [
        ([exact(a, shape) for a, _, shape in densities], [exact(b, shape) for _, b, shape in densities])
        for _ in range(400)
    ]
    measured = np.array([masking.overlap(a, b) for a, b in pairs])
    expected = masking.chance_overlap(*pairs[0])
    assert abs(measured.mean() - expected) < 4 * measured.std() / np.sqrt(len(measured)) + 1e-4
    assert measured.std() < 0.1 * expected  # so the tolerance is a real one


def test_chance_overlap_is_exact_where_chance_has_no_say():
    ones, zeros = np.ones((4, 5), bool), np.zeros((4, 5), bool)
    half = np.arange(20).reshape(4, 5) < 10
    assert masking.chance_overlap({"a": ones, "b": None}, {"a": ones, "b": None}) == 1
    assert masking.chance_overlap([ones, zeros], [zeros, ones]) == 0
    assert masking.chance_overlap([ones, ones], [half, zeros]) == 10 / 40
    assert masking.chance_overlap([half], [half]) == pytest.approx(5 / 15)
