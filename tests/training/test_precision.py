"""Half precision learns, and its loss scale moves nothing but itself; the moving average of weights."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import make_batch, make_bench, make_method, make_model, scattered

from giung2_ext.core import masks as masking
from giung2_ext.core import schedules, trees
from giung2_ext.core.method import Method
from giung2_ext.data import resident
from giung2_ext.data.sources import digits
from giung2_ext.training import loss_scale
from giung2_ext.training import state as states
from giung2_ext.training.loss_scale import LossScale
from giung2_ext.training.optimizers import make_optimizer
from giung2_ext.training.population import Population
from giung2_ext.training.program import make_program
from giung2_ext.training.step import make_gradients, make_step

METHODS = ["ticket", "rigl", "jackpots", "multiprize", "cycles"]
DECAY = 0.75
HUGE = 2.0**120  # overflows float16 on the way back, and float32 does not mind


HOW = dict(optimizer=("sgd", 0.9), rate=0.1, masks=scattered)
cached_bench = functools.cache(functools.partial(make_bench, average=DECAY, **HOW))


@functools.cache
def grouped_rpg():
    return make_method("rpg", density=0.1, every=3, ni=14, ramp=0.7, stop=0.95, group=8)


def bench(method="ticket", model="convnet", precision="float16"):
    """Compiled once for all tests: no program depends on what its state holds."""
    if method == "rpg":
        return cached_bench(grouped_rpg(), model=model, precision=precision, groups=3)
    return cached_bench(method, model=model, precision=precision)


def scaled(state, scale, good=0):
    return state.replace(loss_scale=LossScale(jnp.float32(scale), jnp.int32(good)))


def bits(tree):
    def data(leaf):
        key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if key else leaf).tobytes()

    return {name: data(leaf) for name, leaf in trees.named_leaves(tree).items() if leaf is not None}


def moved(before, after):
    """The names of the leaves that differ in a bit."""
    a, b = bits(before), bits(after)
    assert a.keys() == b.keys()
    return {name for name in a if a[name] != b[name]}


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def numbers(metrics):
    return {name: float(value) for name, value in metrics._asdict().items()}


NOTHING = dict(loss=0, correct=0, seen=0, bad_step=-1, skipped=1)  # what a skipped step counts
SCALE = {"step", "loss_scale/scale", "loss_scale/good"}  # what it moves


# --- it learns ---------------------------------------------------------------------------------------


GRID = [("float16", model, method) for model in ("lenet", "convnet") for method in METHODS]
for wide in ("float32", "bfloat16"):
    GRID += [(wide, "convnet", "ticket"), (wide, "lenet", "rigl"), (wide, "lenet", "jackpots")]


@pytest.mark.parametrize(("precision", "model", "method"), GRID)
def test_the_loss_falls_and_everything_that_is_stored_is_float32(precision, model, method):
    it = bench(method, model, precision)
    state, losses = it.state, []
    for _ in range(30):
        due = it.method.due is not None and it.method.due(int(state.step))
        state, metrics, *_ = (it.update if due else it.step)(state, make_batch())
        assert int(metrics.bad_step) == -1
        losses.append(float(metrics.loss / metrics.seen))
    assert np.mean(losses[-5:]) < 0.95 * losses[0]
    stored = {leaf.dtype for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert stored == {jnp.dtype("float32")}
    program = str(jax.make_jaxpr(it.step)(state, make_batch()))
    halves = set(re.findall(r"\b(b?f16)\[", program))
    assert halves == {"float32": set(), "bfloat16": {"bf16"}, "float16": {"f16"}}[precision]


def gradients(model, precision, weights, statistics, scale=None):
    grads = make_gradients(model.clone(dtype=getattr(jnp, precision)), 0.0)
    scale = None if scale is None else jnp.float32(scale)
    return jax.jit(lambda w: grads(w, statistics, make_batch(), 1, None, scale)[0])(weights)


def test_float16s_gradient_is_float32s_to_a_hundredth_of_its_length():
    it = bench()
    given = (it.model, it.weights(it.state), it.state.statistics)
    model, weights, statistics = given
    exact = gradients(model, "float32", weights, statistics)
    half = gradients(model, "float16", weights, statistics, 2.0**16)
    off = jax.tree.map(lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(a), exact, half)
    assert max(jax.tree.leaves(off)) < 0.01
    assert max(jax.tree.leaves(off)) > 1e-5  # it was not computed in float32


def test_a_gradient_too_small_for_float16_survives_by_the_scale():
    model, it = make_model("lenet"), bench("ticket", "lenet")
    weights = it.weights(it.state)
    weights["cls"]["kernel"] = weights["cls"]["kernel"] * 1e-6  # below it gradients shrink by that
    exact = gradients(model, "float32", weights, it.state.statistics)["Dense_0"]["kernel"]
    assert 0 < jnp.abs(exact).max() < 2.0**-20
    for scale, error in ((1.0, (0.05, np.inf)), (2.0**16, (0, 0.01))):
        half = gradients(model, "float16", weights, it.state.statistics, scale)["Dense_0"]["kernel"]
        assert error[0] <= float(jnp.linalg.norm(half - exact) / jnp.linalg.norm(exact)) <= error[1]


@pytest.mark.parametrize("model", ["lenet", "convnet"])
def test_a_step_does_not_depend_on_the_scale(model):
    it = bench("ticket", model)
    *_, state = it.run(2)
    after = [it.step(scaled(state, scale), make_batch(2))[0] for scale in (2.0**8, 2.0**12, 2.0**16)]
    for other in after[:2]:
        close(other.trainable, after[2].trainable, rtol=1e-4, atol=2e-7)
        close(other.optimizer, after[2].optimizer, rtol=1e-3, atol=2e-6)
        assert bits(other.statistics) == bits(after[2].statistics)


# --- an overflow -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, "snfs", "rpg"])
def test_an_overflow_moves_nothing_but_the_step_and_the_scale(method):
    it = bench(method)
    *_, before = it.run(2)
    usual, metrics = it.step(before, make_batch(9))
    assert int(metrics.seen) == 24
    parts = {name.partition("/")[0] for name in moved(before, usual)}
    assert parts >= {"trainable", "optimizer", "statistics", "average"}
    after, metrics = it.step(scaled(before, HUGE, good=7), make_batch(9))
    assert moved(before, after) <= SCALE
    assert (int(after.step), float(after.loss_scale.scale)) == (3, HUGE / 2)
    assert int(after.loss_scale.good) == 0
    assert numbers(metrics) == NOTHING


def bright(factor):
    """A batch whose pixels, and with them the first layer's gradients, are large."""
    batch = make_batch(3)
    return batch | {"images": batch["images"].astype(jnp.float32) / 255 * factor}


