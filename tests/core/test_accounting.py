"""FLOPs are those of the products that a network makes, each charged to the weights it was made with."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import giung2_ext.models
from giung2_ext.core import accounting, allocate, discovery, trees
from giung2_ext.core import masks as masking
from giung2_ext.experiments.building import count_uses


def count(model, image, **options):
    """(multiply-adds of each leaf, those between activations) of one image."""
    network = discovery.build(giung2_ext.models, "model", model, **{"num_classes": 1000} | options)
    with jax.numpy_dtype_promotion("standard"):
        shapes, _, uses = count_uses(network, image)
    sizes = {name: leaf.size for name, leaf in trees.named_leaves(shapes).items()}
    return {name: each * sizes[name] for name, each in uses.of.items()}, uses.unowned


def resnet_by_hand(blocks, bottleneck):
    """Multiply-adds of a ResNet at 224x224, from its table in the paper of 2016."""
    total, channels, side = 112**2 * 7**2 * 3 * 64, 64, 56
    for stage, many in enumerate(blocks):
        inner = 64 * 2**stage
        outer = 4 * inner if bottleneck else inner
        for block in range(many):
            before, side = side, side // 2 if stage and not block else side
            if bottleneck:
                total += before**2 * channels * inner + side**2 * (9 * inner * inner + inner * outer)
            else:
                total += side**2 * (9 * channels * inner + 9 * inner * inner)
            if not block and channels != outer:
                total += side**2 * channels * outer
            channels = outer
    return total + channels * 1000


@pytest.mark.parametrize(
    ("depth", "blocks", "total"), [(18, (2, 2, 2, 2), 1_814_073_344), (50, (3, 4, 6, 3), 4_089_184_256)]
)
def test_resnets_have_the_published_multiply_adds_whatever_their_padding(depth, blocks, total):
    assert resnet_by_hand(blocks, depth >= 50) == total
    same, unowned = count("resnet", (224, 224, 3), depth=depth)
    assert (sum(same.values()), unowned) == (total, 0)
    torch, _ = count("resnet", (224, 224, 3), depth=depth, padding="torch")
    assert torch == same
    assert same["Conv_0/kernel"] == 112**2 * 7**2 * 3 * 64
    assert same["cls/kernel"] == (2048 if depth == 50 else 512) * 1000
    assert not any("BatchNorm" in name for name in same)


def test_deit_s_has_4_6e9_multiply_adds_and_its_attention_belongs_to_no_weight():
    found, unowned = count("vit", (224, 224, 3), size="S")
    tokens, width, depth = 197, 384, 12
    assert unowned == depth * 2 * tokens * tokens * width == 357_663_744
    blocks = depth * tokens * (3 + 1 + 4 + 4) * width**2
    assert sum(found.values()) == 196 * 16 * 16 * 3 * width + blocks + width * 1000
    assert sum(found.values()) + unowned == pytest.approx(4.6e9, rel=0.005)
    assert found["patches/kernel"] == 196 * 16 * 16 * 3 * width
    assert found["Block_0/qkv/kernel"] == tokens * 3 * width**2
    assert all(name.endswith("kernel") for name in found)


def test_lenet_and_conv2_are_what_their_tables_say():
    lenet, _ = count("lenet", (28, 28, 1), num_classes=10)
    assert lenet == {
        "Dense_0/kernel": 784 * 300,
        "Dense_1/kernel": 300 * 100,
        "cls/kernel": 100 * 10,
    }
    assert sum(lenet.values()) == 266_200
    conv2, unowned = count("conv", (32, 32, 3), num_classes=10, depth=2)
    assert unowned == 0
    assert conv2 == {
        "Conv_0/kernel": 32**2 * 9 * 3 * 64,
        "Conv_1/kernel": 32**2 * 9 * 64 * 64,
        "Dense_0/kernel": 16 * 16 * 64 * 256,
        "Dense_1/kernel": 256 * 256,
        "cls/kernel": 256 * 10,
    }


def uses_of(forward, batch=1, image=(9, 11, 8), **shapes):
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    return accounting.uses(forward, params, jax.ShapeDtypeStruct((batch, *image), jnp.float32))


CONVOLUTIONS = {
    "plain": (dict(), (9, 11), 8),
    "strided": (dict(strides=(2, 2)), (5, 6), 8),
    "strided, unpadded": (dict(strides=(2, 3), padding="VALID"), (4, 3), 8),
    "unpadded": (dict(padding="VALID"), (7, 9), 8),
    "padded": (dict(padding=[(3, 3), (0, 1)]), (13, 10), 8),
    "grouped": (dict(feature_group_count=4), (9, 11), 2),
    "depthwise, strided": (dict(feature_group_count=8, strides=(3, 3)), (3, 4), 1),
    "dilated": (dict(kernel_dilation=(2, 2), padding="VALID"), (5, 7), 8),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("size", [1, 3])
def test_a_convolution_uses_each_weight_at_each_place_of_its_output(kind, size):
    options, (high, wide), channels = CONVOLUTIONS[kind]
    if size == 1:
        options = {key: value for key, value in options.items() if key == "feature_group_count"}
        high, wide = 9, 11
    layer = nn.Conv(16, (size, size), use_bias=False, **options)
    shape = (size, size, channels, 16)
    found = uses_of(lambda p, x: layer.apply({"params": {"kernel": p["w"]}}, x), w=shape)
    assert found == ({"w": high * wide}, 0)
    leaf = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    [row] = accounting.layers(leaf, {}, found)
    assert row.flops == 2 * high * wide * size * size * channels * 16


def test_flops_grow_with_the_batch_and_nothing_else():
    def network(p, x):
        x = nn.Conv(4, (3, 3), use_bias=False).apply({"params": {"kernel": p["a"]}}, x)
        x = x.mean(axis=(1, 2)) @ p["b"]
        return jnp.einsum("bc,bd->bcd", x, x)

    one, five = (uses_of(network, batch, a=(3, 3, 8, 4), b=(4, 6)) for batch in (1, 5))
    assert one == ({"a": 99, "b": 1}, 36)
    assert five == ({"a": 5 * 99, "b": 5}, 5 * 36)


@jax.custom_jvp
def step(x):
    return (x > 0).astype(x.dtype)


step.defjvps(lambda tangent, out, x: tangent)


@jax.custom_vjp
def sign(x):
    return jnp.sign(x)


sign.defvjp(lambda x: (jnp.sign(x), None), lambda rest, g: (g,))

MADE_FROM_W = {
    "itself": lambda w, g: w,
    "cast": lambda w, g: w.astype(jnp.bfloat16),
    "masked": lambda w, g: jnp.where(jnp.arange(6) > 2, w, jnp.zeros((), w.dtype)),
    "masked by its size": lambda w, g: jnp.where(jnp.abs(w) > 0.5, w, jnp.zeros_like(w)),
    "times a number": lambda w, g: 0.5 * w,
    "times its own gain": lambda w, g: jnp.abs(w).mean() * jnp.sign(w),
    "times a gain": lambda w, g: w * g,
    "times a gain, gain first": lambda w, g: g * w,
    "transposed twice": lambda w, g: w.T.T,
    "straight through": lambda w, g: w + jax.lax.stop_gradient(jnp.sign(w) - w),
    "compiled": lambda w, g: jax.jit(jnp.tanh)(w),
    "checkpointed": lambda w, g: jax.checkpoint(jnp.tanh)(w),
    "custom_jvp": lambda w, g: step(w),
    "custom_vjp": lambda w, g: sign(w),
    "behind a barrier": lambda w, g: jax.lax.optimization_barrier(w),
}


@pytest.mark.parametrize("kind", MADE_FROM_W)
def test_what_is_made_from_a_weight_is_charged_to_it(kind):
    def network(p, x):
        weight = MADE_FROM_W[kind](p["w"], p["g"])
        return x.reshape(1, 8).astype(weight.dtype) @ weight

    assert uses_of(network, image=(8,), w=(8, 6), g=()) == ({"w": 1}, 0)


def product(w, x):
    return nn.relu(x @ w)


by_jvp, by_vjp = jax.custom_jvp(product), jax.custom_vjp(product)
by_jvp.defjvp(lambda primals, tangents: jax.jvp(product, primals, tangents))
by_vjp.defvjp(lambda w, x: (product(w, x), (w, x)), lambda rest, g: jax.vjp(product, *rest)[1](g))
INSIDE = {
    "jit": jax.jit(product),
    "checkpoint": jax.checkpoint(product),
    "both": jax.checkpoint(jax.jit(product)),
    "vmap": jax.vmap(product, (None, 0)),
    "custom_jvp": by_jvp,
    "custom_vjp": by_vjp,
}


@pytest.mark.parametrize("kind", INSIDE)
def test_products_inside_a_transformed_function_are_found(kind):
    layer = INSIDE[kind]
    found = uses_of(lambda p, x: layer(p["b"], layer(p["a"], x)), image=(8,), a=(8, 6), b=(6, 5))
    assert found == ({"a": 1, "b": 1}, 0)


def test_a_tied_weight_is_counted_as_often_as_it_is_used():
    def network(p, x):
        code = nn.relu(x @ p["tied"])
        return code @ p["tied"].T @ p["once"]

    assert uses_of(network, image=(8,), tied=(8, 6), once=(8, 3)) == ({"tied": 2, "once": 1}, 0)


LOOPS = {
    "scan": lambda w, x: jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=3)[0],
    "map": lambda w, x: jax.lax.map(lambda row: row @ w, x),
    "fori": lambda w, x: jax.lax.fori_loop(0, 3, lambda i, x: x @ w, x),
    "while": lambda w, x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x),
    "cond": lambda w, x: jax.lax.cond(x.sum() > 0, lambda: x @ w, lambda: x),
    "switch": lambda w, x: jax.lax.switch(jnp.int32(1), [lambda: x, lambda: x @ w, lambda: -x]),
    "compiled while": lambda w, x: jax.jit(LOOPS["while"])(w, x),
}


@pytest.mark.parametrize("kind", LOOPS)
def test_a_network_with_a_loop_or_a_branch_is_refused_rather_than_miscounted(kind):
    with pytest.raises(NotImplementedError, match="cannot count a network with a"):
        uses_of(lambda p, x: LOOPS[kind](p["w"], x), image=(8,), w=(8, 8))


def test_sparse_flops_are_two_for_each_use_of_each_kept_weight():
    shapes = {"a": (3, 3, 2, 4), "bias": (4,), "cls": (4, 5), "unused": (7,)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    used = accounting.Uses({"a": 36, "cls": 1}, 50)
    rows = accounting.layers(params, {"a": 30}, used)
    assert [(row.name, row.size, row.kept, row.flops, row.flops_kept) for row in rows] == [
        ("a", 72, 30, 2 * 36 * 72, 2 * 36 * 30),
        ("bias", 4, None, 0, 0),
        ("cls", 20, None, 40, 40),
        ("unused", 7, None, 0, 0),
    ]
    weights, flops = accounting.totals(rows, used)
    assert weights == (72, 30, 103, 61)
    assert flops == (5184, 2160, 5184 + 40 + 100, 2160 + 40 + 100)
    assert accounting.totals(accounting.layers(params, {"a": 72}, used), used)[1] == (
        5184,
        5184,
        5324,
        5324,
    )
    none, nothing = accounting.totals(accounting.layers(params, {"a": 0, "cls": 0}, used), used)
    assert none == (92, 0, 103, 11)
    assert nothing == (5224, 0, 5324, 100)


@pytest.mark.parametrize(
    ("density", "allocation", "published"),
    [(0.2, "erk", 0.42), (0.2, "uniform", 0.23), (0.1, "erk", 0.24), (0.1, "uniform", 0.13)],
)
def test_rigl_trains_resnet_50_for_the_published_fraction_of_the_flops(density, allocation, published):
    """Evci et al. 2020: 32,000 steps, an update every 100 until 25,000; uniform keeps the first layer."""
    network = discovery.build(giung2_ext.models, "model", "resnet", num_classes=1000, head="biased")
    with jax.numpy_dtype_promotion("standard"):
        shapes, _, used = count_uses(network, (224, 224, 3))
    masks = masking.dense(shapes, "inner" if allocation == "uniform" else "kernels")
    counts = trees.named_leaves(allocate.layer_counts(masks, density, allocation))
    kept = {name: int(count) for name, count in counts.items() if count is not None}
    of_run = [accounting.Span(99 * 250, 250, kept), accounting.Span(7_000, 0, kept)]
    sparse, dense = accounting.training(shapes, used, of_run, "due")
    assert round(sparse / dense, 2) == published
    assert dense == 3 * 8_178_368_512 * 32_000


def test_training_is_counted_step_by_step_under_the_mask_of_each():
    params = {"a": jax.ShapeDtypeStruct((10, 10), jnp.float32)}
    used = accounting.Uses({"a": 1}, 0)
    moves = [
        {"step": 3, "layers": {"a": [50, 10, 60, 100]}},
        {"step": 5, "layers": {"a": [20, 0, 30, 100]}},
    ]
    found = accounting.spans(9, moves, {"a": 20})
    assert found == [(2, 1, {"a": 100}), (1, 1, {"a": 50}), (4, 0, {"a": 20})]
    pairs = 2 * 3 * (3 * 100 + 2 * 50 + 4 * 20)
    assert accounting.training(params, used, found, "no") == (pairs, 2 * 3 * 9 * 100)
    more_due = 2 * ((100 - 100) + (100 - 50))
    assert accounting.training(params, used, found, "due")[0] == pairs + more_due
    more_all = 2 * (2 * (100 - 50) + 4 * (100 - 20))
    assert accounting.training(params, used, found, "all")[0] == pairs + more_all


def test_a_description_names_both_denominators():
    half = accounting.totals_of(2000, 500, 4000)
    left = "500 of 2,000 {} (0.2500), 2,500 of all 4,000 (0.6250)"
    assert accounting.describe_weights(half) == "weights: " + left.format("prunable")
    assert accounting.describe_flops(half) == "FLOPs of an image: " + left.format("in prunable layers")


def test_the_compiler_counts_the_same():
    """XLA's own estimate for a program of products alone."""

    def network(p, x):
        x = jax.lax.conv_general_dilated(
            x, p["a"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )
        x = x.reshape(1, -1) @ p["b"]
        return x @ p["c"] @ p["c"].T @ jnp.ones((16, 3))

    shapes = dict(a=(3, 3, 4, 6), b=(4 * 5 * 6, 16), c=(16, 12))
    found = uses_of(network, **shapes)
    arguments = {name: jnp.ones(shape) for name, shape in shapes.items()}
    compiled = jax.jit(network).lower(arguments, jnp.ones((1, 9, 11, 8))).compile()
    sizes = {name: leaf.size for name, leaf in arguments.items()}
    ours = 2 * (sum(found.of[name] * sizes[name] for name in sizes) + found.unowned)
    assert ours == compiled.cost_analysis()["flops"]
