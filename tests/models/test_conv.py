"""Conv-2, 4, 6 and 8 against counts and a forward pass written in plain NumPy."""

import jax
import numpy as np
import pytest
from fakes import convolve, fresh_variables, random_variables, shapes_of, windows

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.models import conv

IMAGE = (32, 32, 3)


@pytest.mark.parametrize(
    ("depth", "kernels", "convolutions"),
    [
        (2, 4_300_992, 38_592),
        (4, 2_425_024, 259_776),
        (6, 2_261_184, 1_144_512),
        (8, 5_275_840, 4_683_456),
    ],
)
def test_a_conv_has_the_weights_of_the_2019_ticket_experiments(depth, kernels, convolutions):
    params, _ = shapes_of(conv.build(10, depth=depth), IMAGE)
    assert masking.size(masking.dense(params, "kernels")) == kernels
    assert masking.size(masking.dense(params, "conv")) == convolutions
    names = [f"Conv_{i}" for i in range(depth)] + ["Dense_0", "Dense_1", "cls"]
    assert sorted(params) == sorted(names)
    assert all(set(layer) == {"kernel", "bias"} for layer in params.values())


def test_on_mnist_a_conv2_has_the_parameters_of_a_public_port():
    params, _ = shapes_of(conv.build(10, depth=2), (28, 28, 1))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 3_317_450


def test_batchnorm_stands_in_place_of_every_bias_but_the_last_layers():
    params, _ = shapes_of(conv.build(10, depth=4, norm=True), IMAGE)
    assert masking.size(masking.dense(params, "kernels")) == 2_425_024
    layers = {name: set(layer) for name, layer in params.items()}
    norms = {f"BatchNorm_{i}": {"scale", "bias"} for i in range(6)}
    others = {name: {"kernel"} for name in [f"Conv_{i}" for i in range(4)] + ["Dense_0", "Dense_1"]}
    assert layers == norms | others | {"cls": {"kernel", "bias"}}


def test_pooling_by_3_gives_conv2_the_weights_of_public_ports():
    params, _ = shapes_of(conv.build(10, depth=2, pool=3), IMAGE)
    order = ("Conv_0", "Conv_1", "Dense_0", "Dense_1", "cls")
    sizes = [params[name]["kernel"].size for name in order]
    assert sizes == [1_728, 36_864, 3_686_400, 65_536, 2_560]
    assert sum(sizes) == masking.size(masking.dense(params, "kernels")) == 3_793_088


def test_kernels_start_glorot_normal_and_truncated_and_biases_at_0(key):
    params, _ = fresh_variables(conv.build(10), key, (8, 8, 3))
    for name, leaf in jax.device_get(trees.named_leaves(params)).items():
        if name.endswith("bias"):
            assert not leaf.any(), name
        else:
            area = np.prod(leaf.shape[:-2])
            deviation = (2 / (area * (leaf.shape[-2] + leaf.shape[-1]))) ** 0.5
            assert leaf.std() == pytest.approx(deviation, rel=3 / leaf.size**0.5), name
            assert 2 < np.abs(leaf).max() / deviation <= 2 / 0.87962566 * (1 + 1e-6), name


def forward(params, images, depth, pool):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = np.asarray(images, np.float64)
    for index in range(depth):
        layer = params[f"Conv_{index}"]
        x = np.maximum(convolve(x, layer["kernel"], 1, (1, 1)) + layer["bias"], 0)
        if index % 2:
            x = windows(x, pool, 2, (0, 0)).max((4, 5))
    x = x.reshape(len(x), -1)  # rows, columns, channels
    for name in ("Dense_0", "Dense_1"):
        x = np.maximum(x @ params[name]["kernel"] + params[name]["bias"], 0)
    return x @ params["cls"]["kernel"] + params["cls"]["bias"]


@pytest.mark.parametrize("pool", [2, 3])
def test_a_convs_logits_are_those_of_plain_numpy(pool):
    network, image = conv.build(7, depth=4, pool=pool), (16, 12, 3)
    variables = random_variables(network, image)
    images = np.random.default_rng(1).normal(size=(3, *image)).astype(np.float32)
    logits = jax.jit(network.apply)(variables, images)
    expected = forward(variables["params"], images, 4, pool)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * expected.std())


def normalised_forward(variables, images, depth, act):
    tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    params = tree["params"]

    def norm(x, index):
        layer, stat = (tree[kind][f"BatchNorm_{index}"] for kind in ("params", "batch_stats"))
        return act((x - stat["mean"]) / np.sqrt(stat["var"] + 1e-5) * layer["scale"] + layer["bias"])

    x = np.asarray(images, np.float64)
    for index in range(depth):
        x = convolve(x, params[f"Conv_{index}"]["kernel"], 1, (1, 1))
        x = norm(windows(x, 2, 2, (0, 0)).max((4, 5)) if index % 2 else x, index)
    x = x.reshape(len(x), -1)
    for index in range(2):
        x = norm(x @ params[f"Dense_{index}"]["kernel"], depth + index)
    return x @ params["cls"]["kernel"] + params["cls"]["bias"]


@pytest.mark.parametrize("activation", ["relu", "binary"])
def test_with_batchnorm_too_which_follows_the_pooling(activation, both_signs):
    act = dict(relu=lambda x: np.maximum(x, 0), binary=lambda x: np.where(x < 0, -1.0, 1.0))[activation]
    network, image = conv.build(7, depth=4, norm=True, activation=activation), (8, 12, 3)
    variables = both_signs(network, image)
    images = np.random.default_rng(1).normal(size=(3, *image)).astype(np.float32)
    logits = jax.jit(network.apply)(variables, images)
    expected = normalised_forward(variables, images, 4, act)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * expected.std())


@pytest.mark.parametrize(("options", "got"), [(dict(depth=3), "3 and 2"), (dict(pool=4), "2 and 4")])
def test_a_size_that_makes_no_conv_is_refused_with_those_that_do(options, got):
    with pytest.raises(Refusal, match=f"depth 2, 4, 6 or 8 and pool 2 or 3; got {got}"):
        conv.build(10, **options)
