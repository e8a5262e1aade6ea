"""A compacted network computes what it did before, has what can be counted by hand, and no less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import CLASSES, SMALL, make_model, shapes_of
from small_networks import MODELS, dense, drawn, forward_of, images_of, masked, run_of, shift, wounded

import giung2_ext.models
from giung2_ext.core import compaction, discovery, trees
from giung2_ext.experiments.compaction import options_left
from giung2_ext.models import _resnet


def compact(model, params, statistics, masks, image):
    return compaction.compact(
        forward_of(model), params, statistics, masks, np.zeros((1, *image), np.float32)
    )


def check_same(model, smaller, before, after, image):
    """The logits of (params, statistics) are those of what is left of them."""
    a, b = (run_of(m)(*parts[:2], images_of(image)) for m, parts in ((model, before), (smaller, after)))
    assert np.abs(a).max() > 0.01
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * max(1.0, float(np.abs(a).max())))


# Any network


def test_all_networks_but_transformers_are_compacted_here():
    assert {name for name, _, _ in MODELS.values()} == {*discovery.names(giung2_ext.models)} - {"vit"}


FREE = {  # within a block: appended zeros stay, and constants that several layers read
    "resnet_cifar, pad": ("Conv_1", "Conv_3", "Conv_5"),
    "resnet_cifar, binary": ("Conv_1", "Conv_3", "Conv_6"),
}


@pytest.mark.parametrize("case", MODELS)
def test_logits_stay_what_they_were_and_compacting_again_finds_nothing(case):
    name, options, image = MODELS[case]
    options = SMALL.get(name, {}) | options
    model = make_model(name, **options)
    params, statistics = drawn(model, image)
    masks = wounded(params, statistics, seed=3)
    found = compact(model, params, statistics, masks, image)
    assert all(0 < left <= before for left, before in found.layers.values())
    narrower = {
        leaf: left < before
        for leaf, (left, before) in found.layers.items()
        if leaf.startswith(FREE.get(case, ("Conv", "Dense")))
    }
    assert len(narrower) >= 2
    assert all(narrower.values())
    assert found.layers["cls/kernel"] == (CLASSES, CLASSES)

    left = options_left({"name": name, **options}, found)
    smaller = make_model(left.pop("name"), **left)
    with jax.numpy_dtype_promotion("standard"):
        assert trees.first_mismatch(shapes_of(smaller, image), (found.params, found.statistics)) is None
    check_same(model, smaller, (masked(masks, params), statistics), found, image)
    for mask, weights in zip(all_leaves(found.masks), all_leaves(found.params), strict=True):
        assert mask is None or (mask.shape == weights.shape and not weights[~mask].any())
    assert sum(map(np.sum, trees.present(found.masks))) <= sum(map(np.sum, trees.present(masks)))

    if case in ("vgg, flat", "vgg, dense", "wide_resnet", "conv", "alexnet", "resnet, large"):
        return  # has no kind of layer that the others lack
    again = compact(smaller, *found[:3], image)
    assert again.removed == 0
    assert jax.tree.all(jax.tree.map(np.array_equal, again[:3], found[:3]))


@pytest.mark.parametrize("case", MODELS)
def test_a_dense_network_keeps_everything(case):
    name, options, image = MODELS[case]
    model = make_model(name, **options)
    params, statistics = drawn(model, image)
    found = compact(model, params, statistics, dense(params), image)
    assert found.removed == 0
    assert jax.tree.all(jax.tree.map(np.array_equal, found[:2], (params, statistics)))


def all_leaves(tree):
    return jax.tree.leaves(tree, is_leaf=trees.is_none)


def test_a_network_whose_layers_are_all_dead_keeps_a_channel_of_each():
    model = make_model("resnet_cifar", **MODELS["resnet_cifar"][1])
    params, statistics = drawn(model, (8, 8, 1))
    masks = jax.tree.map(np.zeros_like, dense(params))
    found = compact(model, params, statistics, masks, (8, 8, 1))
    assert {left for leaf, (left, _) in found.layers.items() if leaf != "cls/kernel"} == {1}
    smaller = model.clone(channels=(1,) * 9)
    a, b = (
        run_of(m)(*parts, images_of((8, 8, 1)))
        for m, parts in ((model, (masked(masks, params), statistics)), (smaller, found[:2]))
    )
    np.testing.assert_allclose(b, a, atol=1e-6)  # the bias of `cls`
    assert compact(smaller, *found[:3], (8, 8, 1)).removed == 0


# Counted by hand


@pytest.fixture(scope="module")
def chain():
    """(network, parameters, statistics): Conv_0 of 5 channels, Conv_1 of 6, the mean of all pixels, cls."""
    model = make_model("convnet", widths=(5, 6))
    return model, *drawn(model, (8, 8, 1))


def copies(*trees):
    return [jax.tree.map(np.copy, tree) for tree in trees]


def channels_left(chain, kill, also=None):
    """{layer: channels left} once `kill(masks, params, statistics)`; the logits are checked."""
    model, *parts = chain
    params, statistics = copies(*parts)
    masks = dense(params)
    kill(masks, params, statistics)
    found = compact(model, params, statistics, masks, (8, 8, 1))
    left = {leaf.partition("/")[0]: count for leaf, (count, _) in found.layers.items()}
    assert left.pop("cls") == CLASSES
    kind = "widths" if "widths" in model.__dataclass_fields__ else "channels"
    order = sorted(left, key=lambda layer: int(layer.rpartition("_")[2]))
    smaller = model.clone(**{kind: tuple(left[layer] for layer in order)})
    check_same(model, smaller, (masked(masks, params), statistics), found, (8, 8, 1))
    return left


def test_what_nobody_reads_goes(chain):
    def kill(masks, params, statistics):
        masks["Conv_1"]["kernel"][:, :, [0, 3]] = False

    assert channels_left(chain, kill) == {"Conv_0": 3, "Conv_1": 6}


def test_weights_of_0_are_as_good_as_a_mask(chain):
    def kill(masks, params, statistics):
        params["Conv_1"]["kernel"][:, :, 3] = 0

    assert channels_left(chain, kill) == {"Conv_0": 4, "Conv_1": 6}


@pytest.mark.parametrize(("value", "left"), [(-0.5, 4), (0.0, 4), (0.5, 5)])
def test_what_nothing_writes_goes_if_its_shift_is_stopped_by_the_relu(chain, value, left):
    def kill(masks, params, statistics):
        masks["Conv_0"]["kernel"][..., 2] = False
        shift(params, statistics, "BatchNorm_0", 2, value)
        if not value:
            params["BatchNorm_0"]["bias"][2] = statistics["batch_stats"]["BatchNorm_0"]["mean"][2] = 0

    assert channels_left(chain, kill) == {"Conv_0": left, "Conv_1": 6}


def test_a_scale_of_0_kills_like_a_kernel_of_0(chain):
    def kill(masks, params, statistics):
        params["BatchNorm_0"]["scale"][[1, 2]] = 0
        params["BatchNorm_0"]["bias"][[1, 2]] = -0.5, 0.5

    assert channels_left(chain, kill) == {"Conv_0": 4, "Conv_1": 6}


def test_constants_that_one_layer_reads_become_one_at_padded_borders_too(chain):
    def kill(masks, params, statistics):
        for channel, value in ((0, 0.2), (1, 1.5), (4, 0.7)):
            masks["Conv_0"]["kernel"][..., channel] = False
            shift(params, statistics, "BatchNorm_0", channel, value)

    assert channels_left(chain, kill) == {"Conv_0": 3, "Conv_1": 6}


def test_the_one_constant_has_the_masks_of_all(chain):
    model, params, statistics = chain
    params, statistics = copies(params, statistics)
    masks = dense(params)
    for channel, value in ((0, 0.2), (1, 1.5)):
        masks["Conv_0"]["kernel"][..., channel] = False
        shift(params, statistics, "BatchNorm_0", channel, value)
    masks["Conv_1"]["kernel"][:, :, :2] = False
    masks["Conv_1"]["kernel"][0, 0, 0, 1] = masks["Conv_1"]["kernel"][2, 1, 1, 3] = True
    found = compact(model, params, statistics, masks, (8, 8, 1))
    assert found.layers["Conv_0/kernel"] == (4, 5)
    expected = np.zeros((3, 3, 6), bool)
    expected[0, 0, 1] = expected[2, 1, 3] = True
    assert np.array_equal(found.masks["Conv_1"]["kernel"][:, :, 0], expected)
    kernel = found.params["Conv_1"]["kernel"][:, :, 0]
    assert np.array_equal(kernel != 0, expected)
    assert kernel[2, 1, 3] == pytest.approx(params["Conv_1"]["kernel"][2, 1, 1, 3])
    assert kernel[0, 0, 1] == pytest.approx(params["Conv_1"]["kernel"][0, 0, 0, 1] * 0.2 / 1.5, rel=1e-5)


@pytest.mark.parametrize("shifts", [(-0.5, -0.2, -0.9), (0.5, 0.3, 0.9), (0.5, -0.3, 0.9)])
def test_a_layer_that_is_dead_as_a_whole_keeps_one_channel_and_what_only_it_read_goes(chain, shifts):
    def kill(masks, params, statistics):
        masks["Conv_1"]["kernel"][:] = False
        for channel in range(6):
            shift(params, statistics, "BatchNorm_1", channel, shifts[channel % 3])

    assert channels_left(chain, kill) == {"Conv_0": 1, "Conv_1": 1}


def test_a_channel_that_was_read_by_the_dead_alone_is_dead(chain):
    def kill(masks, params, statistics):
        masks["cls"]["kernel"][1:] = False
        masks["Conv_1"]["kernel"][..., :3, 0] = False

    assert channels_left(chain, kill) == {"Conv_0": 2, "Conv_1": 1}


def test_a_channel_that_the_dead_alone_write_is_dead(chain):
    def kill(masks, params, statistics):
        masks["Conv_0"]["kernel"][..., :2] = False
        masks["Conv_1"]["kernel"][:, :, 2:, 5] = False
        shift(params, statistics, "BatchNorm_0", 0, -1.0)
        shift(params, statistics, "BatchNorm_0", 1, -2.0)
        shift(params, statistics, "BatchNorm_1", 5, -1.0)

    assert channels_left(chain, kill) == {"Conv_0": 3, "Conv_1": 5}


@pytest.fixture(scope="module")
def residual():
    """Stage 1: Conv_1 and Conv_2 and the stem's Conv_0; stage 2: 3, 4, shortcut 5; stage 3: 6, 7, 8."""
    model = make_model("resnet_cifar", planes=4)
    return model, *drawn(model, (8, 8, 1))


