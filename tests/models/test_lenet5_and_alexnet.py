"""LeNet-5 and AlexNet against their counts and forward passes in plain NumPy; how both and VGG start."""

import jax
import numpy as np
import pytest
from fakes import convolve, random_variables, shapes_of, windows

from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.models import _layers, alexnet, lenet5, vgg
from giung2_ext.training import state as states

MNIST, CIFAR = (28, 28, 1), (32, 32, 3)


@pytest.mark.parametrize(
    ("model", "image", "count"),
    [
        (lenet5, MNIST, 61_706),
        (lenet5, CIFAR, 62_006),
        (alexnet, MNIST, 57_022_154),
        (alexnet, CIFAR, 57_023_306),
    ],
)
def test_the_networks_have_the_published_parameters(model, image, count):
    params, _ = shapes_of(model.build(10), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def relu(x):
    return np.maximum(x, 0)


def head(x, params):
    x = x.reshape(len(x), -1)
    for name in ("Dense_0", "Dense_1"):
        x = relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["cls"]["kernel"] + params["cls"]["bias"]


def compare(network, image, forward):
    variables = random_variables(network, image)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    images = np.random.default_rng(1).normal(size=(2, *image)).astype(np.float32)
    logits, expected = jax.jit(network.apply)(variables, images), forward(params, images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * expected.std())


@pytest.mark.parametrize(("image", "border"), [(CIFAR, (0, 0)), (MNIST, (2, 2)), ((27, 27, 2), (2, 3))])
def test_a_lenet5s_logits_are_those_of_plain_numpy_on_an_image_of_32x32(image, border):
    def forward(params, x):
        for name, pads in (("Conv_0", border), ("Conv_1", (0, 0))):
            x = relu(convolve(x, params[name]["kernel"], 1, pads) + params[name]["bias"])
            x = windows(x, 2, 2, (0, 0)).max((4, 5))
        return head(x, params)

    compare(lenet5.build(7), image, forward)


@pytest.mark.parametrize(("image", "poolings"), [((45, 90, 3), 3), (CIFAR, 3), ((11, 23, 1), 2)])
def test_an_alexnets_logits_are_those_of_plain_numpy(image, poolings):
    left = iter([True] * poolings + [False] * (3 - poolings))

    def forward(params, x):
        for index, (stride, pad) in enumerate([(2, 2), (1, 2), (1, 1), (1, 1), (1, 1)]):
            layer = params[f"Conv_{index}"]
            x = relu(convolve(x, layer["kernel"], stride, (pad, pad)) + layer["bias"])
            if index in (0, 1, 4) and next(left):
                x = windows(x, 3, 2, (0, 0)).max((4, 5))
        return head(adaptive(x, 6), params)

    compare(alexnet.build(7, width=1 / 16), image, forward)


def adaptive(x, size):
    bounds = [[(i * n // size, -(-(i + 1) * n // size)) for i in range(size)] for n in x.shape[1:3]]
    rows = [[x[:, a:b, c:d].mean((1, 2)) for c, d in bounds[1]] for a, b in bounds[0]]
    return np.moveaxis(np.asarray(rows), 2, 0)


def test_an_adaptive_pooling_covers_the_image_with_equal_windows_or_repeats_its_pixels():
    x = np.arange(20.0, dtype=np.float32).reshape(1, 4, 5, 1)
    found = np.asarray(_layers.adaptive_mean(x, 2))
    assert found[0, :, :, 0].tolist() == [[3.5, 5.5], [13.5, 15.5]]  # the columns overlap in the third
    assert np.array_equal(_layers.adaptive_mean(x[:, :1, :1] + 3, 3), np.full((1, 3, 3, 1), 3.0))
    assert np.array_equal(_layers.adaptive_mean(x[:, :, :4], 4), x[:, :, :4])


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        (lenet5.build(10), "glorot"),
        (alexnet.build(10, width=1 / 16), "he"),
        (vgg.build(10, plan="small", head="dense", width=1 / 16), "he"),
    ],
)
def test_kernels_start_as_the_networks_docstring_says_and_biases_at_0(network, kind, key):
    def some(key):  # only these are computed
        params, _ = states.init_variables(network, key, (8, 8, 3))
        return {name: params[name] for name in ("Conv_1", "Dense_1", "cls")}

    params = jax.jit(some)(key)
    for name, leaf in jax.device_get(trees.named_leaves(params)).items():
        if name.endswith("kernel"):
            area = np.prod(leaf.shape[:-2])
            fans = area * leaf.shape[-2], area * leaf.shape[-1]
            variance = {"glorot": 2 / sum(fans), "he": (1 if "cls" in name else 2) / fans[0]}[kind]
            assert leaf.std() == pytest.approx(variance**0.5, rel=3 / leaf.size**0.5), name
        else:
            assert not leaf.any(), name


def test_an_alexnet_of_no_width_is_refused():
    with pytest.raises(Refusal, match=r"alexnet with width 0 has a layer of 64 \* 0 channels: none"):
        alexnet.build(10, width=0)
