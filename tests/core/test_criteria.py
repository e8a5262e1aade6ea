import jax
import jax.numpy as jnp
import numpy as np

from giung2_ext.core import allocate, criteria
from giung2_ext.core import masks as masking


def tree(draw, alive):
    params = {"a": draw.normal(size=(30, 20)), "b": draw.normal(size=(8,)), "c": draw.normal(size=(20, 9))}
    params = {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}
    masks = {k: None if k == "b" else jnp.asarray(draw.random(v.shape) < alive) for k, v in params.items()}
    return masking.apply(masks, params), masks


def test_pruning_keeps_exactly_k_survivors_and_nests():
    params, masks = tree(np.random.default_rng(0), 0.6)
    alive = int(masking.kept(masks))
    for keep in (1, alive // 2, alive - 1, alive):
        new = jax.jit(criteria.prune_magnitude)(params, masks, keep)
        assert int(masking.kept(new)) == keep
        assert bool(masking.nested(new, masks))
        assert new["b"] is None


def test_no_kept_weight_is_smaller_than_a_pruned_survivor():
    params, masks = tree(np.random.default_rng(1), 0.8)
    new = criteria.prune_magnitude(params, masks, 200)
    kept = np.concatenate([np.abs(params[k])[new[k]] for k in "ac"])
    gone = np.concatenate([np.abs(params[k])[masks[k] & ~new[k]] for k in "ac"])
    assert kept.min() >= gone.max()


def test_survivors_that_became_exactly_zero_are_kept_before_anything_pruned():
    params = {"a": jnp.array([0.0, 0.0, 1.0, 0.0])}
    masks = {"a": jnp.array([False, True, True, True])}
    assert criteria.prune_magnitude(params, masks, 2)["a"].tolist() == [False, True, True, False]


def test_random_scores_differ_between_leaves_and_keys(key):
    masks = {"a": jnp.ones((50,), bool), "b": None, "c": jnp.ones((50,), bool)}
    scores = criteria.random(key, masks)
    assert scores["b"] is None
    assert not np.array_equal(scores["a"], scores["c"])
    other = criteria.random(jax.random.fold_in(key, 1), masks)
    assert not np.array_equal(scores["a"], other["a"])


def original_rule(params, kept, ratio):
    """The original suite's masks and its k, emulated in NumPy's float32.

    A mask of floats for every leaf; scores fl(fl(|w| + 1) - 1), infinite where nothing is ever pruned;
    everything that reaches the k-th largest of all scores is kept, whatever it was before.
    """
    one = np.float32(1)
    free = sum(w.size for name, w in params.items() if name not in kept)
    alive = np.float32(free + sum(int(m.sum()) for m in kept.values())) - np.float32(free)
    k = int(np.float32(free) + alive * np.float32(ratio))
    scores = {name: (np.abs(params[name]) + one) - one for name in kept}
    every = np.concatenate([np.full(free, np.inf, np.float32), *(s.ravel() for s in scores.values())])
    cut = np.partition(every, every.size - k)[every.size - k]
    return {name: score >= cut for name, score in scores.items()}, k - free


LARGE = {"Conv_0": (3, 3, 256, 256), "Conv_1": (1, 1, 1024, 512), "Conv_2": (7, 7, 3, 64), "cls": (100, 10)}


def laplace(seed, shapes):
    """Weights as trained ones are spread, with each kernel's scale by its fan in."""
    draw = np.random.default_rng(seed)
    scale = {name: (2 / np.prod(shape[:-1])) ** 0.5 / 2 for name, shape in shapes.items()}
    return {name: draw.laplace(0, scale[name], shape).astype(np.float32) for name, shape in shapes.items()}


def pruned(params, kept):
    return {
        name: np.where(kept[name], w, np.float32(0)) if name in kept else w for name, w in params.items()
    }


def test_legacy_pruning_is_the_original_rule_bit_for_bit_over_cycles():
    compiled = jax.jit(criteria.prune_magnitude_legacy)
    excess = []
    kept = {name: np.ones(shape, bool) for name, shape in LARGE.items() if name != "cls"}
    for cycle in range(6):
        params = pruned(laplace(cycle, LARGE), kept)  # trained anew under the mask
        alive = sum(int(m.sum()) for m in kept.values())
        expected, k = original_rule(params, kept, 0.8)
        assert allocate.keep_count_legacy(0.8, alive, free=1000) == k
        masks = {**kept, "cls": None}
        for prune in (compiled, criteria.prune_magnitude_legacy)[: 1 + (cycle == 0)]:
            found = prune(params, masks, k)
            assert found.pop("cls") is None
            assert all(np.array_equal(found[name], expected[name]) for name in kept)
        assert all((expected[name] <= kept[name]).all() for name in kept)
        kept = expected
        excess.append(sum(int(m.sum()) for m in kept.values()) - k)
    assert min(excess) >= 0
    assert max(excess) > 1


def test_legacy_pruning_keeps_every_tie_of_the_rounded_scores_and_nothing_below():
    step = np.float32(2**-23)
    weights = np.array([8.4, 5.1, -5.4, 4.9, 4.6, 4.4, 0.3, 5.6], np.float32) * step
    masks = {"w": np.array([True] * 5 + [False, True, True])}
    # rounded to multiples of 2^-23: 8 5 5 5 5 (4) 0 6
    for keep, kept in ((1, [0]), (2, [0, 7]), (3, [0, 1, 2, 3, 4, 7]), (6, [0, 1, 2, 3, 4, 7])):
        found = jax.jit(criteria.prune_magnitude_legacy)({"w": weights}, masks, keep)
        assert np.flatnonzero(found["w"]).tolist() == kept


def test_where_the_original_brings_every_weight_back_legacy_pruning_stays_nested():
    draw = np.random.default_rng(1)
    kept = {"w": draw.random((40, 50)) < 0.5}
    params = pruned({"w": draw.laplace(0, 0.01, (40, 50)).astype(np.float32)}, kept)
    faint = kept["w"] & (draw.random((40, 50)) < 0.5)
    params["w"][faint] = draw.uniform(-5.9e-8, 5.9e-8, int(faint.sum())).astype(np.float32)
    params["free"] = np.ones(7, np.float32)
    theirs, k = original_rule(params, kept, 0.8)
    assert theirs["w"].all()  # the defect: its threshold is 0, which pruned weights reach too
    masks = {**kept, "free": None}
    ours = jax.jit(criteria.prune_magnitude_legacy)(params, masks, k)
    assert np.array_equal(ours["w"], kept["w"])
    exact = jax.jit(criteria.prune_magnitude)(params, masks, k)
    assert int(masking.kept(exact)) == k


def test_legacy_pruning_does_not_look_at_what_is_pruned():
    draw = np.random.default_rng(2)
    kept = {"w": draw.random((40, 50)) < 0.5}
    params = {"w": draw.laplace(0, 0.01, (40, 50)).astype(np.float32)}  # not 0 off the mask
    alive = int(kept["w"].sum())
    for keep in (1, alive // 2, alive):
        found = jax.jit(criteria.prune_magnitude_legacy)(params, kept, keep)
        clean = jax.jit(criteria.prune_magnitude_legacy)(pruned(params, kept), kept, keep)
        assert np.array_equal(found["w"], clean["w"])
        assert int(found["w"].sum()) == keep
    more = jax.jit(criteria.prune_magnitude_legacy)(params, kept, alive + 3)
    assert np.array_equal(more["w"], kept["w"])