def test_the_scale_comes_down_until_training_goes_on_as_if_it_had_begun_there():
    it = bench("ticket", "lenet")
    *_, before = it.run(2)
    state, scales = before, []
    for _ in range(20):
        scales.append(float(state.loss_scale.scale))
        state, metrics = it.step(state, bright(300))
        if not int(metrics.skipped):
            break
        assert numbers(metrics) == NOTHING
    tried = len(scales)
    assert scales == [2.0**16 / 2**n for n in range(tried)]
    assert 2 < tried < 14
    there = scaled(before, scales[-1]).replace(step=jnp.int32(2 + tried - 1))
    assert bits(it.step(there, bright(300))[0]) == bits(state)
    assert float(state.loss_scale.scale) == scales[-1]
    assert numbers(metrics)["seen"] == 24


def test_the_scale_doubles_after_2000_good_steps_and_never_above_2_to_the_24():
    now, finite = LossScale(jnp.float32(2.0**22), jnp.int32(0)), jnp.bool(True)
    adjust = jax.jit(loss_scale.adjust)
    doubled = []
    for step in range(1, 8002):
        later = adjust(now, finite)
        if later.scale != now.scale:
            doubled.append(step)
            assert later.scale == 2 * now.scale
        now = later
    assert doubled == [2000, 4000]
    assert float(now.scale) == 2.0**24


def test_good_steps_are_counted_by_the_step_and_an_overflow_begins_anew():
    it = bench("ticket", "lenet")
    state, _ = it.step(scaled(it.state, 2.0**10, good=1998), make_batch())
    assert [float(x) for x in state.loss_scale] == [2.0**10, 1999]
    state, _ = it.step(state, make_batch())
    assert [float(x) for x in state.loss_scale] == [2.0**11, 0]
    state, _ = it.step(scaled(state, HUGE, good=1999), make_batch())
    assert [float(x) for x in state.loss_scale] == [HUGE / 2, 0]


