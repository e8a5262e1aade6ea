import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from giung2_ext.core import select


def reference(scores, k, among=None):
    """A stable full sort on the host: highest first, ties by flat index over the whole tree."""
    flat = np.concatenate([np.asarray(s).ravel() for s in scores])
    allowed = np.ones(flat.shape, bool)
    if among is not None:
        allowed = np.concatenate([np.asarray(a).ravel() for a in among])
    order = [i for i in np.argsort(-flat.astype(np.float64), kind="stable") if allowed[i]]
    chosen = np.zeros(flat.shape, bool)
    chosen[order[:k]] = True
    ends = np.cumsum([s.size for s in scores])[:-1]
    return [c.reshape(s.shape) for c, s in zip(np.split(chosen, ends), scores, strict=True)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


SHAPES = [(7, 5), (3, 3, 2, 4), (11,)]


@pytest.mark.parametrize("k", [0, 1, 17, 60, 118, 500])
@pytest.mark.parametrize("levels", [3, 1000])
def test_top_k_is_the_stable_sort_also_with_many_ties(k, levels):
    draw = np.random.default_rng(levels)
    scores = [(draw.integers(-levels, levels, s) / 7).astype(np.float32) for s in SHAPES]
    among = [draw.random(s) < 0.7 for s in SHAPES]
    pick = jax.jit(select.top_k)
    assert same(pick(scores, k), reference(scores, k))
    assert same(pick(scores, k, among), reference(scores, k, among))


def test_the_count_is_exact_where_float32_counts_would_not_be():
    size = 2**24 + 3
    scores = jnp.zeros(size, jnp.float32)
    chosen = jax.jit(select.top_k)(scores, size - 1)
    assert int(jnp.sum(chosen, dtype=jnp.int32)) == size - 1
    assert not bool(chosen[-1])


def test_candidates_with_score_zero_outrank_everything_that_is_no_candidate():
    scores = jnp.array([0.0, 5.0, 0.0, 9.0])
    among = jnp.array([True, False, True, False])
    assert select.top_k(scores, 3, among).tolist() == [True, False, True, False]


def test_special_values_have_their_place():
    tiny = np.float32(1e-45)  # the smallest subnormal is not 0
    scores = jnp.array([-0.0, 0.0, tiny, -tiny, jnp.inf, -jnp.inf, jnp.nan, 1.0], jnp.float32)
    by_rank = [4, 7, 2, 0, 1, 3, 5, 6]  # the zeros tie by index, NaN is last
    for k in range(len(by_rank) + 1):
        assert sorted(np.flatnonzero(select.top_k(scores, k)).tolist()) == sorted(by_rank[:k])


def test_k_is_a_traced_number_and_the_program_is_compiled_once():
    pick = jax.jit(lambda scores, k: select.top_k(scores, k))
    scores = jnp.arange(10, dtype=jnp.float32)
    for k in (1, 4, 9):
        assert int(pick(scores, jnp.int32(k)).sum()) == k
    assert pick._cache_size() == 1


def test_sharded_selection_is_the_same_and_moves_only_counts():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    draw = np.random.default_rng(1)
    scores = [draw.integers(0, 9, (16, 6)).astype(np.float32), draw.random((8, 3, 4)).astype(np.float32)]
    placed = jax.device_put(scores, NamedSharding(mesh, P("data")))
    pick = jax.jit(select.top_k, out_shardings=NamedSharding(mesh, P("data")))
    assert same(pick(placed, 77), reference(scores, 77))
    text = pick.lower(placed, 77).compile().as_text()
    assert "all-reduce" in text
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))


def test_each_leaf_gets_its_own_count():
    scores = {"a": jnp.arange(6.0), "b": None, "c": jnp.ones(4)}
    chosen = select.top_k_each(scores, {"a": 2, "b": None, "c": 3})
    assert chosen["a"].tolist() == [False] * 4 + [True] * 2
    assert chosen["b"] is None
    assert chosen["c"].tolist() == [True, True, True, False]