WHOLE = dict(zip([f"Conv_{i}" for i in range(9)], (4, 4, 4, 8, 8, 8, 16, 16, 16), strict=True))


def silence(masks, params, statistics, layer, channel, value):
    """Nothing is written there, and BatchNorm makes `value` of it."""
    masks[f"Conv_{layer}"]["kernel"][..., channel] = False
    shift(params, statistics, f"BatchNorm_{layer}", channel, value)


@pytest.mark.parametrize(
    ("stem", "block", "gone"),
    [(-0.5, -0.5, 1), (0.5, -0.7, 0), (-0.5, 0.5, 0), (0.5, 0.5, 0)],
)
def test_a_residual_channel_goes_where_all_that_is_added_is_stopped_before_everyone_that_reads(
    residual, stem, block, gone
):
    def kill(*parts):
        silence(*parts, 0, 2, stem)
        silence(*parts, 2, 2, block)

    left = WHOLE | {"Conv_0": 4 - gone, "Conv_2": 4 - gone}
    assert channels_left(residual, kill) == left


def test_a_residual_channel_that_one_of_two_writes_stays(residual):
    assert channels_left(residual, lambda *parts: silence(*parts, 2, 2, -5.0)) == WHOLE


@pytest.mark.parametrize("readers", [(1, 3, 5), (1, 3), (3, 5), (1, 5)])
def test_a_residual_channel_goes_if_no_one_reads_it_after_any_block(residual, readers):
    def kill(masks, params, statistics):
        for layer in readers:
            masks[f"Conv_{layer}"]["kernel"][:, :, 1] = False

    gone = len(readers) == 3
    assert channels_left(residual, kill) == WHOLE | {"Conv_0": 4 - gone, "Conv_2": 4 - gone}