def steep(state):
    """A state whose first layer's gradients are large, and whose logits do not depend on the image."""
    still = jax.tree.map(jnp.zeros_like, state.trainable)
    still["Dense_0"]["bias"] = jnp.ones_like(still["Dense_0"]["bias"])
    still["Dense_1"]["kernel"] = jnp.ones_like(still["Dense_1"]["kernel"])
    still["cls"]["kernel"] = 20 * state.trainable["cls"]["kernel"]
    return state.replace(trainable=still)


@pytest.mark.parametrize("update", [False, True])
def test_an_overflow_at_a_scale_of_1_is_a_step_whose_loss_is_not_finite(update):
    it = bench("rigl", "lenet")
    *_, state = it.run(3)
    run = it.update if update else it.step
    largest = it.update(scaled(steep(state), HUGE), bright(100))[0].loss_scale.scale
    edge = 100 * float(largest)  # pixels this bright need a scale of 1, and twice as bright ones 1/2
    _, metrics, *_ = run(scaled(steep(state), 1.0), bright(edge))
    assert numbers(metrics)["seen"] == 24
    for broken, factor in ((steep(state), 2 * edge), (state, 1e6)):
        after, metrics, *_ = run(scaled(broken, 1.0), bright(factor))
        assert moved(scaled(broken, 1.0), after) == {"step"}
        assert numbers(metrics) == NOTHING | dict(bad_step=3)
    exact = steep(state).replace(loss_scale=None)
    after, metrics = bench("rigl", "lenet", "float32").step(exact, bright(2 * edge))
    assert int(metrics.bad_step) == -1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.trainable))


# --- a mask update -----------------------------------------------------------------------------------


def recorder():
    """A fixed mask with a penalty and group gradients, that keeps what `update` was given."""

    def init(key, params, masks):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return masking.apply(masks, params), (masks, dict(mean=zeros, pair=zeros, step=jnp.int32(-1)))

    def update(trainable, opt_state, state, dense, step, key, edit_slots):
        return trainable, opt_state, (state[0], dict(mean=dense[0], pair=dense[1], step=step))

    return Method(
        init=init,
        weights=lambda t, s: masking.apply(s[0], t),
        masks=lambda t, s: s[0],
        penalty=lambda weights, s: 3.5 * sum((w**2).sum() for w in jax.tree.leaves(weights)),
        penalty_on="due",
        due=lambda step: step == 2,
        update=update,
        abs_over=8,
    )


@functools.cache
def recording():
    rate = lambda step: 0.01 * step.astype(jnp.float32)  # noqa: E731
    how = dict(optimizer=("sgd", 0.9), rate=rate, average=DECAY, groups=3, masks=scattered)
    return make_bench(recorder(), precision="float16", **how)


@pytest.mark.parametrize("method", ["rigl", "snfs", "rpg", "recorder"])
def test_an_update_that_overflows_is_the_one_of_a_smaller_scale_on_the_same_batch(method):
    it = recording() if method == "recorder" else bench(method)
    at = {"recorder": 2, "rpg": 5}.get(method, 3)
    *_, before = it.run(at)
    after, metrics, _ = it.update(scaled(before, HUGE, good=1500), make_batch(at))
    scale = float(after.loss_scale.scale)
    assert 2.0**8 < scale < HUGE
    assert int(after.loss_scale.good) == 1
    assert numbers(metrics)["skipped"] == 0
    assert numbers(metrics)["seen"] == 24
    there, same, _ = it.update(scaled(before, scale), make_batch(at))
    assert bits(after) == bits(there)
    assert numbers(metrics) == numbers(same)
    higher, lower = (it.update(scaled(before, s), make_batch(at))[0] for s in (2 * scale, 2.0**8))
    assert bits(higher.method) == bits(after.method)  # it was the largest scale that goes through
    assert float(higher.loss_scale.scale) == scale
    assert bits(it.masks_of(after)) == bits(it.masks_of(lower))
    if method != "recorder":
        assert moved(it.masks_of(before), it.masks_of(after))
        assert int(after.method.updates) == int(before.method.updates) + 1
    else:
        close(after.method[1], lower.method[1], rtol=2e-3, atol=1e-5)
        assert all(np.any(leaf) for leaf in jax.tree.leaves(after.method[1]["pair"]))


# --- skipped steps are steps -------------------------------------------------------------------------


