import itertools

import jax
import numpy as np
import pytest

from giung2_ext.core import allocate, trees
from giung2_ext.core.errors import Refusal

LENET = {
    "a": np.ones((784, 300), bool),
    "b": np.ones((300, 100), bool),
    "cls": np.ones((100, 10), bool),
    "x": None,
}


def test_the_keep_count_is_the_floor_of_the_decimal_that_was_typed():
    assert allocate.keep_count(0.8, 15) == 12  # float arithmetic would be lucky here
    assert allocate.keep_count(0.29, 100) == 29  # int(.29 * 100) is 28
    assert allocate.keep_count(0.57, 100) == 57
    assert allocate.keep_count(0.8, 23454912) == 18763929
    assert allocate.keep_count(1.0, 7) == 7


def test_the_chain_of_the_imagenet_network_keeps_the_exact_integers():
    alive = 23454912
    for _ in range(18):
        kept = allocate.keep_count(0.8, alive)
        assert kept == alive * 4 // 5
        alive = kept
    assert alive == 422524


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.2, float("nan")])
def test_a_ratio_outside_its_bounds_is_refused(ratio):
    with pytest.raises(Refusal, match=r"must be in \(0, 1\]"):
        allocate.keep_count(ratio, 100)


def test_keeping_none_is_refused():
    with pytest.raises(Refusal, match="keeps none"):
        allocate.keep_count(0.1, 9)


@pytest.mark.parametrize("how", ["uniform", "erk"])
@pytest.mark.parametrize("density", [0.01, 0.05, 0.1, 0.37, 0.9, 1.0])
def test_layer_counts_sum_to_the_budget_and_fit_their_layers(how, density):
    counts = allocate.layer_counts(LENET, density, how)
    sizes = [leaf.size for leaf in trees.present(LENET)]
    assert sum(trees.present(counts)) == allocate.keep_count(density, sum(sizes))
    assert all(0 <= c <= s for c, s in zip(jax.tree.leaves(counts), sizes, strict=True))


def test_erk_densities_are_the_published_formula():
    counts = allocate.layer_counts(LENET, 0.05, "erk")
    # an independent computation gave .0385, .1113, .919 for this network at .05
    assert counts["a"] / 235200 == pytest.approx(0.0385, abs=5e-5)
    assert counts["b"] / 30000 == pytest.approx(0.1113, abs=5e-5)
    assert counts["cls"] / 1000 == pytest.approx(0.919, abs=1e-3)


def test_erk_makes_a_layer_dense_before_it_exceeds_one():
    assert allocate.layer_counts(LENET, 0.2, "erk")["cls"] == 1000


def test_the_published_counts_are_the_original_k_and_a_few_ties():
    published = [
        23454912, 18764028, 15011282, 12009076, 9607294, 7685860, 6148710, 4918983, 3935188, 3148156,
        2518532, 2014828, 1611863, 1289491, 1031592, 825273, 660219, 528175, 422542,
    ]  # fmt: skip
    ties = [98, 58, 50, 33, 24, 22, 15, 2, 6, 7, 3, 1, 1, 0, 0, 1, 0, 2]
    found = [
        kept - allocate.keep_count_legacy(0.8, alive, free=2101120)
        for alive, kept in itertools.pairwise(published)
    ]
    assert found == ties


def test_the_original_k_is_rounded_where_float32_has_even_integers_only():
    # 2101120 + .8 * 23454912 is 20865049.6, where float32 has even numbers only
    assert allocate.keep_count_legacy(0.8, 23454912, 2101120) == 20865050 - 2101120
    assert allocate.keep_count(0.8, 23454912) == 18763929
    assert allocate.keep_count_legacy(0.001, 100, free=7) == 1  # not none


LENET_SHAPES = {"fc1": (784, 300), "fc2": (300, 100), "cls": (100, 10)}
CONV2_SHAPES = {
    "c1": (3, 3, 3, 64),
    "c2": (3, 3, 64, 64),
    "fc1": (14400, 256),
    "fc2": (256, 256),
    "cls": (256, 10),
}
# kept weights after 0, 1, 2, … prunings: of a public reproduction's results (both networks), and of the
# original authors' rule, which removes one weight more of each layer
LENET_COUNTS = (
    "266200 213060 170538 136511 109282 87490 70051 56094 44923 35981 28823 23093 18506 14834 11893 "
    "9537 7650 6139 4928 3958 3179 2556 2056 1655 1332 1074 866 700"
)
LENET_CUTOFF = (
    "266200 213057 170532 136503 109272 87480 70040 56081 44909 35967 28809 23079 18490 14816 11874 "
    "9518 7631 6119 4908 3938"
)
CONV2_COUNTS = (
    "3793088 3038586 2434572 1950991 1563793 1253734 1005417 806520 647184 519519 417210 335204 "
    "269455 216727 174429 140485 113235 91350 73766 59631 48261 39110 31738 25796 21002 17130 14000 "
    "11466"
)
CHAINS = [
    (LENET_SHAPES, "dense:0.8,cls:0.9", "nearest", LENET_COUNTS),
    (LENET_SHAPES, "dense:0.8,cls:0.9", "cutoff", LENET_CUTOFF),
    (CONV2_SHAPES, "conv:0.9,dense:0.8,cls:0.9", "nearest", CONV2_COUNTS),
]


@pytest.mark.parametrize(("shapes", "ratios", "rounding", "chain"), CHAINS)
def test_the_published_chains_of_counts_come_out_exactly(shapes, ratios, rounding, chain):
    chain = [int(count) for count in chain.split()]
    masks = {name: {"kernel": np.ones(shape, bool)} for name, shape in shapes.items()}
    alive = {name: {"kernel": np.prod(shape)} for name, shape in shapes.items()}
    found = [sum(jax.tree.leaves(alive))]
    at_once = [
        sum(jax.tree.leaves(allocate.pruned_counts(masks, alive, ratios, rounding, rounds)))
        for rounds in range(1, len(chain))
    ]
    for _ in chain[1:]:
        alive = allocate.pruned_counts(masks, alive, ratios, rounding)
        found.append(sum(jax.tree.leaves(alive)))
    assert found == chain
    assert at_once == chain[1:]


def test_roundings_differ_where_they_say():
    assert [allocate.keep_count(0.8, 9, "r", rounding) for rounding in allocate.ROUNDINGS] == [7, 7, 6]
    assert [allocate.keep_count(0.9, 25, "r", rounding) for rounding in allocate.ROUNDINGS] == [22, 23, 22]
    assert [allocate.keep_count(1.0, 25, "r", rounding, 3) for rounding in allocate.ROUNDINGS] == [25] * 3


@pytest.mark.parametrize("text", ["dense", "dense:0", "dense:1.1", "dense:1,dense:1", "fc:1", "", "cls:x"])
def test_ratios_that_say_nothing_are_refused(text):
    with pytest.raises(Refusal, match="write the kept fraction"):
        allocate.read_ratios(text)


def test_every_kind_of_layer_needs_a_ratio():
    masks = {"Conv_0": {"kernel": np.ones((3, 3, 1, 4), bool), "bias": None}}
    masks["cls"] = {"kernel": np.ones((4, 2), bool)}
    with pytest.raises(Refusal, match="says nothing of cls, conv"):
        allocate.pruned_counts(masks, masks, "dense:0.8")
