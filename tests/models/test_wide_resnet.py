"""Wide ResNets against layers counted by hand, published counts, and a network of PyTorch's layers."""

import jax
import numpy as np
import pytest
from fakes import random_variables, shapes_of

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.models import wide_resnet

IMAGE = (32, 32, 3)


def parameters(network):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(network, IMAGE)[0]))


# Counts and names


def test_wrn_22_2_has_the_parameters_of_its_layers():
    stem = 9 * 3 * 16
    first = 9 * (16 * 32 + 32 * 32) + 16 * 32  # of each stage's three blocks: with the 1x1 shortcut
    second = 9 * (32 * 64 + 64 * 64) + 32 * 64
    third = 9 * (64 * 128 + 128 * 128) + 64 * 128
    others = 4 * 9 * (32 * 32 + 64 * 64 + 128 * 128)  # two blocks of two convolutions
    norms = 2 * ((16 + 5 * 32) + (32 + 5 * 64) + (64 + 5 * 128) + 128)  # the last before the mean
    total = stem + first + second + third + others + norms + (128 * 10 + 10)
    assert parameters(wide_resnet.build(10)) == total == 1_079_642


@pytest.mark.parametrize(
    ("depth", "width", "published"),
    [(40, 1, "0.6"), (40, 2, "2.2"), (40, 4, "8.9"), (16, 8, "11.0"), (22, 8, "17.2"), (28, 10, "36.5")],
)
def test_wide_resnets_have_the_papers_parameters(depth, width, published):
    network = wide_resnet.build(10, depth=depth, width=width)
    assert f"{parameters(network) / 1e6:.1f}" == published


def test_wrn_22_2s_layers_come_in_the_order_in_which_they_are_applied():
    convolutions, norms, before = [(3, 3, 3, 16)], [], 16
    for channels in (32, 64, 128):
        inner = (3, 3, channels, channels)
        convolutions += [(3, 3, before, channels), inner, (1, 1, before, channels), *[inner] * 4]
        norms += [(before,), *[(channels,)] * 5]
        before = channels
    params, statistics = shapes_of(wide_resnet.build(10), IMAGE)
    found = {name: leaf.shape for name, leaf in trees.named_leaves(params).items()}
    assert found == (
        {f"Conv_{i}/kernel": shape for i, shape in enumerate(convolutions)}
        | {f"BatchNorm_{i}/{leaf}": s for i, s in enumerate([*norms, (128,)]) for leaf in ("scale", "bias")}
        | {"cls/kernel": (128, 10), "cls/bias": (10,)}
    )
    stats = {f"batch_stats/BatchNorm_{i}/{leaf}" for i in range(19) for leaf in ("mean", "var")}
    assert set(trees.named_leaves(statistics)) == stats
    assert len(trees.present(masking.dense(params, "kernels"))) == 23


def test_where_no_shape_changes_there_is_no_convolution_in_the_shortcut():
    params, _ = shapes_of(wide_resnet.build(10, depth=10, width=1), IMAGE)
    shapes = {name: leaf.shape for name, leaf in trees.named_leaves(params).items()}
    ones = {name for name, shape in shapes.items() if shape[:2] == (1, 1)}
    assert ones == {"Conv_5/kernel", "Conv_8/kernel"}  # the first stage has the stem's channels


def test_the_original_suites_head_has_no_bias():
    params, _ = shapes_of(wide_resnet.build(10, head="zero"), IMAGE)
    assert set(params["cls"]) == {"kernel"}


# Logits


