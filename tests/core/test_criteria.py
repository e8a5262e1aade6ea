import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import fresh_variables, make_model

from giung2_ext.core import allocate, criteria, trees
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


def double(tree):
    """In float64, on the host."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def kernels_of(params):
    return masking.dense(params, "kernels")


def named_kernels(tree):
    return {name: np.asarray(leaf) for name, leaf in trees.named_leaves(tree).items() if leaf is not None}


@pytest.fixture
def chain():
    """A two-layer network with its data, in float64."""
    draw = np.random.default_rng(0)
    shapes = {"a": {"kernel": (6, 7), "bias": (7,)}, "b": {"kernel": (7, 4), "bias": (4,)}}
    params = jax.tree.map(lambda s: draw.normal(size=s), shapes, is_leaf=lambda s: type(s) is tuple)
    return params, draw.normal(size=(9, 6)), draw.integers(0, 4, 9)


def chain_loss(params, x, labels):
    h = jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"][None])
    logp = jax.nn.log_softmax(h @ params["b"]["kernel"] + params["b"]["bias"][None])
    return -jnp.take_along_axis(logp, labels[:, None], axis=1).mean()


def gated_loss(params, gates, x, labels):
    """The loss in NumPy, of weights times gates: the c of SNIP's paper."""
    h = np.tanh(x @ (params["a"]["kernel"] * gates["a"]) + params["a"]["bias"])
    logits = h @ (params["b"]["kernel"] * gates["b"]) + params["b"]["bias"]
    return np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels])


def test_snip_is_the_slope_of_the_loss_along_every_gate(chain):
    params, x, labels = chain
    with jax.enable_x64(True):
        grads = jax.jit(jax.grad(chain_loss))(params, x, labels)
        ours = named_kernels(criteria.snip(params, kernels_of(params), grads))
    gates = {n: np.ones_like(params[n]["kernel"]) for n in "ab"}
    for n in "ab":
        slopes = np.empty_like(gates[n])
        for place in np.ndindex(slopes.shape):
            losses = []
            for gate in (1 + 1e-5, 1 - 1e-5):
                gates[n][place] = gate
                losses.append(gated_loss(params, gates, x, labels))
            gates[n][place] = 1.0
            slopes[place] = (losses[0] - losses[1]) / 2e-5
        np.testing.assert_allclose(ours[f"{n}/kernel"], abs(slopes), rtol=1e-6, atol=1e-9)


def test_grasp_keeps_what_the_norm_of_the_gradient_hangs_on(chain):
    params, x, labels = chain
    masks = kernels_of(params)
    with jax.enable_x64(True):
        gradient = jax.jit(lambda p: jax.grad(chain_loss)(p, x, labels))
        product = jax.jit(lambda p: criteria.hessian_gradient(gradient, p, gradient(p)))(params)
        scores = criteria.grasp(params, masks, product)

        def norm(kernel, place, factor):  # |g|^2 with one weight scaled
            changed = jax.tree.map(np.copy, params)
            changed[kernel]["kernel"][place] *= factor
            return sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient(changed)))

        for kernel in "ab":
            for place in ((0, 0), (3, 2), (5, 3)):
                lost = (norm(kernel, place, 1 + 1e-5) - norm(kernel, place, 1 - 1e-5)) / 2e-5
                np.testing.assert_allclose(2 * scores[kernel]["kernel"][place], lost, rtol=1e-6)
    assert scores["a"]["bias"] is None
    assert min(np.asarray(s).min() for s in jax.tree.leaves(scores)) < 0


