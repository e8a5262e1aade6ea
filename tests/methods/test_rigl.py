import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import kernels, make_bench, make_method

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.methods import _swap, rigl


def literal_update(weight, mask, grad, dropped):
    """The paper's rule with plain sorts: keep the largest |w|, then grow the largest |g| not kept."""
    kept = [i for i in np.argsort(-np.abs(weight), kind="stable") if mask[i]]
    keep = set(kept[: len(kept) - dropped])
    grow = [i for i in np.argsort(-np.abs(grad), kind="stable") if i not in keep][:dropped]
    new = np.zeros(mask.shape, bool)
    new[list(keep | set(grow))] = True
    return new


def test_the_swap_is_the_papers_rule_on_random_cases():
    draw = np.random.default_rng(0)
    swap = jax.jit(_swap.swap)
    for _ in range(100):
        weight = draw.normal(size=20).astype(np.float32).round(1)
        grad = draw.normal(size=20).astype(np.float32).round(1)
        mask = draw.random(20) < 0.5
        dropped = int(draw.integers(0, mask.sum() + 1))
        found = swap(weight, mask, np.abs(grad), dropped)
        assert np.array_equal(found, literal_update(weight, mask, grad, dropped))


def test_updates_come_at_multiples_before_the_end_and_replace_the_step():
    method = make_method("rigl", every=100, stop=250)
    assert [s for s in range(400) if method.due(s)] == [0, 100, 200]
    assert method.replaces_step


@pytest.mark.parametrize("optimizer", [("sgd", 0.9, 5e-4), ("adam", 0.9)], ids=["sgd", "adam"])
def test_newly_grown_weights_start_at_zero_with_empty_slots(optimizer):
    bench = make_bench("rigl", optimizer=optimizer)
    states = [bench.state, *bench.run(4)]
    before, after = states[3], states[4]  # step 3 is due
    rule = after.optimizer[-2]
    slots = rule.trace if hasattr(rule, "trace") else rule.nu
    trios = zip(
        kernels(bench.masks_of(before)),
        kernels(bench.masks_of(after)),
        kernels(after.trainable),
        kernels(slots),
        strict=True,
    )
    grown_in_all = 0
    for old, new, weight, slot in (map(np.asarray, leaves) for leaves in trios):
        grown_in_all += (new & ~old).sum()
        assert not weight[new & ~old].any()
        assert not slot[new & ~old].any()
        assert slot[new & old].any()
    assert grown_in_all > 0


def test_an_update_moves_no_kept_weight_and_counts_are_the_cosine_ones():
    bench = make_bench("rigl")
    states = [bench.state, *bench.run(4)]
    before, after = states[3], states[4]
    for path, old in trees.named_leaves(bench.masks_of(before)).items():
        if old is None:
            continue
        new = trees.named_leaves(bench.masks_of(after))[path]
        weights = [trees.named_leaves(s.trainable)[path] for s in (before, after)]
        assert np.array_equal(weights[0][old & new], weights[1][old & new])
        alpha = 0.3 / 2 * (1 + np.cos(np.pi * 3 / 12))
        assert int((new & ~old).sum()) <= int(int(old.sum()) * alpha)


def test_after_the_end_the_mask_is_fixed():
    bench = make_bench("rigl")
    states = list(bench.run(20))
    assert masking.overlap(bench.masks_of(states[11]), bench.masks_of(states[-1])) == 1.0
    assert masking.overlap(bench.masks, bench.masks_of(states[-1])) < 1.0


def test_the_drop_count_follows_the_kept_count_not_the_leafs_size():
    method = rigl.build(every=1, stop=10)
    params = {"w": jnp.arange(1.0, 101.0)}
    masks = {"w": jnp.arange(100) < 10}
    trainable, state = method.init(jax.random.key(0), params, masks)
    grads = {"w": jnp.arange(100.0)}
    _, _, new = method.update(trainable, (), state, grads, jnp.int32(0), jax.random.key(0), lambda o, *a: o)
    assert int((new.masks["w"] & ~masks["w"]).sum()) == 3  # .3 of 10 kept weights
    assert new.masks["w"][97:].all()
