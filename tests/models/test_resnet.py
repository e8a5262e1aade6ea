"""Residual networks against counts published elsewhere and a forward pass written in plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import convolve, random_variables, shapes_of, windows

import giung2_ext.models
from giung2_ext.core import discovery, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.training import state as states

LARGE, SMALL = (224, 224, 3), (32, 32, 3)
# ResNet-50 as the original suite numbers it, block 0 of a stage first: convolution and BatchNorm alike
STARTS = (1, 11, 24, 43)
DOWNSAMPLES = (4, 14, 27, 46)


def build(name, classes=1000, **options):
    return discovery.build(giung2_ext.models, "model", name, num_classes=classes, **options)


def parameters(network, image):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(network, image)[0]))


def layout(network):
    """Per block: its convolutions' indices, its shortcut's or None, its stride; counted by hand."""
    plan, at, channels = [], 1, network.planes[0]
    for stage, blocks in enumerate(network.blocks):
        outer = network.planes[stage] * (4 if network.bottleneck else network.width)
        for block in range(blocks):
            main = list(range(at, at + (3 if network.bottleneck else 2)))
            stride = 2 if stage > 0 and block == 0 else 1
            projects = channels != outer and network.shortcut == "projection"
            plan.append((main, main[-1] + 1 if projects else None, stride))
            at, channels = main[-1] + 1 + projects, outer
    return plan


# Counts and names


def test_resnet50_has_the_convolutions_and_parameters_of_the_original_suite():
    params, _ = shapes_of(build("resnet"), LARGE)
    prunable = trees.present(masking.dense(params, "conv"))
    kernels = [leaf for leaf in jax.tree.leaves(params) if len(leaf.shape) == 4]
    assert len(kernels) == len(prunable) == 53
    assert sum(leaf.size for leaf in prunable) == sum(leaf.size for leaf in kernels) == 23_454_912
    total = parameters(build("resnet"), LARGE)
    assert (total, total - 23_454_912) == (25_556_032, 2_101_120)


@pytest.mark.parametrize(
    ("depth", "width", "count"),
    [
        (18, 1, 11_689_512),
        (34, 1, 21_797_672),
        (50, 1, 25_557_032),
        (101, 1, 44_549_160),
        (152, 1, 60_192_808),
        (50, 2, 68_883_240),
        (101, 2, 126_886_696),
    ],
)
def test_with_a_biased_head_a_resnet_has_torchvisions_parameters(depth, width, count):
    network = build("resnet", depth=depth, width=width, head="biased", padding="torch")
    assert parameters(network, LARGE) == count


@pytest.mark.parametrize(
    ("depth", "planes", "classes", "count"),
    [
        (20, 16, 10, 269_722),
        (32, 16, 10, 464_154),
        (44, 16, 10, 658_586),
        (56, 16, 10, 853_018),
        (110, 16, 10, 1_727_962),
        (32, 32, 10, 1_849_898),
        (32, 32, 100, 1_861_508),
    ],
)
def test_resnets_for_small_images_have_the_published_parameters(depth, planes, classes, count):
    network = build("resnet_cifar", classes, depth=depth, planes=planes, shortcut="pad")
    assert parameters(network, SMALL) == count


@pytest.mark.parametrize(
    ("depth", "options", "percent", "published"),
    [(50, dict(width=2), 20, "13.7"), (34, dict(planes=(64, 192, 384, 768)), 40, "19.3")],
)
def test_the_wide_resnets_have_multi_prize_tickets_weights(depth, options, percent, published):
    params, _ = shapes_of(build("resnet", depth=depth, **options), LARGE)
    weights = masking.size(masking.dense(params, "kernels"))
    assert weights == {50: 68_814_016, 34: 48_270_528}[depth]
    assert f"{weights * percent // 10**7 / 10:.1f}" == published  # in millions, cut off


def test_with_a_small_stem_resnet18_has_the_published_parameters():
    network = build("resnet", 10, depth=18, stem="small", head="biased")
    params, _ = shapes_of(network, SMALL)
    assert parameters(network, SMALL) == 11_173_962
    assert masking.size(masking.dense(params, "kernels")) == 11_164_352


def test_resnet50_calls_its_leaves_as_the_original_suite_does():
    params, statistics = shapes_of(build("resnet"), LARGE)
    assert set(trees.named_leaves(params)) == (
        {f"Conv_{i}/kernel" for i in range(53)}
        | {f"BatchNorm_{i}/{leaf}" for i in range(53) for leaf in ("scale", "bias")}
        | {"cls/kernel"}
    )
    stats = {f"batch_stats/BatchNorm_{i}/{leaf}" for i in range(53) for leaf in ("mean", "var")}
    assert set(trees.named_leaves(statistics)) == stats
    assert params["cls"]["kernel"].shape == (2048, 1000)


def test_resnet50s_convolutions_come_in_the_original_suites_order():
    shapes = {0: (7, 7, 3, 64)}
    before = 64
    for stage, (start, blocks) in enumerate(zip(STARTS, (3, 4, 6, 3), strict=True)):
        inner, outer = 64 * 2**stage, 256 * 2**stage
        for block in range(blocks):
            first = start if block == 0 else start + 4 + 3 * (block - 1)
            shapes[first] = (1, 1, before, inner)
            shapes[first + 1] = (3, 3, inner, inner)
            shapes[first + 2] = (1, 1, inner, outer)
            if block == 0:
                shapes[start + 3] = (1, 1, before, outer)
            before = outer
    params, _ = shapes_of(build("resnet"), LARGE)
    assert {i: params[f"Conv_{i}"]["kernel"].shape for i in range(53)} == shapes
    assert {i: params[f"BatchNorm_{i}"]["scale"].shape[0] for i in range(53)} == {
        i: shape[-1] for i, shape in shapes.items()
    }
    assert [shapes[i] for i in DOWNSAMPLES] == [
        (1, 1, 64, 256),
        (1, 1, 256, 512),
        (1, 1, 512, 1024),
        (1, 1, 1024, 2048),
    ]


def test_the_width_of_a_bottleneck_is_that_of_its_inner_convolutions():
    params, _ = shapes_of(build("resnet", width=2), LARGE)
    shapes = [params[f"Conv_{i}"]["kernel"].shape for i in range(5)]
    assert shapes == [(7, 7, 3, 64), (1, 1, 64, 128), (3, 3, 128, 128), (1, 1, 128, 256), (1, 1, 64, 256)]


# Initialisation


def fresh(network, image, keep, seed=0):
    """Only what `keep` takes from the fresh parameters is computed at all."""
    made = jax.jit(lambda key: keep(states.init_variables(network, key, image)[0]))(jax.random.key(seed))
    return jax.device_get(made)


def scales(params):
    return {name: layer["scale"] for name, layer in params.items() if name.startswith("BatchNorm_")}


def last_norms(network):
    """BatchNorm has its convolution's index: the last of every block, never the shortcut's."""
    return {f"BatchNorm_{main[-1]}" for main, _, _ in layout(network)}


def test_the_hand_counted_layout_is_the_original_suites():
    plan = layout(build("resnet"))
    assert [plan[block][0][0] for block in (0, 3, 7, 13)] == list(STARTS)
    assert [shortcut for _, shortcut, _ in plan if shortcut] == list(DOWNSAMPLES)
    assert [main for main, _, _ in plan[:3]] == [[1, 2, 3], [5, 6, 7], [8, 9, 10]]
    assert [index for index, (_, _, stride) in enumerate(plan) if stride == 2] == [3, 7, 13]
    assert plan[-1] == ([50, 51, 52], None, 1)


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet", {}), ("resnet", dict(depth=18)), ("resnet_cifar", dict(depth=14, zero_init=True))],
)
def test_the_last_scale_of_every_block_starts_at_0_and_all_others_at_1(name, options):
    network = build(name, **options)
    started = fresh(network, SMALL, scales)
    assert all((scale == scale[0]).all() for scale in started.values())
    assert {key for key, scale in started.items() if scale[0] == 0} == last_norms(network)
    assert {float(scale[0]) for scale in started.values()} == {0.0, 1.0}


@pytest.mark.parametrize(("name", "options"), [("resnet", dict(zero_init=False)), ("resnet_cifar", {})])
def test_without_zero_init_every_scale_starts_at_1(name, options):
    started = fresh(build(name, **options), SMALL, scales)
    assert len(started) > 20
    assert all((scale == 1).all() for scale in started.values())


@pytest.mark.parametrize(
    ("name", "options", "upto"), [("resnet", {}, 5), ("resnet_cifar", dict(depth=8, planes=32), 3)]
)
def test_kernels_start_he_normal_by_fan_in_and_truncated_at_two_deviations(name, options, upto):
    def kernels(params):
        return {index: params[f"Conv_{index}"]["kernel"] for index in range(upto)}

    for index, kernel in fresh(build(name, **options), SMALL, kernels).items():
        deviation = (2 / np.prod(kernel.shape[:3])) ** 0.5
        bound = 2 * deviation / 0.87962566  # the truncation shrinks a standard normal to that deviation
        assert kernel.std() == pytest.approx(deviation, rel=3 / kernel.size**0.5), index
        assert kernel.mean() == pytest.approx(0, abs=4 * deviation / kernel.size**0.5), index
        assert 0.9 * bound < np.abs(kernel).max() <= bound * (1 + 1e-6), index


def test_the_original_suites_head_has_no_bias_and_starts_at_0():
    head = fresh(build("resnet"), SMALL, lambda params: params["cls"])
    assert set(head) == {"kernel"}
    assert not head["kernel"].any()


@pytest.mark.parametrize(("name", "fan_in"), [("resnet", 2048), ("resnet_cifar", 64)])
def test_a_biased_head_starts_uniform_within_one_over_the_root_of_its_fan_in(name, fan_in):
    head = fresh(build(name, head="biased"), SMALL, lambda params: params["cls"])
    assert (head["kernel"].shape, head["bias"].shape) == ((fan_in, 1000), (1000,))
    bound = fan_in**-0.5
    for leaf in head.values():
        assert 0.98 * bound < float(leaf.max()) <= bound
        assert -0.98 * bound > float(leaf.min()) >= -bound
        assert float(leaf.std()) == pytest.approx(bound / 3**0.5, rel=0.05)


# Logits

# (before, after) by size and stride, on images of an even size; the pooling's are (3, 2)
PADS = {
    "same": {(7, 2): (2, 3), (3, 2): (0, 1), (3, 1): (1, 1), (1, 2): (0, 0), (1, 1): (0, 0)},
    "torch": {(7, 2): (3, 3), (3, 2): (1, 1), (3, 1): (1, 1), (1, 2): (0, 0), (1, 1): (0, 0)},
}


def relu(x):
    return np.maximum(x, 0)


def sign(x):
    return np.where(x < 0, -1.0, 1.0)


class Plain:
    """The forward pass in NumPy and float64; `updated` are the statistics after a training step."""

    def __init__(self, network, variables, groups=None, act=relu):
        self.network, self.groups, self.act, self.updated = network, groups, act, {}
        self.params, self.stats = (
            jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables[name])
            for name in ("params", "batch_stats")
        )

    def layer(self, x, index, stride=1):
        kernel = self.params[f"Conv_{index}"]["kernel"]
        x = convolve(x, kernel, stride, PADS[self.network.padding][kernel.shape[0], stride])
        name = f"BatchNorm_{index}"
        params, old = self.params[name], self.stats[name]
        if self.groups is None:
            moments = [(old["mean"], old["var"])]
        else:
            parts = np.split(x, self.groups)
            moments = [(part.mean((0, 1, 2)), part.var((0, 1, 2))) for part in parts]
            self.updated[name] = {
                stat: 0.9 * old[stat] + 0.1 * np.mean([moment[i] for moment in moments], axis=0)
                for i, stat in enumerate(("mean", "var"))
            }
        parts = [
            params["scale"] * (part - mean) / np.sqrt(var + 1e-5) + params["bias"]
            for part, (mean, var) in zip(np.split(x, len(moments)), moments, strict=True)
        ]
        return np.concatenate(parts)

    def block(self, x, main, shortcut, stride):
        strided = 1 if self.network.bottleneck else 0  # the place of the first 3x3
        y = x
        for place, index in enumerate(main):
            y = self.layer(y if place == 0 else self.act(y), index, stride if place == strided else 1)
        if shortcut is not None:
            x = self.layer(x, shortcut, stride)
        elif x.shape != y.shape:
            more = y.shape[3] - x.shape[3]
            padded = np.zeros_like(y)
            padded[..., more // 2 : more // 2 + x.shape[3]] = x[:, ::stride, ::stride]
            x = padded
        return self.act(y + x)

    def __call__(self, images):
        x = np.asarray(images, np.float64)
        if self.network.large_images:
            x = self.act(self.layer(x, 0, 2))
            x = windows(x, 3, 2, PADS[self.network.padding][3, 2], -np.inf).max((4, 5))
        else:
            x = self.act(self.layer(x, 0))
        for main, shortcut, stride in layout(self.network):
            x = self.block(x, main, shortcut, stride)
        head = self.params["cls"]
        return x.mean((1, 2)) @ head["kernel"] + head.get("bias", 0.0)


def images_of(size, batch=2, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, size, size, 3)), jnp.float32)


def assert_near(found, expected, tolerance=1e-5):
    """To `tolerance` of the expected values' deviation over everything compared."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.std(expected))


