"""n:m patterns against a sort of every group by itself, and with every way of selecting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giung2_ext.core import masks as masking
from giung2_ext.core import select, structure
from giung2_ext.core.errors import Refusal

PATTERNS = ("1:2", "2:4", "1:4", "3:4", "2:8", "1:3", "5:6")
SHAPES = [(24, 5), (3, 3, 48, 7), (1, 1, 24, 1)]  # of dense layers and convolutions

favourites = jax.jit(structure.favourites, static_argnums=1)
protect = jax.jit(structure.protect, static_argnums=1)
top_k, top_k_each = map(jax.jit, (select.top_k, select.top_k_each))


def best_of_groups(scores, pattern):
    """The rule read literally: sort every m neighbours along the last axis but one, keep the first n."""
    kept, of = map(int, pattern.split(":"))
    lines = np.moveaxis(np.asarray(scores), -2, -1)
    chosen = np.zeros(lines.shape, bool)
    for place in np.ndindex(lines.shape[:-1]):
        for start in range(0, lines.shape[-1], of):
            group = list(lines[place][start : start + of])
            order = sorted(range(of), key=lambda i: (-group[i], i))
            chosen[place][[start + i for i in order[:kept]]] = True
    return np.moveaxis(chosen, -1, -2)


def kept_in_groups(mask, pattern):
    """How many are kept of each group."""
    of = int(pattern.split(":")[1])
    lines = np.moveaxis(np.asarray(mask), -2, -1)
    return lines.reshape(-1, of).sum(-1)


def draw(shape, levels=None, seed=0):
    """Normal scores, or few distinct ones."""
    random = np.random.default_rng(seed)
    drawn = random.normal(size=shape) if levels is None else random.integers(-levels, levels, shape)
    return drawn.astype(np.float32)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("levels", [None, 2, 1])
def test_favourites_are_the_highest_of_every_group_and_of_ties_the_first(pattern, levels):
    for shape in SHAPES:
        scores = draw(shape, levels)
        found = favourites(scores, pattern)
        assert np.array_equal(found, best_of_groups(scores, pattern))
        assert (kept_in_groups(found, pattern) == int(pattern.split(":")[0])).all()


def test_favourites_know_infinities_zeros_of_both_signs_and_nans():
    nan, inf = np.nan, np.inf
    for column, kept in (
        ([-inf, -inf, -inf, -inf], [0, 1]),
        ([-inf, 3, inf, 2], [1, 2]),
        ([-0.0, 0.0, -0.0, 0.0], [0, 1]),
        ([nan, -inf, nan, 1], [1, 3]),
        ([nan, nan, nan, nan], [0, 1]),  # two all the same
        ([inf, inf, inf, 1], [0, 1]),
    ):
        found = favourites(np.array(column, np.float32)[:, None], "2:4")
        assert np.flatnonzero(found).tolist() == kept


@pytest.mark.parametrize("pattern", PATTERNS)
def test_selecting_n_of_m_of_what_is_protected_gives_the_pattern_whole_or_leaf_by_leaf(pattern):
    scores = {"a": draw(SHAPES[0]), "b": None, "c": draw(SHAPES[1], levels=2), "d": draw(SHAPES[2]) * 1e-6}
    kept, of = structure.parse(pattern)
    counts = {name: s if s is None else np.int32(s.size * kept // of) for name, s in scores.items()}
    expected = {name: s if s is None else best_of_groups(s, pattern) for name, s in scores.items()}
    for found in (
        top_k(protect(scores, pattern), sum(jax.tree.leaves(counts))),
        top_k_each(protect(scores, pattern), counts),
    ):
        assert found["b"] is None
        assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))


@pytest.mark.parametrize("density", [0.51, 0.6, 0.9, 1.0])
def test_a_selection_of_more_contains_the_pattern_and_then_goes_by_the_scores(density):
    scores = {"a": draw(SHAPES[0]), "c": draw(SHAPES[1], seed=1)}
    pattern = {name: best_of_groups(s, "2:4") for name, s in scores.items()}
    count = int(density * sum(s.size for s in scores.values()))
    found = top_k(protect(scores, "2:4"), count)
    assert int(masking.kept(found)) == count
    assert bool(masking.nested(pattern, found))
    extra = np.concatenate([scores[k][np.asarray(found[k]) & ~pattern[k]] for k in scores])
    left = np.concatenate([scores[k][~np.asarray(found[k])] for k in scores])
    assert extra.min(initial=np.inf) >= left.max(initial=-np.inf)


def test_gradual_pruning_under_other_scores_each_time_ends_in_the_pattern():
    mask = {"a": np.ones(SHAPES[1], bool)}
    size = mask["a"].size
    for turn, kept in enumerate((0.9, 0.7, 0.55, 0.5)):
        alive = jax.tree.map(lambda m, s: np.where(m, s, -np.inf), mask, {"a": draw(SHAPES[1], seed=turn)})
        new = top_k(protect(alive, "2:4"), int(kept * size), mask)
        assert bool(masking.nested(new, mask))
        assert kept_in_groups(new["a"], "2:4").min() >= 2
        mask = jax.device_get(new)
    assert (kept_in_groups(mask["a"], "2:4") == 2).all()


def test_scores_that_are_no_favourites_stay_what_they_are():
    scores = {"a": jnp.asarray(draw(SHAPES[0])), "b": None}
    found = protect(scores, "1:3")
    best = best_of_groups(scores["a"], "1:3")
    assert np.isinf(found["a"][best]).all()
    assert np.array_equal(found["a"][~best], scores["a"][~best])
    assert found["b"] is None


@pytest.mark.parametrize(
    "text", ["2", "4:2", "2:2", "0:4", "-1:4", "2:4:8", "a:b", ":", "2:", ":4", "1.5:4", "²:4", ""]
)
def test_nonsense_is_no_pattern(text):
    with pytest.raises(Refusal, match=r"none or n:m with 0 < n < m, such as 2:4; got"):
        structure.parse(text)
    assert structure.parse("2:4") == (2, 4)
    assert structure.parse("10:16") == (10, 16)


def test_a_leaf_that_does_not_divide_into_groups_is_named():
    masks = {"Conv_1": np.ones((3, 3, 8, 4), bool), "Conv_0": np.ones((3, 3, 3, 8), bool), "bias": None}
    with pytest.raises(Refusal, match=r"multiples of 4, and Conv_0 has 3: leave it out .*prunable=inner"):
        structure.check(masks, "2:4")
    structure.check(masks | {"Conv_0": None}, "2:4")
    structure.check(masks | {"Conv_1": None}, "1:3")
