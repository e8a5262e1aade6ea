import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import kernels, make_bench, make_method

from giung2_ext.core.errors import Refusal
from giung2_ext.methods import _swap
from giung2_ext.training.optimizers import edit_slots


def masks_over(bench, steps):
    found = [[np.asarray(m) for m in kernels(bench.masks)]]
    for state in bench.run(steps):
        found.append([np.asarray(m) for m in kernels(bench.masks_of(state))])
    return found


@pytest.mark.parametrize("name", ["set", "snfs"])
def test_an_update_follows_a_step_of_the_optimizer_and_swaps_what_the_cosine_says(name):
    bench = make_bench(name)  # every 3 steps, to step 12
    before, after = bench.state, next(bench.run(1))  # step 0 is due
    assert not bench.method.replaces_step
    for old, new, was, weight in zip(
        *map(kernels, (bench.masks, bench.masks_of(after), before.trainable, after.trainable)), strict=True
    ):
        kept = np.asarray(old & new)
        assert (np.asarray(was)[kept] != np.asarray(weight)[kept]).any()
        assert not np.asarray(weight)[np.asarray(~old)].any()  # grown ones start at 0
        assert int((new & ~old).sum()) <= int(int(old.sum()) * 0.3)
        assert int(new.sum()) == int(old.sum())
    changed = [
        any((a != b).any() for a, b in zip(*two, strict=True))
        for two in itertools.pairwise(masks_over(bench, 14))
    ]
    assert [i for i, moved in enumerate(changed) if moved] == [0, 3, 6, 9]


def test_set_grows_anywhere_and_by_the_runs_key():
    method = make_method("set", every=1, stop=10, drop=0.5)
    params = {"w": {"kernel": jnp.arange(1.0, 1001.0).reshape(20, 50)}}
    masks = {"w": {"kernel": jnp.arange(1000).reshape(20, 50) >= 800}}
    trainable, state = method.init(None, params, masks)
    grown = []
    for seed in (0, 0, 1):
        key = jax.random.key(seed)
        _, _, new = method.update(trainable, (), state, None, jnp.int32(0), key, edit_slots)
        kept = np.asarray(new.masks["w"]["kernel"])
        assert kept.sum() == 200
        assert kept.ravel()[900:].all()  # the largest hundred stay
        grown.append(kept & ~np.asarray(masks["w"]["kernel"]))
    assert np.array_equal(grown[0], grown[1])
    assert not np.array_equal(grown[0], grown[2])
    places = np.flatnonzero(grown[0])
    assert 60 < len(places) <= 100  # some of those dropped may be drawn again
    assert 250 < places.mean() < 550


def test_snfs_grows_by_the_moving_average_of_the_dense_gradients():
    method = make_method("snfs", every=4, begin=3, stop=20, drop=0.5, momentum=0.5)
    params = {"w": {"kernel": jnp.array([[5.0, 1.0, 4.0, 0.0, 0.0, 0.0]])}}
    masks = {"w": {"kernel": jnp.array([[True, True, True, False, False, False]])}}
    trainable, state = method.init(None, params, masks)
    average = np.zeros(6)
    for step, grad in enumerate(
        ([9, 9, 9, 8, 0, 0], [9, 9, 9, 0, -9, 0], [9, 9, 9, 0, 0, 0], [0, 0, 0, 1, 0, 5])
    ):
        grads = {"w": {"kernel": jnp.array([grad], jnp.float32)}}
        trainable, state = method.follow(trainable, state, grads, jnp.int32(step))
        average = 0.5 * average + 0.5 * np.array(grad)
    assert np.allclose(state.average["w"]["kernel"][0], average)
    _, _, new = method.update(trainable, (), state, grads, jnp.int32(3), None, edit_slots)
    # of three one is dropped, the second, and of what is not kept its own average is the largest
    assert average.argmax() != 5
    assert new.masks["w"]["kernel"].tolist() == [[True, True, True, False, False, False]]
    state = state._replace(average={"w": {"kernel": jnp.array([[0.0, 1.0, 0.0, 1.5, -2.0, 1.9]])}})
    _, _, new = method.update(trainable, (), state, grads, jnp.int32(3), None, edit_slots)
    assert new.masks["w"]["kernel"].tolist() == [[True, False, True, False, True, False]]
    assert method.dense_grads == "all"


@pytest.mark.parametrize("decay", ["constant", "linear", "cubic"])
def test_what_is_dropped_falls_as_asked_for(decay):
    times = _swap.make_times("set", 10, 20, 60, 0.5, decay)
    assert [s for s in range(100) if times.due(s)] == [20, 30, 40, 50]
    expected = {"constant": [1] * 4, "linear": [1, 0.75, 0.5, 0.25], "cubic": [1, 0.75**3, 0.125, 0.25**3]}
    assert np.allclose(times.fractions / 2**31, np.multiply(expected[decay], 0.5), atol=1e-9)


def test_times_that_cannot_be_are_refused():
    for wrong in (dict(every=0), dict(begin=5, stop=5), dict(drop=1.0), dict(decay="cosin")):
        with pytest.raises(Refusal):
            make_method("set", **(dict(every=1, stop=10) | wrong))
    with pytest.raises(Refusal, match=r"momentum in \[0, 1\)"):
        make_method("snfs", momentum=1.0)
