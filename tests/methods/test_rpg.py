import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import kernels, make_bench, make_method

from giung2_ext.core import masks as masking
from giung2_ext.core import rank, trees
from giung2_ext.core.errors import Refusal
from giung2_ext.methods import rpg
from giung2_ext.training.optimizers import edit_slots

PUBLISHED = dict(every=100, stop=0.901, ramp=0.9)  # of 100 epochs of 1,251 steps
NI, PRUNABLE = 125_100, 25_502_912


def dense_masks(params):
    return masking.dense(params, "kernels")


@functools.cache
def bench_of(optimizer=("sgd", 0.9, 5e-4), **options):
    method = make_method("rpg", **(dict(density=0.2, every=2, ni=20, ramp=0.5, stop=0.9) | options))
    return make_bench(method, optimizer=optimizer, masks=dense_masks)


# --- the published schedule


def test_updates_come_when_the_published_code_makes_them():
    times = rpg.make_times(NI, **PUBLISHED)
    assert (times.stop, times.rounds, times.updates) == (112_715, 1_125, 1_127)
    due = [step + 1 for step in range(NI) if times.due(step)]
    assert due == list(range(100, 112_701, 100))
    assert [n for n in (112_599, 112_600) if times.settled(n)] == [112_600]


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0.2, (0.8667, 0.669, 0.4475, 0.2994, 0.2003)),
        (0.1, (0.8149, 0.5626, 0.3166, 0.1781, 0.1002)),
        (0.05, (0.7662, 0.4732, 0.2239, 0.1059, 0.0501)),
        (0.02, (0.7063, 0.3764, 0.1417, 0.0533, 0.0201)),
    ],
)
def test_the_density_falls_as_published_and_counts_are_those_of_float64(density, expected):
    found = [rpg.density_at(r, density, 1_125) for r in (100, 281, 562, 843, 1_124)]
    assert np.abs(np.subtract(found, expected)).max() < 6e-5
    times = rpg.make_times(NI, **PUBLISHED)
    counts = rpg.kept_counts(PRUNABLE, density, times)
    assert counts[0] == PRUNABLE
    assert len(counts) == 1_127
    assert (counts[1_125:] == PRUNABLE - round((1 - density) * PRUNABLE)).all()
    assert (np.diff(counts[:1_126]) < 0).all()
    # the published code removes one weight fewer than it counts, and none at first
    assert (rpg.kept_counts(PRUNABLE, density, times, off_by_one=True)[1:] == counts[1:] + 1).all()
    assert rpg.kept_counts(PRUNABLE, density, times, off_by_one=True)[0] == PRUNABLE


def test_a_run_that_would_never_reach_its_density_is_refused():
    with pytest.raises(Refusal, match="91 updates after the first and there are 90; lower every or ramp"):
        rpg.make_times(10_000, 100, 0.901, 0.9)
    assert rpg.make_times(10_000, 100, 0.75, 0.73).settled(7_400)
    for wrong in (dict(rank_in="growth"), dict(swap=1.0), dict(density=0.0), dict(tolerance=-0.1)):
        with pytest.raises(Refusal):
            make_method("rpg", ni=1_000, every=10, **wrong)


# --- one update


def top(scores, count, among):
    order = [i for i in np.argsort(-scores, kind="stable") if among[i]]
    found = np.zeros(len(scores), bool)
    found[order[:count]] = True
    return found


def literal_update(weights, masks, grads, keep, fraction):
    """The published update of flat leaves, by plain sorts; exact in what it removes."""
    flat = top(np.abs(np.concatenate(weights)), keep, np.concatenate(masks))
    pruned = np.split(flat, np.cumsum([len(w) for w in weights])[:-1])
    found = []
    for weight, left, grad in zip(weights, pruned, grads, strict=True):
        alive = int(left.sum())
        dropped = int(alive * fraction)
        kept = top(np.abs(weight), alive - dropped, left)
        new = kept | top(np.abs(grad), dropped, ~kept)
        found.append((new, np.where(left & new, weight, 0)))
    return found


