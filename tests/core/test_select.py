"""Selection against a stable sort on the host, bit for bit: both searches, any sharding, any k."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import giung2_ext.models
from giung2_ext.core import discovery, select, trees
from giung2_ext.core import masks as masking
from giung2_ext.training import state as states


class Sorted:
    """A stable full sort on the host: highest first, ties by flat index over the whole tree."""

    def __init__(self, scores, among=None):
        self.shapes = [np.shape(s) for s in scores]
        flat = np.concatenate([np.asarray(s).ravel() for s in scores])
        with np.errstate(invalid="ignore"):  # of signalling NaNs; all NaNs are one last level
            _, self.level = np.unique(-flat, return_inverse=True)
        self.order = np.argsort(self.level, kind="stable")
        if among is not None:
            allowed = np.concatenate([np.asarray(a).ravel() for a in among])
            self.order = self.order[allowed[self.order]]

    def split(self, flat):
        ends = np.cumsum([np.prod(shape, dtype=int) for shape in self.shapes])[:-1]
        return [part.reshape(s) for part, s in zip(np.split(flat, ends), self.shapes, strict=True)]

    def top(self, k):
        chosen = np.zeros(self.level.shape, bool)
        chosen[self.order[:k]] = True
        return self.split(chosen)

    def telling_counts(self):
        """None, one, all, more; every leaf's end; and about the ties of the value a third down."""
        size = len(self.order)
        middle = self.level[self.order[size // 3]]
        above = int((self.level[self.order] < middle).sum())
        tied = np.zeros(self.level.shape, bool)
        tied[self.order] = self.level[self.order] == middle
        filled = np.cumsum([0, *(part.sum() for part in self.split(tied))]) + above
        ends = np.cumsum([np.prod(shape, dtype=int) for shape in self.shapes])
        found = {0, 1, size // 3, size - 1, size, size + 9, filled[0] + 1, filled[-1] - 1}
        return sorted(int(k) for k in found | set(filled.tolist()) | set(ends.tolist()) if k >= 0)


def reference(scores, k, among=None):
    return Sorted(scores, among).top(k)


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


def leaf_shapes(size):
    """Of a tree of `size` scores, with scalars between a kernel and vectors."""
    shapes = [(3, 3, 64, 256), (), None, (1,), (3, 1, 7, 11)]
    rest = size - sum(np.prod(shape, dtype=int) for shape in shapes if shape is not None)
    return [(rest,) if shape is None else shape for shape in shapes]


MANY = 1 << 18


def float32(bits):
    return np.asarray(bits, np.uint32).view(np.float32)


def signs(draw, shape):
    return draw.integers(0, 2, shape, np.uint32) << np.uint32(31)


def some(value, share):
    return lambda draw, shape: np.where(draw.random(shape) < share, value, draw.normal(size=shape))


HARD = {
    "all equal": lambda draw, shape: np.full(shape, -0.25),
    "all zero": lambda draw, shape: np.zeros(shape),
    "signed zeros": lambda draw, shape: float32(signs(draw, shape)),
    "denormals": lambda draw, shape: float32(signs(draw, shape) | draw.integers(0, 300, shape, np.uint32)),
    "one infinity": lambda draw, shape: draw.random(shape) if shape else np.inf,
    "some infinite": some(np.inf, 0.4),
    "some minus infinite": some(-np.inf, 0.7),
    "some NaN": some(np.nan, 0.01),
    "most NaN": some(-np.nan, 0.9),
    "negative": lambda draw, shape: -draw.random(shape),
    "few levels": lambda draw, shape: draw.integers(-1, 2, shape),
    "one leaf tied": lambda draw, shape: np.full(shape, 0.5) if 256 in shape else draw.random(shape),
    # every other bit pattern across the edge between two bins of the first histogram
    "neighbours": lambda draw, shape: float32(0x3F7F8000 + draw.integers(0, 1 << 16, shape, np.uint32)),
    "any bits": lambda draw, shape: float32(draw.integers(0, 1 << 32, shape, np.uint32)),
}


@pytest.fixture(scope="module")
def pick():
    return jax.jit(select.top_k)


@pytest.mark.parametrize("kind", HARD)
def test_top_k_is_the_stable_sort_on_every_hard_input(kind, pick):
    draw = np.random.default_rng(MANY)
    scores = [np.asarray(HARD[kind](draw, shape), np.float32) for shape in leaf_shapes(MANY)]
    among = [np.asarray(draw.random(shape) < 0.6) for shape in leaf_shapes(MANY)]
    for candidates in (None, among):
        expected = Sorted(scores, candidates)
        for k in expected.telling_counts():
            assert same(pick(scores, k, candidates), expected.top(k)), k


def cut_of(keys, k):
    """Of plain integers: the k-th largest, how many are larger and how many equal."""
    key = 2**32 - 1 if k == 0 else 0 if k > len(keys) else int(np.sort(keys)[-k])
    return key, int((keys > key).sum()), int((keys == key).sum())


KEYS = {
    "any": lambda draw, n: draw.integers(0, 1 << 32, n, np.uint32),
    "of one bin": lambda draw, n: np.uint32(0xABCD0000) + draw.integers(0, 1 << 16, n, np.uint32),
    "of three bins": lambda draw, n: np.uint32(0x8000FFF0) + draw.integers(0, 0x10020, n, np.uint32),
    "edges of bins": lambda draw, n: draw.integers(0, 4, n, np.uint32) * np.uint32(0xFFFF),
    "far apart": lambda draw, n: draw.choice(np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1], np.uint32), n),
    "none": lambda draw, n: np.zeros(n, np.uint32),
    "all highest": lambda draw, n: np.full(n, 2**32 - 1, np.uint32),
}


@pytest.mark.parametrize("large", [select.LARGE, 1], ids=["three histograms", "two"])
@pytest.mark.parametrize("kind", KEYS)
def test_both_searches_find_the_same_cut_with_exact_counts(kind, large, monkeypatch):
    monkeypatch.setattr(select, "LARGE", large)
    keys = KEYS[kind](np.random.default_rng(0), 3001)
    leaves = [keys[0], keys[1:2401].reshape(3, 2, 4, 100), keys[2401:]]
    searches = [
        jax.jit(lambda *given: select._by_halving(*given)),
        jax.jit(lambda *given: select._by_histogram(*given)),
    ]
    for k in (0, 1, 2, 700, 1500, 3000, 3001, 3002, 2**31 - 1):
        for search in searches:
            assert tuple(int(part) for part in search(leaves, jnp.int32(k))) == cut_of(keys, k), k


@pytest.mark.parametrize("search", [select._by_halving, select.locate])
def test_a_cut_counts_exactly_where_float32_would_not(search):
    size = 2**24 + 4
    keys = jnp.full(size, 5, jnp.uint32).at[size // 2].set(3)
    search = jax.jit(search)
    assert tuple(int(part) for part in search([keys], jnp.int32(size - 1))) == (5, 0, size - 1)
    assert tuple(int(part) for part in search([keys], jnp.int32(size))) == (3, size - 1, 1)


def test_only_a_cpu_makes_histograms():
    def scatters(platform):
        shapes = [jax.ShapeDtypeStruct(shape, jnp.uint32) for shape in leaf_shapes(MANY)]
        traced = jax.jit(select.locate).trace(shapes, 7)
        return "scatter" in traced.lower(lowering_platforms=(platform,)).as_text()

    assert scatters("cpu")
    assert not any(scatters(platform) for platform in ("tpu", "cuda"))


PLACES = [
    ((96, 40, 40), P(None, "a")),
    ((64, 3, 8, 16), P(("a", "b"))),
    ((7, 31), P()),
    ((16, 2, 64, 48), P("b", None, None, "a")),
    ((), P()),
    ((9, 4, 32), P(None, None, ("b", "a"))),
]


@pytest.mark.parametrize("kind", ["few levels", "any bits", "all equal"])
def test_many_scores_sharded_on_any_axes_give_the_same_mask_and_move_only_counts(kind):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    draw = np.random.default_rng(2)
    scores = [np.asarray(HARD[kind](draw, shape), np.float32) for shape, _ in PLACES]
    among = [np.asarray(draw.random(shape) < 0.8) for shape, _ in PLACES]
    assert sum(s.size for s in scores) > MANY
    places = [NamedSharding(mesh, spec) for _, spec in PLACES]
    pick = jax.jit(select.top_k, out_shardings=places)
    placed = jax.device_put((scores, among), (places, places))
    expected = Sorted(scores, among)
    for k in expected.telling_counts():
        assert same(pick(placed[0], k, placed[1]), expected.top(k)), k
    text = pick.lower(placed[0], 77, placed[1]).compile().as_text()
    assert "scatter" in text
    assert "all-reduce" in text
    moved = ("all-gather", "all-to-all", "collective-permute", "sort(")
    assert [word for word in moved if word in text] == []


def test_each_member_of_a_population_gets_its_own_count_of_many_scores(pick):
    draw = np.random.default_rng(3)
    members = [
        [np.asarray(HARD[kind](draw, shape), np.float32) for shape in leaf_shapes(MANY)]
        for kind in ("few levels", "any bits", "one leaf tied")
    ]
    stacked = [np.stack(leaves) for leaves in zip(*members, strict=True)]
    k = np.array([9000, 200_000, 100_001], np.int32)
    chosen = jax.jit(jax.vmap(select.top_k))(stacked, k)
    for i, scores in enumerate(members):
        assert same([leaf[i] for leaf in chosen], pick(scores, k[i]))
        assert same([leaf[i] for leaf in chosen], reference(scores, k[i]))


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("restricted", [False, True])
def test_selection_over_a_trial_axis_is_every_trials_own_with_its_own_counts(each, restricted):
    draw, trials = np.random.default_rng(5), 4
    scores = {str(i): draw.integers(0, 4, (trials, *s)).astype(np.float32) for i, s in enumerate(SHAPES)}
    among = {name: draw.random(leaf.shape) < 0.9 for name, leaf in scores.items()}
    scores["bias"] = among["bias"] = None
    counts = np.array([0, 3, 17, 70], np.int32)  # of 118 scores, all amid ties
    if each:
        counts = {"0": counts // 3, "1": counts // 2, "2": counts // 12, "bias": None}
    given = (scores, counts, among) if restricted else (scores, counts)
    select_one = select.top_k_each if each else select.top_k
    chosen = jax.jit(jax.vmap(select_one))(*given)
    for i in range(trials):
        own = jax.tree.map(lambda x: x[i], given)  # noqa: B023
        mine = jax.tree.map(lambda x: x[i], chosen)  # noqa: B023
        assert jax.tree.all(jax.tree.map(np.array_equal, mine, jax.jit(select_one)(*own)))
        names = [[name] for name in "012"] if each else [list("012")]
        for group in names:
            k = own[1][group[0]] if each else own[1]
            allowed = [own[2][name] for name in group] if restricted else None
            assert sum(np.count_nonzero(mine[name]) for name in group) == k
            assert same([mine[n] for n in group], reference([own[0][n] for n in group], k, allowed))


@pytest.mark.parametrize("restricted", [False, True])
def test_leaves_of_one_shape_are_chosen_together_each_by_its_own_count(restricted):
    draw = np.random.default_rng(6)
    shapes = [(4, 5), (7,), (4, 5), (), (4, 5), (7,), (5, 4)]
    scores = [draw.integers(0, 3, shape).astype(np.float32) for shape in shapes]
    among = [np.asarray(draw.random(shape) < 0.8) for shape in shapes] if restricted else None
    counts = [3, 0, 11, 1, 20, 6, 5]
    pick = jax.jit(select.top_k_each)
    chosen = pick(scores, counts, among) if restricted else pick(scores, counts)
    for i, (leaf, k) in enumerate(zip(scores, counts, strict=True)):
        assert same([chosen[i]], reference([leaf], k, [among[i]] if restricted else None)), i
    text = pick.lower(scores, counts).as_text()
    assert text.count('"stablehlo.scatter"') == 4 * len(select.FEW)  # for the four shapes


def test_leaves_chosen_by_themselves_move_only_counts_between_devices():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    shapes = {"x": (16, 24), "y": (16, 24), "z": (8, 6)}
    draw = np.random.default_rng(7)
    scores = {name: draw.integers(0, 9, shape).astype(np.float32) for name, shape in shapes.items()}
    counts = {"x": 100, "y": 7, "z": 30}
    places = {name: NamedSharding(mesh, P("a", "b")) for name in shapes}
    pick = jax.jit(select.top_k_each, out_shardings=places)
    placed = jax.device_put(scores, places)
    for name, mask in pick(placed, counts).items():
        assert same([mask], reference([scores[name]], counts[name])), name
    text = pick.lower(placed, counts).compile().as_text()
    assert "all-reduce" in text
    moved = ("all-gather", "all-to-all", "collective-permute", "sort(")
    assert [word for word in moved if word in text] == []


def test_a_new_count_of_many_scores_compiles_nothing():
    pick = jax.jit(lambda scores, k: select.top_k(scores, k))
    scores = jnp.linspace(-1, 1, MANY)
    for k in (1, 4, MANY // 2, MANY):
        assert int(pick(scores, k).sum(dtype=jnp.int32)) == k
    assert pick._cache_size() == 1


def test_the_cut_through_all_convolutions_of_resnet50_is_exact():
    model = discovery.build(giung2_ext.models, "model", "resnet", num_classes=1000)
    shapes, _ = jax.eval_shape(
        lambda key: states.init_variables(model, key, (64, 64, 3)), jax.random.key(0)
    )
    masks = masking.dense(shapes, "conv")
    draw = np.random.default_rng(4)
    scores = trees.map_present(
        lambda m: draw.integers(0, 1 << 20, m.shape, np.uint32).astype(np.float32), masks
    )
    leaves = trees.present(scores)
    flat = np.concatenate([leaf.ravel() for leaf in leaves])
    assert (len(leaves), flat.size) == (53, 23_454_912)
    k = 18_763_929
    cut = np.partition(flat, flat.size - k)[flat.size - k]
    expected = flat > cut
    ties = np.flatnonzero(flat == cut)
    room = k - int(np.count_nonzero(expected))
    assert 0 < room < len(ties)
    expected[ties[:room]] = True
    chosen = trees.present(jax.jit(select.top_k)(scores, k))
    chosen = np.concatenate([np.asarray(leaf).ravel() for leaf in chosen])
    assert np.count_nonzero(chosen) == k
    assert np.array_equal(chosen, expected)