def test_the_hessian_product_is_the_difference_of_gradients_in_a_convolutional_network():
    variables = fresh_variables(make_model("convnet"), jax.random.key(0), (6, 6, 2))
    network = make_model("convnet").clone(dtype=jnp.float64)
    draw = np.random.default_rng(0)
    x, labels = draw.normal(size=(8, 6, 6, 2)), draw.integers(0, 5, 8)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        params, rest = double(variables)
        params = jax.tree.map(lambda w: w + 0.1 * draw.normal(size=w.shape), params)
        direction = jax.tree.map(lambda w: draw.normal(size=w.shape), params)

        def loss(weights):
            logits, _ = network.apply({"params": weights, **rest}, x, train=True, mutable=list(rest))
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()

        gradient = jax.jit(jax.grad(loss))
        found = jax.jit(lambda p, d: criteria.hessian_gradient(jax.grad(loss), p, d))(params, direction)
        step = 1e-6
        ahead, behind = (
            gradient(jax.tree.map(lambda w, d: w + s * d, params, direction))  # noqa: B023
            for s in (step, -step)
        )
        for name, leaf in trees.named_leaves(found).items():
            a, b = (trees.named_leaves(side)[name] for side in (ahead, behind))
            assert leaf.dtype == jnp.float64
            np.testing.assert_allclose(leaf, (a - b) / (2 * step), rtol=1e-5, atol=1e-8, err_msg=name)


def flow_of(network, rest, image):
    ones = np.ones((1, *image))
    return lambda weights: network.apply({"params": weights, **rest}, ones, train=False).sum()


@pytest.mark.parametrize(
    ("name", "options"),
    [("lenet", dict(hidden=(16, 12, 9))), ("convnet", {})],
)
def test_the_synflow_scores_of_every_layer_sum_to_one_whatever_is_pruned(name, options):
    network, image = make_model(name, **options), (8, 8, 2)
    variables = fresh_variables(network, jax.random.key(0), image)
    draw = np.random.default_rng(0)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        params, rest = double(variables)
        flow = flow_of(network.clone(dtype=jnp.float64), rest, image)
        scores_of = jax.jit(lambda p, m: criteria.synflow(flow, p, m))
        for alive in (1.0, 0.7):
            masks = trees.map_present(lambda m: draw.random(m.shape) < alive, kernels_of(params))  # noqa: B023
            scores = named_kernels(scores_of(params, masks))
            assert len(scores) >= 3
            for layer, mask in named_kernels(masks).items():
                assert scores[layer].sum() == pytest.approx(1, rel=1e-12)
                assert (scores[layer][mask] >= 0).all()
                assert (scores[layer][~mask] == 0).all()


def test_synflow_is_the_slope_of_the_flow_along_every_weights_size_and_blind_to_signs(chain):
    params = chain[0]
    masks = {n: {"kernel": np.random.default_rng(1).random(params[n]["kernel"].shape) < 0.8, "bias": None}
             for n in "ab"}  # fmt: skip

    def flow(p):
        h = jax.nn.relu(jnp.ones((1, 6)) @ p["a"]["kernel"] + p["a"]["bias"][None])
        return (h @ p["b"]["kernel"] + p["b"]["bias"][None]).sum()

    with jax.enable_x64(True):
        scores = criteria.synflow(flow, params, masks)
        sizes = jax.tree.map(np.abs, jax.device_get(masking.apply(masks, params)))
        for n in "ab":
            for place in np.ndindex(2, 2):
                up, down = (jax.tree.map(np.copy, sizes) for _ in range(2))
                up[n]["kernel"][place] *= 1 + 1e-5
                down[n]["kernel"][place] *= 1 - 1e-5
                slope = float(flow(up) - flow(down)) / 2e-5 / float(flow(sizes))
                np.testing.assert_allclose(scores[n]["kernel"][place], slope, rtol=1e-7, atol=1e-12)
        flipped = criteria.synflow(flow, jax.tree.map(np.negative, params), masks)
        assert jax.tree.all(jax.tree.map(np.array_equal, flipped, scores))


@pytest.mark.parametrize(("kept", "size"), [(1, 10), (500, 50_200), (23, 23_454_912), (7, 7), (0, 9)])
def test_what_remains_falls_by_equal_factors_to_exactly_what_is_kept(kept, size):
    counts = criteria.remaining(kept, size)
    assert counts.dtype == np.int32
    assert len(counts) == criteria.ROUNDS == 100
    assert counts[-1] == kept
    assert (np.diff(counts) <= 0).all()
    assert (counts >= kept).all()
    if kept:
        exact = size * (kept / size) ** (np.arange(1, 101) / 100)
        assert (np.abs(counts - exact) <= 1).all()


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
