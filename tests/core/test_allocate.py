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
