import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import kernels, make_bench, make_method

from giung2_ext.core import allocate, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.methods import _ramp
from giung2_ext.training.optimizers import edit_slots

PARAMS = {"a": {"kernel": (8, 30)}, "b": {"kernel": (16, 10)}, "cls": {"kernel": (20, 4), "bias": (4,)}}


def draw(seed=0):
    generator = np.random.default_rng(seed)
    fill = lambda shape: jnp.asarray(generator.normal(size=shape), jnp.float32)  # noqa: E731
    return jax.tree.map(fill, PARAMS, is_leaf=lambda shape: isinstance(shape, tuple))


def dense_masks(params):
    return masking.dense(params, "kernels")


def states_of(method, steps=12, masks=None):
    """The method's state after every update, on weights that wander, without a network."""
    trainable, state = method.init(None, draw(), masks or dense_masks(draw()))
    update = jax.jit(
        lambda t, s, g, step: method.update(t, (), s, g, step, jax.random.key(step), edit_slots)
    )
    found = [(trainable, state, None)]
    for step in range(steps):
        trainable = jax.tree.map(lambda w, d: w + 0.3 * d, trainable, draw(100 + step))
        if not method.latent:
            trainable = masking.apply(method.masks(trainable, state), trainable)
        grads = draw(200 + step)
        before = trainable
        if method.due(step):
            trainable, _, state = update(trainable, state, grads, step)
        found.append((trainable, state, (before, grads)))
    return found


def counts(masks_of, trainable, state):
    return [int(m.sum()) for m in kernels(masks_of(trainable, state))]


@pytest.mark.parametrize("name", ["gradual", "ste"])
@pytest.mark.parametrize(
    ("schedule", "allocation"),
    [("cubic", "global"), ("exponential", "global"), ("linear", "uniform"), ("exponential", "erk")],
)
def test_counts_are_exactly_those_of_the_schedule_and_the_allocation(name, schedule, allocation):
    options = dict(density=0.15, begin=2, end=9, every=3, schedule=schedule, allocation=allocation)
    method, masks = make_method(name, **options), dense_masks(draw())
    assert [step for step in range(12) if method.due(step)] == [5, 8, 9]
    assert [n for n in range(12) if method.settled(n)] == [10, 11]
    size = masking.size(masks)
    full = [240, 160, 80]
    target = [allocate.keep_count(0.15, size)]
    if allocation != "global":
        target = [int(n) for n in trees.present(allocate.layer_counts(masks, 0.15, allocation))]
    masks_of = jax.jit(method.masks)
    for step, (trainable, state, _) in enumerate(states_of(method)):
        done = max([0] + [(at - 2) / 7 for at in (5, 8, 9) if at < step])
        if schedule == "exponential":
            left = (0.15**done - 0.15) / 0.85
        else:
            left = (1 - done) ** (3 if schedule == "cubic" else 1)
        starts = [size] if allocation == "global" else full
        expected = [t + int((s - t) * left + 1e-6) for s, t in zip(starts, target, strict=True)]
        found = counts(masks_of, trainable, state)
        assert ([sum(found)] if allocation == "global" else found) == expected


@pytest.mark.parametrize("criterion", ["magnitude", "saliency", "random"])
def test_gradual_masks_are_nested_and_lose_the_lowest_scores(criterion):
    method = make_method("gradual", density=0.2, end=9, every=3, criterion=criterion)
    found = states_of(method)
    for (_, old, _), (after, new, (before, grads)) in itertools.pairwise(found):
        assert masking.nested(new.masks, old.masks)
        flat = [np.concatenate([np.asarray(x).ravel() for x in kernels(t)])
                for t in (old.masks, new.masks, before, grads, after)]  # fmt: skip
        was, now, weight, grad, stored = flat
        assert not stored[~now].any()
        gone = was & ~now
        score = {"magnitude": abs(weight), "saliency": abs(weight * grad)}.get(criterion)
        if gone.any() and score is not None:
            assert score[gone].max() <= score[now].min()
    largest = np.abs(kernels(draw())[0]).ravel() > 1.5
    kept = np.asarray(found[-1][1].masks["a"]["kernel"]).ravel()
    assert criterion != "random" or 0.05 < kept[largest].mean() < 0.6