def test_rate_and_update_get_the_step_number_skipped_steps_counted():
    it = recording()
    state, _ = it.step(it.state, make_batch())
    state, _ = it.step(scaled(state, HUGE), make_batch())
    assert int(state.step) == 2
    reached = scaled(state, 2.0**12)
    after, _ = it.step(reached, make_batch())
    earlier, _ = it.step(reached.replace(step=jnp.int32(1)), make_batch())
    bias = lambda s: s.trainable["cls"]["bias"]  # noqa: E731
    np.testing.assert_allclose(bias(after) - bias(state), 2 * (bias(earlier) - bias(state)), atol=1e-6)
    assert np.abs(bias(after) - bias(state)).max() > 1e-3
    updated, *_ = it.update(reached, make_batch())
    assert int(updated.method[1]["step"]) == 2


def test_masks_are_updated_on_their_steps_though_all_others_overflow():
    it = bench("rigl")
    state, updates = it.state, []
    for step in range(7):
        state = scaled(state, HUGE)
        state = list(it.run(1, state))[-1]
        updates.append(int(state.method.updates))
        assert int(state.step) == step + 1
    assert updates == [1, 1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("part", [0, 1, 2])
def test_an_overflow_in_one_micro_batch_skips_the_whole_step(part):
    it = micro()
    *_, before = it.run(1)
    large = bright(3e3)["images"]
    here = (jnp.arange(24) // 8 == part)[:, None, None, None]
    batch = make_batch(3) | {"images": jnp.where(here, large, bright(1.0)["images"])}
    after, metrics = it.step(before, batch)
    assert moved(before, after) == SCALE
    assert numbers(metrics) == NOTHING
    goes, metrics = it.step(scaled(before, 2.0), batch)
    assert set(bits(before.trainable)) == moved(before.trainable, goes.trainable)
    assert numbers(metrics)["seen"] == 24


@functools.cache
def micro():
    return make_bench("ticket", precision="float16", micro_batches=3, masks=scattered)


# --- one member of a population ----------------------------------------------------------------------


@functools.cache
def programs(members, strategy, method="rigl"):
    network = tiny()
    rule, optimizer = make_method(method), make_optimizer("sgd", 0.9)
    pair = make_step(network, rule, optimizer, schedules.constant(0.02), average=DECAY)
    feed = resident.make_feed(digits.build().split("train"), 60, "crop")
    population = Population(members, strategy, devices=jax.devices()[:1])
    program = make_program(network, rule, pair, feed, population)
    return population, program, population.share(feed.arrays)


def tiny():
    return make_model("lenet", hidden=(16,)).clone(num_classes=10, dtype=jnp.float16)


@functools.cache
def cached_member(i, method):
    params, statistics = states.init_variables(tiny(), states.seed_key(i), (8, 8, 1))
    statistics["image_stats"] = {"m": jnp.zeros(1), "s": jnp.full(1, 16 / 255)}
    masks = scattered(params, 0.3 + 0.1 * i, i)
    given = (make_method(method), make_optimizer("sgd", 0.9), states.seed_key(i), params, masks, statistics)
    return jax.device_get(
        states.make_state(*given, scaled=True, averaged=True).replace(step=None, key=None)
    )


def member(i, method="rigl"):
    return cached_member(i, method).replace(key=states.seed_key(i))


def third_step(kind, scales, strategy="map", members=(0, 1, 2)):
    """Each member after two ordinary steps and one of `kind` with these scales, and that one's metrics."""
    population, program, data = programs(len(members), strategy)
    state = population.join([member(i) for i in members]).replace(step=np.int32(1))
    state, metrics = program.chunk(state, data, 2)
    shape = state.loss_scale.scale.shape
    scales = np.asarray(scales, np.float32).reshape(shape)
    state = state.replace(loss_scale=LossScale(scales, np.zeros(shape, np.int32)))
    if kind == "update":
        state, metrics, _ = program.update(state, data)
    elif kind == "step":
        state, metrics = program.chunk(state, data, 1)
    return population.gather((state.replace(step=None, key=None), metrics))


START = loss_scale.START


@pytest.mark.parametrize("strategy", ["map", "vmap"])
def test_only_the_member_that_overflows_skips_its_step(strategy):
    before = third_step("none", [START, HUGE, START], strategy)
    calm = third_step("step", [START, START, START], strategy)
    hit = third_step("step", [START, HUGE, START], strategy)
    for i in (0, 2):
        assert bits(hit[i]) == bits(calm[i])
        assert moved(before[i][0], hit[i][0])
    assert moved(before[1][0], hit[1][0]) == {"loss_scale/scale"}
    assert float(hit[1][0].loss_scale.scale) == HUGE / 2
    assert numbers(hit[1][1]) == NOTHING
    if strategy == "map":
        for i, scale in enumerate([START, HUGE, START]):
            assert bits(hit[i]) == bits(third_step("step", [scale], "map", (i,))[0])


@pytest.mark.parametrize("strategy", ["map", "vmap"])
def test_a_member_that_overflows_loses_no_update_and_disturbs_no_other(strategy):
    before = third_step("none", [START, START, START], strategy)
    calm = third_step("update", [START, START, START], strategy)
    hit = third_step("update", [START, HUGE, START], strategy)
    for i in (0, 2):
        assert bits(hit[i]) == bits(calm[i])
    state, metrics = hit[1]
    scale = float(state.loss_scale.scale)
    assert 2.0**8 < scale < HUGE
    assert bits(hit) == bits(third_step("update", [START, scale, START], strategy))
    assert numbers(metrics) == numbers(calm[1][1])
    assert numbers(metrics)["skipped"] == 0
    assert bits(state.method) == bits(calm[1][0].method)  # masks, counts, number of updates
    assert moved(before[1][0].method.masks, state.method.masks)
    if strategy == "map":
        for i, given in enumerate([START, HUGE, START]):
            assert bits(hit[i]) == bits(third_step("update", [given], "map", (i,))[0])


def test_a_chunk_counts_the_steps_that_it_skipped_and_the_examples_of_the_others():
    population, program, data = programs(1, "map")
    state = population.join([scaled(member(0), HUGE)]).replace(step=np.int32(1))
    state, metrics = program.chunk(state, data, 120)
    halved = np.log2(HUGE / float(state.loss_scale.scale))
    assert 90 < halved < 115
    assert int(state.step) == 121
    assert int(metrics.skipped) == halved
    assert int(metrics.seen) == (120 - halved) * 60
    assert 0 < float(metrics.loss) / int(metrics.seen) < 3


# --- the moving average ------------------------------------------------------------------------------


def test_the_average_runs_over_trainables_and_batch_statistics_alone():
    it = bench("ticket", "convnet", "float32")
    assert set(it.state.average[1]) == {"batch_stats"}
    expected = jax.device_get((it.state.trainable, {"batch_stats": it.state.statistics["batch_stats"]}))
    for state in it.run(4):
        new = jax.device_get((state.trainable, {"batch_stats": state.statistics["batch_stats"]}))
        expected = jax.tree.map(lambda a, p: DECAY * a + (1 - DECAY) * p, expected, new)
        close(state.average, expected, rtol=1e-5, atol=1e-7)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(new), strict=True):
        assert np.abs(a - b).max() > 1e-4  # it lags


def test_keeping_an_average_changes_no_bit_of_the_rest():
    without = make_bench("ticket", model="convnet", **HOW)
    assert without.state.average is None
    for a, b in zip(bench("ticket", "convnet", "float32").run(4), without.run(4), strict=True):
        assert bits(a.replace(average=None)) == bits(b)


@pytest.mark.parametrize("method", ["ticket", "rigl"])
def test_a_ticket_holds_the_averaged_weights_under_the_live_mask(method):
    population, program, data = programs(1, "map", method)
    state = population.join([member(1, method)]).replace(step=np.int32(1))
    state, _ = program.chunk(state, data, 20)
    if method == "rigl":
        state, *_ = program.update(state, data)
    weights, masks, statistics = jax.device_get(program.observe(state))
    averaged, live = jax.device_get((state.average[0], state.trainable))
    rule = make_method(method)
    assert bits(masks) == bits(rule.masks(state.trainable, state.method))
    assert bits(weights) == bits(masking.apply(masks, averaged))
    assert moved(weights, masking.apply(masks, live)) == set(bits(weights))
    assert statistics["image_stats"] == jax.device_get(state.statistics["image_stats"])
    stale = trees.map_present(lambda m, w: np.any(w[~m]), masks, averaged)
    assert any(trees.present(stale)) == (method == "rigl")  # what was dropped lives on in the average


def test_a_ticket_holds_the_averaged_batch_statistics():
    it, alone = bench(), Population(1, "map", devices=jax.devices()[:1])
    *_, state = it.run(2)
    program = make_program(it.model, it.method, (None, None), None, alone)
    _, _, statistics = program.observe(state)
    assert bits(statistics["batch_stats"]) == bits(state.average[1]["batch_stats"])
    assert moved(statistics["batch_stats"], state.statistics["batch_stats"])
    assert bits(statistics["image_stats"]) == bits(state.statistics["image_stats"])
