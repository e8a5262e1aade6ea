import jax
import jax.numpy as jnp
import numpy as np

from giung2_ext.core import criteria
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
