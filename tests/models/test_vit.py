"""Vision transformers against DeiT's counts and a forward pass written in plain NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import fresh_variables, random_variables, shapes_of

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.models import vit

LARGE = (224, 224, 3)
WIDTHS = {"Ti": 192, "S": 384, "B": 768}


@pytest.mark.parametrize(("size", "count"), [("Ti", 5_717_416), ("S", 22_050_664), ("B", 86_567_656)])
def test_a_vit_has_deits_parameters(size, count):
    params, rest = shapes_of(vit.build(1000, size=size), LARGE)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert not rest


@pytest.mark.parametrize(("size", "width"), WIDTHS.items())
def test_the_rule_blocks_prunes_attention_and_mlp_kernels_and_nothing_else(size, width):
    params, _ = shapes_of(vit.build(1000, size=size), LARGE)
    masks = masking.dense(params, "blocks")
    named = {name for name, mask in trees.named_leaves(masks).items() if mask is not None}
    assert len(named) == 48
    assert named == {
        f"Block_{i}/{layer}/kernel" for i in range(12) for layer in ("qkv", "proj", "fc1", "fc2")
    }
    assert masking.size(masks) == 12 * 12 * width**2


@pytest.mark.parametrize("rule", ["kernels", "body", "blocks", "conv"])
def test_no_rule_prunes_the_token_positions_or_normalisation(rule):
    params, _ = shapes_of(vit.build(10, size="Ti", depth=1), LARGE)
    masks = masking.dense(params, rule)
    assert masks["token"] is masks["position"] is None
    dense = {name for name, mask in trees.named_leaves(masks).items() if mask is None}
    others = {"token", "position"} | {
        name for name in trees.named_leaves(params) if name.endswith(("/bias", "/scale"))
    }
    assert others <= dense
    assert len(others) == 2 + 3 * 2 + 6  # three normalisations; a bias in each of six layers


def test_a_fresh_vit_is_normal_of_002_with_zero_biases_and_uniform_patches(key):
    params, _ = fresh_variables(vit.build(10, size="Ti", depth=1, patch=8), key, (32, 32, 3))
    for name, leaf in jax.device_get(trees.named_leaves(params)).items():
        if name.startswith("patches/"):  # within 1 / sqrt(fan in) of 8 * 8 * 3
            bound = 192**-0.5
            assert 0.95 * bound < np.abs(leaf).max() <= bound, name
            assert leaf.std() == pytest.approx(bound / 3**0.5, rel=3 / leaf.size**0.5), name
        elif name.endswith("/bias"):
            assert not leaf.any(), name
        elif name.endswith("/scale"):
            assert (leaf == 1).all(), name
        else:
            assert np.abs(leaf).max() > 0.045 or leaf.size < 1000, name  # not cut at two deviations
            assert leaf.std() == pytest.approx(0.02, rel=3 / leaf.size**0.5), name


def layer_norm(x, params):
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return centred / deviation * params["scale"] + params["bias"]


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def attention(x_TxD, params, heads):
    """One head of one image at a time: query, key and value are thirds of qkv, a head a slice of each."""
    width = x_TxD.shape[1]
    size = width // heads
    qkv = dense(x_TxD, params["qkv"])
    mixed = []
    for head in range(heads):
        at = head * size
        query, key, value = (qkv[:, third * width + at : third * width + at + size] for third in range(3))
        scores = np.exp(query @ key.T / math.sqrt(size))
        mixed.append(scores / scores.sum(1, keepdims=True) @ value)
    return dense(np.concatenate(mixed, axis=1), params["proj"])


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def forward(params, image, patch, heads):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    rows, columns = image.shape[0] // patch, image.shape[1] // patch
    tokens = [params["token"][0, 0]]
    for row in range(rows):
        for column in range(columns):
            tile = image[row * patch :, column * patch :][:patch, :patch]
            projected = np.tensordot(tile, params["patches"]["kernel"], 3)
            tokens.append(projected + params["patches"]["bias"])
    x = np.stack(tokens) + params["position"][0]
    for index in range(sum(name.startswith("Block_") for name in params)):
        block = params[f"Block_{index}"]
        x = x + attention(layer_norm(x, block["LayerNorm_0"]), block, heads)
        x = x + dense(gelu(dense(layer_norm(x, block["LayerNorm_1"]), block["fc1"])), block["fc2"])
    return dense(layer_norm(x[0], params["LayerNorm_0"]), params["cls"])


@pytest.mark.parametrize(
    ("size", "heads", "image"), [("Ti", 3, (8, 8, 3)), ("S", 6, (8, 12, 1)), ("B", 12, (12, 8, 3))]
)
def test_a_vits_logits_are_those_of_plain_numpy(size, heads, image):
    network = vit.build(7, size=size, depth=2, patch=4)
    variables = random_variables(network, image)
    images = np.random.default_rng(1).normal(size=(3, *image)).astype(np.float32)
    logits = jax.jit(network.apply)(variables, images)
    expected = np.stack([forward(variables["params"], one, 4, heads) for one in images])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * expected.std())


def test_training_changes_nothing_about_a_vits_logits():
    network = vit.build(7, size="Ti", depth=1, patch=4)
    variables = random_variables(network, (8, 8, 3))
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 3)), jnp.float32)
    train = jax.jit(lambda v, x: network.apply(v, x, train=True, mutable=["batch_stats"]))
    trained, updated = train(variables, images)
    assert jnp.array_equal(trained, jax.jit(network.apply)(variables, images))
    assert not updated


@pytest.mark.parametrize("image", [(20, 16, 3), (16, 20, 3)])
def test_images_that_do_not_divide_into_patches_are_refused(image):
    with pytest.raises(Refusal, match=rf"{image[0]}x{image[1]} do not divide into patches of 16.*patch"):
        shapes_of(vit.build(10, size="Ti", depth=1), image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size="T"), "size of vit 'T'; known: B, S, Ti"),
        (dict(depth=0), "depth and patch of at least 1, got 0 and 16"),
        (dict(patch=0), "depth and patch of at least 1, got 12 and 0"),
    ],
)
def test_a_size_that_makes_no_vit_is_refused(options, message):
    with pytest.raises(Refusal, match=message):
        vit.build(10, **options)