def test_the_last_stage_is_read_by_the_classifier_and_within_a_block_by_one_layer(residual):
    def kill(masks, params, statistics):
        masks["cls"]["kernel"][[0, 5, 6]] = False
        masks["Conv_7"]["kernel"][:, :, 9] = False

    assert channels_left(residual, kill) == WHOLE | {"Conv_6": 15, "Conv_7": 13, "Conv_8": 13}


def test_a_padded_shortcut_keeps_what_it_appends_and_lets_go_what_it_hands_on():
    """Of 4, 8 and 16 channels stage 1's j is stage 2's j + 2 and stage 3's j + 6."""
    model = make_model("resnet_cifar", planes=4, shortcut="pad")
    parts = drawn(model, (8, 8, 1))

    def kill(masks, params, statistics):
        for layer in (1, 3):
            masks[f"Conv_{layer}"]["kernel"][:, :, 1] = False
        masks["Conv_5"]["kernel"][:, :, [0, 3]] = False  # stage 2's 0 is appended to
        masks["cls"]["kernel"][[0, 7]] = False  # and stage 3's

    sizes = dict(zip([f"Conv_{i}" for i in range(7)], (3, 4, 3, 8, 7, 16, 15), strict=True))
    assert channels_left((model, *parts), kill) == sizes

    def nearly(masks, params, statistics):
        kill(masks, params, statistics)
        masks["cls"]["kernel"][7] = True

    assert sum(channels_left((model, *parts), nearly).values()) == 4 + 4 + 4 + 8 + 8 + 16 + 16