def torch_network(depth, width, planes, padding, binary=False):
    """A network of PyTorch's own layers in float64, made in the order in which they are applied."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (2026-11-27)")
    nn = torch.nn

    class Sign(nn.Module):
        def forward(self, x):
            return torch.where(x < 0, -1.0, 1.0).to(x)

    act = Sign if binary else nn.ReLU

    def conv3x3(before, after, stride):
        if padding == "torch" or stride == 1:
            return nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(before, after, 3, stride, bias=False))

    class Block(nn.Module):
        def __init__(self, before, after, stride):
            super().__init__()
            self.first = nn.Sequential(nn.BatchNorm2d(before), act())
            self.conv = conv3x3(before, after, stride)
            self.second = nn.Sequential(nn.BatchNorm2d(after), act(), conv3x3(after, after, 1))
            if before != after:
                self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)

        def forward(self, x):
            active = self.first(x)
            shortcut = self.shortcut(active) if hasattr(self, "shortcut") else x
            return self.second(self.conv(active)) + shortcut

    layers, before = [conv3x3(3, planes, 1)], planes
    for stage in range(3):
        after = planes * width * 2**stage
        for index in range((depth - 4) // 6):
            layers.append(Block(before, after, 2 if stage > 0 and index == 0 else 1))
            before = after
    layers += [nn.BatchNorm2d(before), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 7)]
    return torch, nn.Sequential(*layers).double()


def load(torch, network, variables):
    """Puts the n-th convolution and BatchNorm of ours into the n-th of PyTorch's."""
    params, stats = (jax.device_get(variables[kind]) for kind in ("params", "batch_stats"))
    pairs = [(network[-1].weight, params["cls"]["kernel"].T), (network[-1].bias, params["cls"]["bias"])]
    layers = list(network.modules())
    convolutions = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
    norms = [layer for layer in layers if isinstance(layer, torch.nn.BatchNorm2d)]
    assert len(convolutions) + len(norms) + 1 == len(params)
    for index, layer in enumerate(convolutions):
        pairs.append((layer.weight, params[f"Conv_{index}"]["kernel"].transpose(3, 2, 0, 1)))
    for index, layer in enumerate(norms):
        ours = params[f"BatchNorm_{index}"] | stats[f"BatchNorm_{index}"]
        theirs = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
        pairs += zip(theirs, (ours[leaf] for leaf in ("scale", "bias", "mean", "var")), strict=True)
    with torch.no_grad():
        for theirs, ours in pairs:
            assert theirs.shape == ours.shape
            theirs.copy_(torch.from_numpy(np.array(ours)))


def compared(depth, width, planes, padding, groups=None, binary=False, batch=4, **options):
    """Our logits, and PyTorch's of each of `groups` parts of the batch in training."""
    torch, theirs = torch_network(depth, width, planes, padding, binary)
    given = dict(depth=depth, width=width, planes=planes, padding=padding, **options)
    ours = wide_resnet.build(7, activation="binary" if binary else "relu", **given)
    variables = random_variables(ours, IMAGE)
    load(torch, theirs, variables)
    images = np.random.default_rng(1).normal(size=(batch, 16, 12, 3)).astype(np.float32)
    found = jax.jit(lambda v, x: ours.apply(v, x, train=bool(groups), mutable=["batch_stats"]))(
        variables, images
    )[0]
    theirs.train(bool(groups))
    parts = torch.from_numpy(images.transpose(0, 3, 1, 2)).double().chunk(groups or 1)
    with torch.no_grad():
        expected = torch.cat([theirs(part) for part in parts]).numpy()
    return np.asarray(found), expected


@pytest.mark.parametrize("padding", ["same", "torch"])
@pytest.mark.parametrize(("depth", "width", "planes"), [(22, 2, 16), (16, 1, 4)])
def test_a_wide_resnets_logits_are_pytorchs(depth, width, planes, padding):
    found, expected = compared(depth, width, planes, padding)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.std())


@pytest.mark.parametrize(("padding", "group_size", "groups"), [("same", 0, 1), ("torch", 3, 2)])
def test_in_training_logits_are_pytorchs_of_each_group(padding, group_size, groups):
    found, expected = compared(16, 2, 4, padding, groups, batch=6, group_size=group_size)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.std())


def test_binary_activations_stand_where_every_relu_stood():
    found, expected = compared(10, 2, 3, "torch", binary=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.std())


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(depth=20), r"wide_resnet has depth 6n \+ 4: 10, 16, 22, 28, 40, …; got 20"),
        (dict(depth=4), r"6n \+ 4: .*; got 4"),
        (dict(planes=0), "wide_resnet needs planes of at least 1, got 0"),
        (dict(width=0), "wide_resnet needs a width of at least 1, got 0"),
        (dict(head="bias"), "head of wide_resnet 'bias'; known: biased, zero; did you mean 'biased'"),
        (dict(padding="some"), "padding 'some'; known: same, torch; did you mean 'same'"),
        (dict(activation="binar"), "activation 'binar'; known: binary, relu; did you mean 'binary'"),
    ],
)
def test_an_option_that_makes_no_wide_resnet_is_refused_with_what_is_known(options, message):
    with pytest.raises(Refusal, match=message):
        wide_resnet.build(10, **options)
