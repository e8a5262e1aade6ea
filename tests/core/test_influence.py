"""What an image is said not to change it does not, and what is called dead has no say in the logits."""

import functools

import jax
import numpy as np
import pytest
from fakes import SMALL, make_model
from small_networks import MODELS, drawn, forward_of, images_of, masked, run_of, wounded

from giung2_ext.core import channels, compaction, influence, trees

CASES = ("lenet", "conv", "convnet", "resnet_cifar, pad", "alexnet", "conv, binary")


@functools.cache
def network_of(case):
    """(model, image, program, labelling) of one of the small networks."""
    name, options, image = MODELS[case]
    model = make_model(name, **SMALL.get(name, {}) | options)
    whole = drawn(model, image)
    example = np.zeros((1, *image), np.float32)
    forward = forward_of(model)
    program = jax.make_jaxpr(lambda leaves, image: forward(*leaves, image))(whole, example)
    return model, image, program, channels.trace(program, whole)


def masked_at_random(model, image, seed):
    params, statistics = drawn(model, image, seed)
    for layer in params.values():
        if "scale" in layer:
            layer["scale"][::2] *= -1
    masks = wounded(params, statistics, seed)
    return masked(masks, params), statistics


@pytest.mark.parametrize("case", CASES)
def test_values_that_no_image_changes_are_those_of_every_image(case):
    model, image, program, labelling = network_of(case)
    leaves = trees.named_leaves(masked_at_random(model, image, seed=1))
    examples = (np.zeros((1, *image), np.float32), 7 * images_of(image, 1))
    first, second = (influence.observer(program, labelling, example)(leaves) for example in examples)
    assert len(first) == len(labelling.products) > 2
    assert any((~seen.varies).any() for seen in first[1:])
    changed = 0
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.varies, b.varies)
        same = (a.low == b.low) & (a.high == b.high)
        assert same[~a.varies].all()
        changed += (~same).sum()
    assert changed > 2


@pytest.mark.parametrize("case", CASES)
def test_parameters_of_dead_channels_have_no_say_in_the_logits(case):
    """To the last bit: what writes a channel that nobody reads, and what reads one that is always 0."""
    model, image, program, labelling = network_of(case)
    example = np.zeros((1, *image), np.float32)
    look, images = influence.observer(program, labelling, example), images_of(image, 4)
    unread = unwritten = 0
    for seed in range(3):
        whole = masked_at_random(model, image, seed)
        leaves = {name: leaf.copy() for name, leaf in trees.named_leaves(whole).items()}
        before = run_of(model)(*whole, images)
        seen = look(leaves)
        dead = compaction._dead(labelling, seen)
        unused = dead.copy()
        read = {}  # rows of kernels that are not 0, of dead channels: these are
        for product, found in zip(labelling.products, seen, strict=True):
            read[product.leaf] = dead[product.rows] & ~found.unused
            unused[product.rows[~found.unused]] = False
        unread, unwritten = unread + unused.sum(), unwritten + sum(map(np.sum, read.values()))
        disturb(leaves, labelling, unused, read, seed)
        after = run_of(model)(*rebuilt(whole, leaves), images)
        assert np.array_equal(before, after)
    assert unread > 2
    assert unwritten > 2 or case.endswith("binary")  # which has no value of 0


def disturb(leaves, labelling, unused, read, seed):
    """Other numbers for all that writes what is `unused`, and in the rows of kernels that are `read`."""
    draw = np.random.default_rng(seed)
    for name, leaf in leaves.items():
        axes = [across(i, labels, leaf.ndim) for i, labels in enumerate(labelling.of[name])]
        if name in read:
            rows, columns = axes[-2:]
            places = (unused[columns] & ~unused[rows]) | across(leaf.ndim - 2, read[name], leaf.ndim)
        else:
            places = functools.reduce(np.logical_or, (unused[labels] for labels in axes))
        new = draw.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        np.copyto(leaf, new, where=np.broadcast_to(places, leaf.shape))


def across(axis, labels, ndim):
    return labels.reshape([-1 if i == axis else 1 for i in range(ndim)])


def rebuilt(tree, leaves):
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[trees.path_name(path)], tree)