def test_a_bottleneck_is_compacted_with_its_projections_though_no_shape_tells_them():
    """With the channels left a projection's input and output may have one shape."""
    model = _resnet.ResNet(
        num_classes=CLASSES, blocks=(1, 1), planes=(2, 4), width=1, bottleneck=True, large_images=True,
        shortcut="projection", head="biased", padding="same", zero_init=False, group_size=0,
        activation=jax.nn.relu, dtype=jnp.float32,
    )  # fmt: skip
    params, statistics = drawn(model, (8, 8, 1))
    masks = dense(params)
    masks["Conv_5"]["kernel"][:, :, [0, 1, 3, 4, 6, 7]] = False  # of the first block's 8 channels
    masks["Conv_8"]["kernel"][:, :, [0, 1, 3, 4, 6, 7]] = False
    found = compact(model, params, statistics, masks, (8, 8, 1))
    left = [found.layers[f"Conv_{i}/kernel"][0] for i in range(9)]
    assert left == [2, 2, 2, 2, 2, 4, 4, 16, 16]
    smaller = model.clone(channels=tuple(left))
    check_same(model, smaller, (masked(masks, params), statistics), found, (8, 8, 1))


def test_a_flattened_map_has_every_channel_in_many_rows():
    name, options, image = MODELS["conv"]
    model = make_model(name, **options)
    params, statistics = drawn(model, image)
    masks = dense(params)
    rows = masks["Dense_0"]["kernel"].reshape(-1, 6, 9)
    rows[:, 2] = False
    rows[1:, 4] = False  # its first row is read
    found = compact(model, params, statistics, masks, image)
    assert found.layers["Conv_1/kernel"] == (5, 6)
    assert found.params["Dense_0"]["kernel"].shape == (len(rows) * 5, 9)
    left = np.delete(params["Dense_0"]["kernel"].reshape(-1, 6, 9), 2, 1)
    mask = np.delete(rows, 2, 1)
    assert np.array_equal(found.params["Dense_0"]["kernel"], np.where(mask, left, 0).reshape(-1, 9))
    assert np.array_equal(found.masks["Dense_0"]["kernel"], mask.reshape(-1, 9))