@pytest.mark.parametrize("padding", ["same", "torch"])
@pytest.mark.parametrize(("depth", "head"), [(18, "biased"), (50, "zero")])
def test_a_resnets_logits_are_those_of_plain_numpy(depth, head, padding):
    network = build("resnet", 7, depth=depth, head=head, padding=padding)
    variables, images = random_variables(network, (64, 64, 3)), images_of(64)
    logits = jax.jit(network.apply)(variables, images)
    assert_near(logits, Plain(network, variables)(images))


@pytest.mark.parametrize("padding", ["same", "torch"])
@pytest.mark.parametrize("shortcut", ["projection", "pad"])
@pytest.mark.parametrize(("planes", "width"), [(4, 1), (3, 2)])
def test_a_small_resnets_logits_are_those_of_plain_numpy(planes, width, shortcut, padding):
    options = dict(planes=planes, width=width, shortcut=shortcut, padding=padding)
    network = build("resnet_cifar", 7, depth=14, **options)
    variables, images = random_variables(network, (16, 16, 3)), images_of(16)
    logits = jax.jit(network.apply)(variables, images)
    assert_near(logits, Plain(network, variables)(images))


def test_with_a_small_stem_too():
    network = build("resnet", 7, depth=18, stem="small", planes=(4, 6, 7, 5))
    variables, images = random_variables(network, (16, 16, 3)), images_of(16)
    logits = jax.jit(network.apply)(variables, images)
    assert_near(logits, Plain(network, variables)(images))


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet_cifar", dict(depth=8, shortcut="pad")), ("resnet", dict(depth=50, stem="small"))],
)
def test_binary_activations_stand_where_every_relu_stood(name, options):
    planes = dict(resnet_cifar=4, resnet=(4, 5, 6, 7))[name]
    network = build(name, 7, planes=planes, activation="binary", **options)
    variables, images = random_variables(network, (16, 16, 3)), images_of(16, seed=4)
    logits = jax.jit(network.apply)(variables, images)
    assert_near(logits, Plain(network, variables, act=sign)(images))


