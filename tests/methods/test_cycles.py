import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import kernels, make_batch, make_bench, make_method, make_model

from giung2_ext.core import masks as masking
from giung2_ext.core import schedules
from giung2_ext.core.errors import Refusal
from giung2_ext.methods import cycles
from giung2_ext.training.optimizers import make_optimizer

RATE, MOMENTUM, DECAY, SCORE_RATE = 0.05, 0.9, 5e-3, 0.3
EVERY, PERCENT, STEPS = 3, 20.0, 8


def q31(percent):
    return schedules.to_q31(1 - percent / 100)


def linear_bench(by, binarise, rewind):
    """Softmax regression, so that a few lines of NumPy are the whole program."""
    options = dict(every=EVERY, percent=PERCENT, ni=STEPS, score_rate=SCORE_RATE)
    method = make_method("cycles", by=by, binarise=binarise, rewind=rewind, **options)
    network = make_model("lenet", hidden=())
    return make_bench(method, network, optimizer=("sgd", MOMENTUM, DECAY), rate=RATE)


def gradients(seed, weight, bias):
    batch = jax.device_get(make_batch(seed))
    x = (batch["images"].reshape(len(batch["labels"]), -1) / 255 - 0.5) / 0.25
    logits = x @ weight + bias
    wrong = np.exp(logits - logits.max(1, keepdims=True))
    wrong /= wrong.sum(1, keepdims=True)
    wrong[np.arange(len(x)), batch["labels"]] -= 1
    return x.T @ wrong / len(x), wrong.mean(0)


def literal_run(state, binarise, rewind):
    """The published program in float64, with np.percentile; yields weight, bias, mask and scores."""
    weight, bias, mask = (
        np.asarray(leaf) for leaf in (*leaves(state.trainable), state.method.masks["cls"]["kernel"])
    )
    weight, bias = weight.astype(np.float64), bias.astype(np.float64)
    scores = state.method.scores and np.asarray(state.method.scores["cls"]["kernel"], np.float64)
    first, slots = (weight, bias), [0.0, 0.0]
    for step in range(STEPS):
        seen = weight
        if binarise:
            seen = np.sign(weight) * np.sqrt((weight**2).sum() / mask.sum())
        grads = gradients(step, np.where(mask, seen, 0), bias)
        starts = rewind and step in (3, 6)
        if not starts:
            pulled = (np.where(mask, grads[0], 0), grads[1])
            decayed = [g + DECAY * w for g, w in zip(pulled, (weight, bias), strict=True)]
            slots = [MOMENTUM * s + g for s, g in zip(slots, decayed, strict=True)]
            weight, bias = (w - RATE * s for w, s in zip((weight, bias), slots, strict=True))
        if scores is not None:
            scores = np.where(mask, scores - SCORE_RATE * grads[0], 0)
        if starts or (not rewind and step in (2, 5)):
            ranked = np.abs(weight if scores is None else scores)
            mask = mask & (ranked >= np.percentile(ranked[mask], PERCENT))
            if rewind:
                (weight, bias), slots = first, [0.0, 0.0]
            weight, slots[0] = np.where(mask, weight, 0), np.where(mask, slots[0], 0)
            scores = None if scores is None else np.where(mask, scores, 0)
        yield weight, bias, mask, scores


def leaves(tree):
    return tree["cls"]["kernel"], tree["cls"]["bias"]


@pytest.mark.parametrize(
    ("by", "binarise", "rewind"),
    [("weights", False, True), ("scores", True, True), ("scores", False, False)],
)
def test_whole_cycles_are_those_of_a_literal_numpy_program(by, binarise, rewind):
    bench = linear_bench(by, binarise, rewind)
    pruned = 0
    before = bench.state
    literal = literal_run(bench.state, binarise, rewind)
    for now, (weight, bias, mask, scores) in zip(bench.run(STEPS), literal, strict=True):
        assert np.array_equal(kernels(bench.masks_of(now))[0], mask)
        assert np.allclose(leaves(now.trainable)[0], weight, rtol=1e-4, atol=1e-5)
        assert np.allclose(leaves(now.trainable)[1], bias, rtol=1e-4, atol=1e-5)
        if scores is not None:
            found = now.method.scores["cls"]["kernel"]
            assert np.allclose(found, scores, rtol=1e-4, atol=1e-5)
            assert np.array_equal(found != 0, mask)
        assert masking.nested(bench.masks_of(now), bench.masks_of(before))
        pruned += int(masking.kept(bench.masks_of(now))) < int(masking.kept(bench.masks_of(before)))
        before = now
    assert pruned == 2


def test_after_an_update_all_parameters_are_the_first_ones_and_the_optimizer_is_new():
    bench = make_bench(make_method("cycles"), make_model("lenet", hidden=()), optimizer=("adam", 0.9, 1e-4))
    *_, trained, rewound = bench.run(4)  # step 3 is due
    expected = masking.apply(bench.masks_of(rewound), bench.state.trainable)
    assert jax.tree.all(jax.tree.map(np.array_equal, rewound.trainable, expected))
    assert int(masking.kept(bench.masks_of(rewound))) < int(masking.kept(bench.masks_of(trained)))
    fresh = make_optimizer("adam", 0.9, 1e-4).init(expected)
    assert jax.tree.all(jax.tree.map(np.array_equal, rewound.optimizer, fresh))
    assert not jax.tree.all(jax.tree.map(np.array_equal, trained.optimizer, fresh))

    start = bench.method.init(bench.state.key, expected, bench.masks_of(rewound))
    alone = bench.state.replace(trainable=start[0], method=start[1], step=jnp.int32(1))
    alone = list(bench.run(2, alone, lambda step: make_batch(step + 3)))[-1]
    again = list(bench.run(2, rewound))[-1]
    assert jax.tree.all(jax.tree.map(np.array_equal, again.trainable, alone.trainable))