def lenet_left(kernels, biases):
    """Channels of the hidden layers that are left, by the rules read literally, one unit at a time."""
    kernels, biases = [k.copy() for k in kernels], [b.copy() for b in biases]
    layers = range(len(kernels) - 1)
    there = [set(range(kernels[0].shape[0])), *(set(range(k.shape[1])) for k in kernels)]
    while True:
        constant: dict = {}
        for layer in layers:
            for unit in there[layer + 1]:
                inputs = [i for i in there[layer] if kernels[layer][i, unit]]
                if all((layer - 1, i) in constant for i in inputs):
                    total = sum(constant[layer - 1, i] * kernels[layer][i, unit] for i in inputs)
                    constant[layer, unit] = max(0.0, total + biases[layer][unit])
        unread = [
            (layer, unit)
            for layer in layers
            for unit in there[layer + 1]
            if constant.get((layer, unit)) == 0.0
            or not any(kernels[layer + 1][unit, other] for other in there[layer + 2])
        ]
        for layer, unit in unread:
            there[layer + 1].discard(unit)
        if not unread:
            return [
                max(1, len(units) - max(0, sum((layer, u) in constant for u in units) - 1))
                for layer, units in enumerate(there[1:-1])
            ]


@pytest.mark.parametrize("seed", range(6))
def test_a_lenet_has_the_units_that_its_rules_leave(seed):
    model, image = make_model("lenet", hidden=(30, 20, 10)), (4, 4, 1)
    params, statistics = drawn(model, image, seed)
    draw, masks = np.random.default_rng(seed), dense(params)
    for mask in trees.present(masks):
        mask &= draw.random(mask.shape) < (0.06, 0.12)[seed % 2]
    found = compact(model, params, statistics, masks, image)
    layers = masked(masks, params).values()
    expected = lenet_left(*([leaf[key] for leaf in layers] for key in ("kernel", "bias")))
    left = [found.layers[f"Dense_{i}/kernel"][0] for i in range(3)]
    assert left == expected
    assert sum(left) < 50
    check_same(model, model.clone(hidden=tuple(left)), (masked(masks, params), statistics), found, image)


def test_the_image_that_is_looked_at_does_not_matter(residual):
    model, params, statistics = residual
    params, statistics = copies(params, statistics)
    masks = wounded(params, statistics, seed=1)
    found = [
        compaction.compact(forward_of(model), params, statistics, masks, image)
        for image in (np.zeros((1, 8, 8, 1), np.float32), 9 * images_of((8, 8, 1), 1))
    ]
    assert found[0].layers == found[1].layers
    assert found[0].removed > 9
    assert jax.tree.all(jax.tree.map(np.array_equal, found[0][:3], found[1][:3]))


# Operations


def read(p, x):
    return jax.nn.relu(x @ p["a"])


by_vjp = jax.custom_vjp(read)
by_vjp.defvjp(lambda p, x: (read(p, x), (p, x)), lambda rest, g: jax.vjp(read, *rest)[1](g))
KEPT_APART = {
    "as it is": lambda p, x: read(p, x),
    "compiled": lambda p, x: jax.jit(read)(p, x),
    "checkpointed": lambda p, x: jax.checkpoint(read)(p, x),
    "custom_vjp": lambda p, x: by_vjp(p, x),
    "cast": lambda p, x: jax.nn.relu(x.astype(jnp.bfloat16) @ p["a"].astype(jnp.bfloat16)),
    "times a leaf": lambda p, x: read(p, x) * p["v"][None],
    "times a number": lambda p, x: 3.0 * read(p, x),
    "transposed twice": lambda p, x: read(p, x).T.T,
    "transposed product": lambda p, x: jax.nn.relu(p["t"] @ x.T).T * p["v"][None],
    "with an axis more": lambda p, x: read(p, x)[:, None].mean(1),
    "clipped": lambda p, x: jnp.clip(read(p, x), -1.0, 1.0),
    "chosen": lambda p, x: jnp.where(read(p, x) > 0.5, read(p, x), jnp.zeros_like(read(p, x))),
    "exact gelu": lambda p, x: jax.nn.gelu(x @ p["a"], approximate=False),
    "sine": lambda p, x: jnp.sin(x @ p["a"]),
    "repeated": lambda p, x: jnp.broadcast_to(read(p, x)[:, None], (1, 3, p["a"].shape[1])).sum(1),
}


def leaves_of(seed=0):
    draw = np.random.default_rng(seed)
    shapes = dict(a=(6, 5), t=(5, 6), v=(5,), c=(5, 3), d=(10, 3), e=(8, 3), w=(5, 5))
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def compact_units(network):
    """Of a network whose unit 2 nothing writes; (found, logits before and after)."""
    params = leaves_of()
    params["a"][:, 2] = params["t"][2] = 0

    def forward(p, statistics, x):
        with jax.numpy_dtype_promotion("standard"):
            return network(p, x)

    image = np.random.default_rng(1).normal(size=(1, 6)).astype(np.float32)
    found = compaction.compact(forward, params, {}, jax.tree.map(lambda _: None, params), image)
    run = jax.jit(forward)
    return found, run(params, {}, image), run(found.params, {}, image)