@pytest.mark.parametrize("shortcut", ["projection", "pad"])
def test_in_training_logits_and_new_statistics_are_those_of_each_group(shortcut):
    network = build("resnet_cifar", 7, depth=8, shortcut=shortcut, group_size=3)
    variables, images = random_variables(network, (16, 16, 3)), images_of(16, batch=6)
    apply = jax.jit(lambda v, x: network.apply(v, x, train=True, mutable=["batch_stats"]))
    logits, updated = apply(variables, images)
    plain = Plain(network, variables, groups=2)
    assert_near(logits, plain(images))
    assert jax.tree.structure(updated["batch_stats"]) == jax.tree.structure(plain.updated)
    jax.tree.map(assert_near, updated["batch_stats"], plain.updated)
    whole = Plain(network, variables, groups=1)(images)
    assert np.abs(whole - logits).max() > 0.01 * np.std(whole)  # the groups matter


@pytest.mark.parametrize("name", ["resnet", "resnet_cifar"])
def test_the_paddings_are_two_networks_with_the_same_leaves(name):
    depth = dict(resnet=18, resnet_cifar=8)[name]
    same, torch = (build(name, 7, depth=depth, head="biased", padding=p) for p in ("same", "torch"))
    assert trees.first_mismatch(shapes_of(same, SMALL), shapes_of(torch, SMALL)) is None
    variables, images = random_variables(same, SMALL), images_of(32)
    logits = [jax.jit(network.apply)(variables, images) for network in (same, torch)]
    assert np.abs(logits[0] - logits[1]).max() > 0.01 * np.std(logits[0])