def test_updates_are_the_published_ones_by_plain_sorts():
    draw = np.random.default_rng(0)
    method = make_method("rpg", density=0.1, every=5, ni=100, ramp=0.5, stop=0.9, rank_weight=0.0)
    times = rpg.make_times(100, 5, 0.9, 0.5)
    shapes = {
        "a": {"kernel": (3, 3, 2, 5)},
        "b": {"kernel": (12, 7)},
        "cls": {"kernel": (9, 4), "bias": (4,)},
    }
    fill = lambda: jax.tree.map(  # noqa: E731
        lambda s: draw.normal(size=s).astype(np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )
    params, masks = fill(), masking.dense(fill(), "kernels")
    trainable, state = method.init(None, params, masks)
    size = masking.size(masks)
    update = jax.jit(lambda t, s, g, step: method.update(t, (), s, g, step, None, lambda o, *rest: o))
    for r in range(times.updates):
        trainable = jax.tree.map(
            lambda w: w + 0.1 * jnp.asarray(draw.normal(size=w.shape), w.dtype), trainable
        )
        trainable = masking.apply(state.masks, trainable)
        grads, step = fill(), (r + 1) * 5
        flat = lambda tree: [np.asarray(leaf).ravel() for leaf in kernels(tree)]  # noqa: E731
        keep = size - round((1 - rpg.density_at(r, 0.1, times.rounds)) * size)
        fraction = 0.15 * (1 + np.cos(np.pi * step / 90))
        expected = literal_update(flat(trainable), flat(state.masks), flat(grads), keep, fraction)
        trainable, _, state = update(trainable, state, grads, jnp.int32(step - 1))
        assert int(masking.kept(state.masks)) == keep
        for mask, weight, (new, value) in zip(flat(state.masks), flat(trainable), expected, strict=True):
            assert np.array_equal(mask, new)
            assert np.array_equal(weight, value)


def test_the_first_update_prunes_nothing_and_takes_the_place_of_a_step():
    bench = bench_of()
    *_, before, after = [bench.state, *bench.run(2)]  # step 1 is due
    assert jax.tree.all(jax.tree.map(np.array_equal, before.trainable, after.trainable))
    assert int(masking.kept(bench.masks_of(after))) == masking.size(bench.masks)


def test_density_is_exact_after_every_update_and_stays_when_it_is_reached():
    bench, times = bench_of(), rpg.make_times(20, 2, 0.9, 0.5)
    size = masking.size(bench.masks)
    counts = rpg.kept_counts(size, 0.2, times)
    moved_after = False
    for state in bench.run(20):
        consumed = int(state.step)
        r = min(consumed // 2, times.updates) - 1
        assert int(masking.kept(bench.masks_of(state))) == (counts[r] if r >= 0 else size)
        assert times.settled(consumed) == (consumed >= 12)
        if consumed == 12:
            settled = [np.asarray(m) for m in kernels(bench.masks_of(state))]
            of_layers = [int(m.sum()) for m in settled]
        if consumed > 12:  # the stationary phase: layers keep their counts and swap on
            now = [np.asarray(m) for m in kernels(bench.masks_of(state))]
            assert [int(m.sum()) for m in now] == of_layers
            moved_after |= any((m != n).any() for m, n in zip(now, settled, strict=True))
    assert moved_after


@pytest.mark.parametrize("optimizer", [("sgd", 0.9, 5e-4), ("adam", 0.9)], ids=["sgd", "adam"])
def test_what_grows_starts_at_zero_with_empty_slots(optimizer):
    bench = bench_of(optimizer)
    states = [bench.state, *bench.run(8)]
    grown_in_all = 0
    for before, after in itertools.pairwise(states):
        if not bench.method.due(int(before.step)):
            continue
        rule = after.optimizer[-2]
        slots = rule.trace if hasattr(rule, "trace") else rule.nu
        trees_ = (bench.masks_of(before), bench.masks_of(after), after.trainable, slots)
        for old, new, weight, slot in zip(*(map(np.asarray, kernels(t)) for t in trees_), strict=True):
            grown_in_all += (new & ~old).sum()
            assert not weight[~old].any()
            assert not slot[~old].any()
            assert weight[new & old].any()
    assert grown_in_all > 0


def test_a_weight_dropped_and_grown_at_once_keeps_its_value():
    method = make_method("rpg", density=0.5, every=1, ni=10, ramp=0.5, stop=0.9, swap=0.5, rank_weight=0.0)
    params = {"d": {"kernel": jnp.array([[3.0, 2.0, 0.1, 1.0]])}}
    trainable, state = method.init(None, params, masking.dense(params, "kernels"))
    grads = {"d": {"kernel": jnp.array([[0.0, 0.0, 9.0, 0.0]])}}  # the smallest is wanted back
    after, _, state = method.update(trainable, (), state, grads, jnp.int32(0), None, edit_slots)
    assert np.array_equal(after["d"]["kernel"], params["d"]["kernel"])
    assert state.masks["d"]["kernel"].all()


# --- the rank loss


def test_in_grow_the_rank_loss_moves_no_weight_but_chooses_what_grows():
    """Up to the first update that swaps, all is as without it; from there masks differ."""
    with_rank, without = bench_of(rank_weight=50.0), bench_of(rank_weight=0.0)
    same = []
    for a, b in zip(with_rank.run(6), without.run(6), strict=True):
        masks = zip(kernels(with_rank.masks_of(a)), kernels(without.masks_of(b)), strict=True)
        same.append(all(np.array_equal(x, y) for x, y in masks))
        if same[-1]:
            assert jax.tree.all(jax.tree.map(np.array_equal, a.trainable, b.trainable))
    assert same[:3] == [True] * 3  # updates after steps 2, 4 and 6; the first prunes nothing
    assert not same[-1]


def test_in_loss_the_rank_loss_moves_weights_from_the_first_step_on():
    with_rank, without = bench_of(rank_weight=50.0, rank_in="loss"), bench_of(rank_weight=0.0)
    [a], [b] = with_rank.run(1), without.run(1)
    body = [
        name for name in trees.named_leaves(a.trainable) if name.endswith("kernel") and "cls" not in name
    ]
    for name, weight in trees.named_leaves(a.trainable).items():
        assert np.array_equal(weight, trees.named_leaves(b.trainable)[name]) == (name not in body)


def test_the_penalty_is_the_weighted_mean_over_all_kernels_but_the_classifiers():
    bench = bench_of(rank_weight=3.0, tolerance=0.2)
    weights = bench.weights(bench.state)
    body = [weights[name]["kernel"] for name in ("Dense_0", "Dense_1")]
    mean = np.mean([float(rank.kernel_loss(kernel, 0.2)) for kernel in body])
    loss, grads = jax.value_and_grad(bench.method.penalty)(weights, bench.state.method)
    assert float(loss) == pytest.approx(3 * mean, rel=1e-5)
    assert not grads["cls"]["kernel"].any()
    assert grads["Dense_1"]["kernel"].any()


# --- variants


def test_without_swaps_it_is_gradual_pruning_and_the_optimizer_steps_every_time():
    bench = bench_of(swap=0.0)
    assert not bench.method.replaces_step
    before = bench.state
    for state in bench.run(12):
        assert masking.nested(bench.masks_of(state), bench.masks_of(before))
        assert not np.array_equal(kernels(state.trainable)[0], kernels(before.trainable)[0])
        before = state
    assert int(masking.kept(bench.masks_of(before))) < masking.size(bench.masks)


def test_with_groups_growth_goes_by_the_mean_of_absolute_group_gradients():
    method = make_method("rpg", density=0.5, every=1, ni=10, ramp=0.5, stop=0.9, group=8)
    assert method.abs_over == 8
    params = {"d": {"kernel": jnp.arange(1.0, 41.0).reshape(5, 8)}}
    trainable, state = method.init(None, params, masking.dense(params, "kernels"))
    draw = np.random.default_rng(0)
    mean, groups = ({"d": {"kernel": jnp.asarray(draw.random((5, 8)), jnp.float32)}} for _ in range(2))
    by_pair, by_groups = trainable, trainable
    alone = make_method("rpg", density=0.5, every=1, ni=10, ramp=0.5, stop=0.9)
    two = alone.init(None, params, masking.dense(params, "kernels"))[1]
    for step in range(4):
        by_pair, _, state = method.update(
            by_pair, (), state, (mean, groups), jnp.int32(step), None, edit_slots
        )
        by_groups, _, two = alone.update(by_groups, (), two, groups, jnp.int32(step), None, edit_slots)
    assert np.array_equal(state.masks["d"]["kernel"], two.masks["d"]["kernel"])
    assert not state.masks["d"]["kernel"].all()


def test_a_run_that_goes_on_from_any_state_is_the_same_run():
    """The reference's is not: it forgets its phase."""
    bench = bench_of()
    states = [bench.state, *bench.run(14)]
    for start in (3, 4, 11, 12):
        host = jax.tree.map(
            lambda x: (
                x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.asarray(np.asarray(x))
            ),
            states[start],
        )
        *_, last = bench.run(14 - start, host)
        assert jax.tree.all(jax.tree.map(np.array_equal, last.trainable, states[14].trainable))
        assert jax.tree.all(jax.tree.map(np.array_equal, last.method.masks, states[14].method.masks))