def test_gradual_pruning_empties_slots_and_leaves_the_other_weights_alone():
    bench = make_bench("gradual", optimizer=("adam", 0.9), masks=dense_masks)
    *_, before, after = bench.run(7)  # step 6 is due
    slots = after.optimizer[-2].nu
    for old, new, weight, slot in zip(
        *map(kernels, (bench.masks_of(before), bench.masks_of(after), after.trainable, slots)), strict=True
    ):
        assert not np.asarray(slot)[np.asarray(~new)].any()
        assert not np.asarray(weight)[np.asarray(~new)].any()
        assert (old & ~new).any()


def test_a_straight_through_mask_is_of_the_largest_and_what_it_hides_trains_on():
    method = make_method("ste", density=0.2, end=0)
    bench = make_bench(method, masks=dense_masks)
    states = list(bench.run(6))
    moved = returned = 0
    for before, after in itertools.pairwise(states):
        for old, new, was, now in zip(
            *map(
                kernels, (bench.masks_of(before), bench.masks_of(after), before.trainable, after.trainable)
            ),
            strict=True,
        ):
            hidden = np.asarray(~old)
            moved += (np.asarray(was)[hidden] != np.asarray(now)[hidden]).sum()
            returned += int((new & ~old).sum())
        flat = lambda tree: np.concatenate([np.asarray(x).ravel() for x in kernels(tree)])  # noqa: E731
        mask, sizes = flat(bench.masks_of(after)), np.abs(flat(after.trainable))
        assert sizes[mask].min() >= sizes[~mask].max()
        assert mask.sum() == allocate.keep_count(0.2, mask.size)
    assert moved > 0
    assert returned > 0
    weights, pull = jax.vjp(lambda t: method.weights(t, after.method), after.trainable)
    ones = jax.tree.map(jnp.ones_like, weights)
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(pull(ones)[0]))  # pruned places included


@pytest.mark.parametrize(("pattern", "density"), [("2:4", 0.5), ("3:4", 0.75)])
@pytest.mark.parametrize(
    "make",
    [
        functools.partial(make_method, "gradual", allocation="global"),
        functools.partial(make_method, "gradual", allocation="uniform", criterion="saliency"),
        functools.partial(make_method, "gradual", criterion="random", schedule="linear"),
        functools.partial(make_method, "ste", allocation="uniform"),
    ],
    ids=["global", "saliency", "random", "ste"],
)
def test_every_criterion_comes_to_the_pattern_and_never_below_it(make, pattern, density):
    method = make(density=density, end=9, every=3, structure=pattern)
    of, masks_of = int(pattern[2:]), jax.jit(method.masks)
    for trainable, state, _ in states_of(method):
        for mask in kernels(masks_of(trainable, state)):
            groups = np.asarray(mask).reshape(-1, of, mask.shape[-1]).sum(1)
            assert (groups >= of * density).all()
    assert (groups == of * density).all()


def test_what_cannot_be_is_refused():
    for wrong, message in (
        (dict(structure="2:4", density=0.1), "ends at density 0.5, got 0.1"),
        (dict(schedule="cubik"), "did you mean 'cubic'"),
        (dict(allocation="erc"), "did you mean 'erk'"),
        (dict(criterion="magnitud"), "did you mean 'magnitude'"),
        (dict(structure="2:4", density=0.5, allocation="erk"), "keeps 0.5 of every layer"),
        (dict(begin=5, end=4), "0 <= begin <= end"),
        (dict(density=0.0), r"in \(0, 1\]"),
    ):
        with pytest.raises(Refusal, match=message):
            make_method("gradual", **wrong)


def test_the_last_update_is_at_the_end_whatever_the_interval():
    assert _ramp.update_steps(10_000, 25_000, 1_000)[-2:] == [24_000, 25_000]
    assert _ramp.update_steps(0, 10, 4) == [4, 8, 10]
    assert _ramp.update_steps(7, 7, 3) == [7]  # at once


def test_a_pattern_is_counted_in_whole_weights_and_needs_layers_that_divide():
    masks = {"a": {"kernel": np.ones((12, 5), bool)}, "b": {"kernel": np.ones((9, 7), bool)}}
    ramp = _ramp.make_ramp("gradual", 0.333, "cubic", 0, 9, 3, "global", "1:3")
    assert ramp.targets(masks) == 20 + 21  # a third in floats would lose one
    method = make_method("ste", density=0.5, end=9, structure="2:4")
    with pytest.raises(Refusal, match="b/kernel"):
        method.init(None, jax.tree.map(np.float32, masks), masks)