# Refusals


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet", dict(depth=51), "depth 18, 34, 50, 101, 152; got 51"),
        ("resnet_cifar", dict(depth=18), r"6n \+ 2: 20, 32, 44, 56, 110, …; got 18"),
        ("resnet_cifar", dict(depth=2), r"6n \+ 2: .*; got 2"),
        ("resnet_cifar", dict(planes=0), "planes of at least 1, got 0"),
        ("resnet", dict(planes=(64, 0, 256, 512)), r"planes of its four stages.*\(64, 0, 256, 512\)"),
        ("resnet", dict(planes=(64, 128, 256)), r"planes of its four stages.*\(64, 128, 256\)"),
    ],
)
def test_a_size_that_makes_no_network_is_refused_with_those_that_do(name, options, message):
    with pytest.raises(Refusal, match=message):
        build(name, **options)


@pytest.mark.parametrize("name", ["resnet", "resnet_cifar"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(head="bias"), "head of .*'bias'; known: biased, zero; did you mean 'biased'"),
        (dict(padding="some"), "padding 'some'; known: same, torch; did you mean 'same'"),
        (dict(activation="binar"), "activation 'binar'; known: binary, relu; did you mean 'binary'"),
        (dict(width=0), "width of at least 1, got 0"),
    ],
)
def test_an_option_that_makes_no_network_is_refused_with_what_is_known(name, options, message):
    with pytest.raises(Refusal, match=message):
        build(name, **options)


def test_an_unknown_shortcut_is_refused_with_what_is_known():
    with pytest.raises(Refusal, match="shortcut of resnet_cifar 'pads'; known: pad, projection"):
        build("resnet_cifar", shortcut="pads")
    with pytest.raises(Refusal, match="takes no option 'shortcut'"):
        build("resnet", shortcut="pad")


def test_an_unknown_stem_is_refused_with_what_is_known():
    with pytest.raises(Refusal, match="stem of resnet 'smal'; known: large, small; did you mean 'small'"):
        build("resnet", stem="smal")