@pytest.mark.parametrize("kind", KEPT_APART)
def test_an_operation_that_keeps_channels_apart_lets_the_dead_one_go(kind):
    found, before, after = compact_units(lambda p, x: KEPT_APART[kind](p, x).astype(jnp.float32) @ p["c"])
    assert found.removed == 1
    assert found.params["c"].shape == (4, 3)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


def test_channels_side_by_side_are_each_their_own():
    def network(p, x):
        return jnp.concatenate([read(p, x), jnp.sin(x @ p["a"])], 1) @ p["d"]

    found, before, after = compact_units(network)
    assert found.removed == 1
    assert found.params["d"].shape == (8, 3)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


def test_zeros_at_the_ends_stay_as_many():
    found, before, after = compact_units(lambda p, x: jnp.pad(read(p, x), ((0, 0), (1, 2))) @ p["e"])
    assert found.params["e"].shape == (7, 3)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


MIXED = {
    "logits": lambda p, x: x @ p["a"],
    "softmax": lambda p, x: jax.nn.softmax(x @ p["a"]) @ p["c"],
    "sum": lambda p, x: (read(p, x) - read(p, x).sum(1, keepdims=True)) @ p["c"],
    "running sum": lambda p, x: jnp.cumsum(read(p, x), 1) @ p["c"],
    "sorted": lambda p, x: jnp.sort(read(p, x), 1) @ p["c"],
    "reversed": lambda p, x: read(p, x)[:, ::-1] @ p["c"],
    "rolled": lambda p, x: jnp.roll(read(p, x), 1, 1) @ p["c"],
    "in part": lambda p, x: read(p, x)[:, 1:4] @ p["c"][1:4],
    "gathered": lambda p, x: read(p, x)[:, jnp.array([4, 2, 0])] @ p["c"][:3],
    "numbered": lambda p, x: (read(p, x) * jnp.arange(5.0)[None]) @ p["c"],
    "times a constant": lambda p, x: (read(p, x) * np.float32([[1, 2, 3, 4, 5]])) @ p["c"],
    "split": lambda p, x: jnp.concatenate([read(p, x)] * 2, 1).reshape(1, 5, 2).sum(2) @ p["c"],
    "kernel made of a leaf": lambda p, x: jax.nn.relu(x @ jnp.tanh(p["a"])) @ p["c"],
    "its own square": lambda p, x: jnp.einsum("bi,bj->ij", read(p, x), read(p, x)) @ p["c"],
    "a loop": lambda p, x: jax.lax.fori_loop(0, 2, lambda i, y: jax.nn.relu(y @ p["w"]), read(p, x)),
    "padded within": lambda p, x: jax.lax.pad(read(p, x), jnp.float32(0), [(0, 0, 0), (0, 1, 1)]) @ p["d"],
    "cut": lambda p, x: jax.lax.pad(read(p, x), jnp.float32(0), [(0, 0, 0), (-1, 1, 0)]) @ p["c"],
}  # fmt: skip


@pytest.mark.parametrize("kind", MIXED)
def test_an_operation_that_mixes_channels_or_is_not_known_keeps_them(kind):
    found, before, after = compact_units(MIXED[kind])
    assert found.removed == 0
    assert np.array_equal(before, after)


def test_constants_that_several_layers_read_are_not_folded():
    def network(p, x):
        hidden = jax.nn.relu(x @ p["a"] + p["v"][None])
        return jax.nn.relu(hidden @ p["w"]) @ p["w"] @ p["c"]

    params = leaves_of()
    params["a"][:, [1, 2]], params["v"][[1, 2]] = 0, 1.0
    masks = jax.tree.map(lambda _: None, params)
    forward = lambda p, _, x: network(p, x)  # noqa: E731
    found = compaction.compact(forward, params, {}, masks, np.ones((1, 6), np.float32))
    assert found.removed == 0