@pytest.mark.parametrize("percent", [5.0, 10.0, 20.0, 33.0, 100.0])
def test_a_tensor_loses_what_a_strict_percentile_cuts_and_never_its_last_weight(percent):
    draw = np.random.default_rng(0)
    shrink = jax.jit(cycles.shrink)
    for alive in (0, 1, 2, 3, 7, 20, 21, 100, 299, 300):
        weight = draw.normal(size=300).astype(np.float32)
        mask = draw.permutation(300) < alive
        new = np.asarray(shrink({"w": mask, "b": None}, {"w": weight, "b": weight}, q31(percent))["w"])
        cut = np.percentile(np.abs(weight[mask]), percent) if alive else 0
        expected = mask & (np.abs(weight) >= cut)
        if alive and percent * (alive - 1) / 100 % 1 == 0:  # the threshold is a weight, but for rounding
            assert new.sum() == alive - round(percent * (alive - 1) / 100)
            assert not (new & ~mask).any()
        else:
            assert np.array_equal(new, expected)


def test_equal_weights_are_cut_from_the_end_and_every_tensor_by_itself():
    masks = {"a": jnp.arange(8) < 6, "b": jnp.arange(3) >= 0}
    new = jax.jit(cycles.shrink)(masks, {"a": jnp.ones(8), "b": 100.0 + jnp.arange(3)}, q31(50.0))
    assert new["a"].tolist() == [True] * 3 + [False] * 5
    assert new["b"].tolist() == [False, True, True]


def test_what_is_left_after_c_cycles_is_the_published_share():
    mask = {"w": jnp.ones(10_000, bool)}
    size = {"w": jnp.arange(10_000.0)}
    shares = []
    shrink = jax.jit(cycles.shrink)
    for _ in range(34):
        mask = shrink(mask, size, q31(10.0))
        shares.append(float(mask["w"].mean()))
    for cycle, share in ((1, 0.9), (10, 0.349), (20, 0.122), (34, 0.028)):
        assert shares[cycle - 1] == pytest.approx(share, abs=1e-3)
    for _ in range(60):
        mask = shrink(mask, size, q31(10.0))
    assert mask["w"].sum() == 1


WEIGHT = np.array([[0.5, -1.0, 0.25], [-1.5, 0.75, -0.125]], np.float32)


@pytest.mark.parametrize(
    ("kept", "gain"),
    [("010101", 1.043332002), ("110111", 0.903119593), ("010000", 1.0), ("111111", 0.830725085)],
)
def test_binarised_weights_are_the_gain_worked_by_hand_times_the_sign(kept, gain):
    mask = np.array([c == "1" for c in kept]).reshape(2, 3)
    found = (
        cycles.binary(mask, jnp.asarray(WEIGHT * 1e3)) / 1e3
    )  # large values: the estimator adds an exact 0
    assert np.allclose(found, np.where(mask, gain * np.sign(WEIGHT), 0), rtol=1e-6)
    assert len(np.unique(np.abs(found)[mask])) == 1
    through = jax.grad(lambda w: (cycles.binary(mask, w) * jnp.asarray(WEIGHT)).sum())(jnp.asarray(WEIGHT))
    assert np.array_equal(through, np.where(mask, WEIGHT, 0))
    with jax.debug_nans(True):
        assert not cycles.binary(jnp.zeros((2, 3), bool), jnp.asarray(WEIGHT)).any()


def test_only_leaves_with_a_mask_are_binarised_or_have_scores(key):
    method = make_method("cycles", binarise=True, by="scores")
    params = {"kernel": jnp.asarray(WEIGHT), "bias": jnp.asarray(WEIGHT), "scale": jnp.asarray(WEIGHT)}
    masks = {"kernel": jnp.asarray(WEIGHT) > 0, "bias": None, "scale": None}
    trainable, state = method.init(key, params, masks)
    weights = method.weights(trainable, state)
    assert np.array_equal(weights["bias"], WEIGHT)
    assert np.array_equal(weights["scale"], WEIGHT)
    assert len(np.unique(weights["kernel"])) == 2  # 0 and the gain
    assert state.scores["bias"] is state.scores["scale"] is None
    assert np.array_equal(state.scores["kernel"] != 0, masks["kernel"])


def test_scores_are_drawn_glorot_normal_anew_for_every_tensor(key):
    masks = {"a": jnp.ones((300, 100), bool), "b": jnp.ones((300, 100), bool)}
    a, b = kernels({f"{n}/kernel": s for n, s in cycles.draw_scores(key, masks).items()})
    assert float(a.std()) == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert abs(float((a * b).mean())) < 1e-4


@pytest.mark.parametrize("rewind", [True, False])
def test_a_run_is_settled_once_no_update_is_to_come(rewind):
    for every, ni in ((3, 14), (4, 12), (1 + rewind, 5), (5, 5), (7, 3)):
        method = make_method("cycles", every=every, ni=ni, rewind=rewind)
        due = [step for step in range(3 * ni) if method.due(step)]
        ends = range(every, ni + 1, every)  # of cycles, in batches consumed
        assert due == ([e for e in ends if e < ni] if rewind else [e - 1 for e in ends])
        for step in range(ni + 1):
            assert method.settled(step) == (not [d for d in due if d >= step])
        assert method.replaces_step is rewind


@pytest.mark.parametrize(
    "bad",
    [dict(every=1), dict(every=0, rewind=False), dict(percent=0.0), dict(percent=101.0), dict(by="size")],
)
def test_options_out_of_range_are_refused(bad):
    with pytest.raises(Refusal, match="cycles needs every >= 1"):
        make_method("cycles", **bad)
