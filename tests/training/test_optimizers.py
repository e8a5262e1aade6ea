import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from giung2_ext.core.errors import Refusal
from giung2_ext.training.optimizers import edit_slots, make_optimizer

PARAMS = {"a": {"kernel": jnp.ones((130, 140))}, "b": {"a": {"kernel": jnp.ones((5, 4))}}, "c": jnp.ones(3)}


def filled(optimizer):
    state = optimizer.init(PARAMS)
    return jax.tree.map(lambda x: jnp.full_like(x, 7), state)


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [(make_optimizer("sgd", 0.9, 1e-4), 1), (make_optimizer("adam", 0.9, 0.0, 1.0), 2)],
    ids=["sgd", "adam"],
)
def test_slots_are_found_by_path_and_nothing_else_is_touched(optimizer, slots):
    clear = {"a": {"kernel": jnp.zeros((130, 140), bool)}, "b": {"a": {"kernel": None}}, "c": None}
    before = filled(optimizer)
    after = edit_slots(before, lambda slot, mask: jnp.where(mask, slot, 0), clear)
    changed = [
        jax.tree_util.keystr(path)
        for (path, x), y in zip(
            jax.tree_util.tree_flatten_with_path(before)[0], jax.tree.leaves(after), strict=True
        )
        if not np.array_equal(x, y)
    ]
    assert len(changed) == slots
    assert all("'a'" in name and "'b'" not in name for name in changed)


def test_factored_statistics_and_scalars_are_left_alone():
    before = filled(optax.adafactor(1e-3, min_dim_size_to_factor=64))
    masks = jax.tree.map(lambda p: jnp.zeros(p.shape, bool), PARAMS)
    after = edit_slots(before, lambda slot, mask: jnp.where(mask, slot, 0), masks)
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        small = x.shape in ((5, 4), (3,))  # too small to be factored: real slots
        assert np.array_equal(x, y) != small


def test_a_companion_tree_with_fewer_leaves_still_fits():
    before = filled(make_optimizer("sgd", 0.9))
    after = edit_slots(before, lambda s, m, n: s * m * n, {"c": jnp.full(3, 2.0)}, {"c": jnp.full(3, 3.0)})
    assert after[0].trace["c"].tolist() == [42.0] * 3


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(Refusal, match="unknown optimizer 'sdg'; known: adam, sgd; did you mean 'sgd'"):
        make_optimizer("sdg", 0.9)
