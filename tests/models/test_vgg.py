"""The VGGs of the mask-search papers against their counts and a forward pass in plain NumPy."""

import jax
import numpy as np
import pytest
from fakes import convolve, shapes_of, windows

from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.models import vgg

IMAGE = (32, 32, 3)
SIXTEEN = dict(plan="16", norm=False, head="dense")
SMALL = dict(plan="small", head="flat")
POOLED = {"19": (1, 3, 7, 11, 15), "16": (1, 3, 6, 9, 12), "small": (1, 3, 5)}


@pytest.mark.parametrize(
    ("options", "classes", "count"),
    [
        ({}, 10, 20_035_018),
        ({}, 100, 20_081_188),
        (SIXTEEN, 10, 134_301_514),
        (SIXTEEN, 1000, 138_357_544),
    ],
)
def test_a_vgg_has_the_parameters_of_the_public_ones(options, classes, count):
    params, _ = shapes_of(vgg.build(classes, **options), IMAGE)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(("width", "weights"), [(1.0, 4_656_512), (1.25, 7_249_120)])
def test_vgg_small_has_the_weights_of_multi_prize_tickets(width, weights):
    params, _ = shapes_of(vgg.build(10, width=width, **SMALL), IMAGE)
    assert masking.size(masking.dense(params, "kernels")) == weights
    shapes = [params[f"Conv_{i}"]["kernel"].shape[-1] for i in range(6)]
    assert shapes == [int(width * channels) for channels in (128, 128, 256, 256, 512, 512)]


def test_batchnorm_takes_the_place_of_the_convolutions_biases_and_only_theirs():
    options = dict(plan="16", head="dense", width=1 / 32)
    normed, _ = shapes_of(vgg.build(10, **options), IMAGE)
    plain, _ = shapes_of(vgg.build(10, norm=False, **options), IMAGE)
    assert plain["Dense_1"]["kernel"].shape == (128, 128)  # a width is theirs too
    biased = {name for name, layer in plain.items() if "bias" in layer}
    assert biased == {f"Conv_{i}" for i in range(13)} | {"Dense_0", "Dense_1", "cls"}
    without = {name for name, layer in normed.items() if "bias" not in layer}
    assert without == {f"Conv_{i}" for i in range(13)}
    assert set(normed) - set(plain) == {f"BatchNorm_{i}" for i in range(13)}


def sevenths(x):
    """The windows of an adaptive pooling to 7x7, by their definition."""
    bounds = [[(i * n // 7, -(-(i + 1) * n // 7)) for i in range(7)] for n in x.shape[1:3]]
    rows = [[x[:, a:b, c:d].mean((1, 2)) for c, d in bounds[1]] for a, b in bounds[0]]
    return np.moveaxis(np.asarray(rows), 2, 0)


def forward(variables, images, options, act):
    tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    params, pooled = tree["params"], POOLED[options.get("plan", "19")]
    x = np.asarray(images, np.float64)
    for index in range(pooled[-1] + 1):
        layer = params[f"Conv_{index}"]
        x = convolve(x, layer["kernel"], 1, (1, 1)) + layer.get("bias", 0.0)
        pools, first = index in pooled and min(x.shape[1:3]) > 1, options.get("plan") == "small"
        if pools and first:
            x = windows(x, 2, 2, (0, 0)).max((4, 5))
        if options.get("norm", True):
            norm, stats = (tree[kind][f"BatchNorm_{index}"] for kind in ("params", "batch_stats"))
            x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * norm["scale"] + norm["bias"]
        x = act(x)
        if pools and not first:
            x = windows(x, 2, 2, (0, 0)).max((4, 5))
    x = {"mean": lambda: x.mean((1, 2)), "flat": lambda: x, "dense": lambda: sevenths(x)}[
        options.get("head", "mean")
    ]().reshape(len(x), -1)
    for layer in [params[name] for name in ("Dense_0", "Dense_1") if name in params]:
        x = act(x @ layer["kernel"] + layer["bias"])
    return x @ params["cls"]["kernel"] + params["cls"]["bias"]


@pytest.mark.parametrize(
    ("options", "image", "activation"),
    [
        ({}, (16, 12, 3), "relu"),
        (SIXTEEN, (8, 72, 3), "relu"),
        (SMALL, (16, 12, 3), "relu"),
        (SMALL, (16, 12, 3), "binary"),
    ],
)
def test_a_vggs_logits_are_those_of_plain_numpy(options, image, activation, both_signs):
    network = vgg.build(7, width=1 / 16, activation=activation, **options)
    variables = both_signs(network, image)
    images = np.random.default_rng(1).normal(size=(2, *image)).astype(np.float32)
    act = dict(relu=lambda x: np.maximum(x, 0), binary=lambda x: np.where(x < 0, -1.0, 1.0))[activation]
    logits = jax.jit(network.apply)(variables, images)
    expected = forward(variables, images, options, act)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * expected.std())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(plan="18"), "plan of vgg '18'; known: 16, 19, small"),
        (dict(head="flatt"), "head of vgg 'flatt'; known: dense, flat, mean; did you mean 'flat'"),
        (dict(activation="bin"), "activation 'bin'; known: binary, relu"),
        (dict(width=0.001), r"vgg with width 0.001 has a layer of 64 \* 0.001 channels: none"),
    ],
)
def test_an_option_that_makes_no_vgg_is_refused_with_what_is_known(options, message):
    with pytest.raises(Refusal, match=message):
        vgg.build(10, **options)
