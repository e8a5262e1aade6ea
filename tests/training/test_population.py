import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import kernels, make_method, make_model, start_masks

from giung2_ext.core import schedules
from giung2_ext.core.errors import Refusal
from giung2_ext.data import resident
from giung2_ext.data.sources import digits
from giung2_ext.training import state as states
from giung2_ext.training.optimizers import make_optimizer
from giung2_ext.training.population import Population
from giung2_ext.training.program import make_program
from giung2_ext.training.sharding import read_mesh
from giung2_ext.training.step import make_step

MODEL_OPTIONS = dict(
    lenet=("lenet", ("adam", 0.9)), convnet=("convnet", ("sgd", 0.9, 5e-4)), conv=("conv", ("adam", 0.9))
)


@functools.cache
def make(members, strategy, devices, model="lenet", method="ticket"):
    """A program for that many members over digits, and a maker of member i's own state."""
    name, optimizer = MODEL_OPTIONS[model]

    options = dict(lenet=dict(hidden=(16, 12)), convnet=dict(widths=(4, 6)), conv={})[model]
    network = make_model(name, **options).clone(num_classes=10)
    rule, opt = make_method(method), make_optimizer(*optimizer)
    pair = make_step(network, rule, opt, schedules.constant(0.003))
    feed = resident.make_feed(digits.build().split("train"), 60, "crop")
    population = Population(
        members, strategy, devices=jax.devices()[:devices], convolutions=model != "lenet"
    )
    program = make_program(network, rule, pair, feed, population)

    def member(i):
        key = states.seed_key(i)
        params, stats = states.init_variables(network, key, (8, 8, 1))
        stats["image_stats"] = {"m": jnp.zeros(1), "s": jnp.full(1, 16 / 255)}
        masks = start_masks(params, 0.3 + 0.1 * i, seed=i)  # densities differ between members
        return states.make_state(rule, opt, key, params, masks, stats).replace(step=None)

    return population, program, population.share(feed.arrays), member


def run(steps, members, strategy="map", devices=2, **options):
    population, program, data, member = make(len(members), strategy, devices, **options)
    state = population.join([member(i) for i in members]).replace(step=np.int32(0))
    due = make_method(options.get("method", "ticket")).due or (lambda step: False)
    while state.step < steps:
        if due(int(state.step)):
            state, metrics, _ = program.update(state, data)
        else:
            length = next((n for n in range(1, steps - state.step) if due(int(state.step) + n)), None)
            state, metrics = program.chunk(state, data, length or int(steps - state.step))
    return population.gather((program.observe(state), metrics))


def bits(tree):
    return [leaf.tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("model", ["lenet", "convnet"])
def test_member_i_is_the_solo_run_i_bit_for_bit_under_map(model):
    together = run(30, [0, 1, 2], model=model)
    for i in range(3):
        assert bits(together[i]) == bits(run(30, [i], model=model)[0])


def test_member_i_of_a_conv_net_is_the_solo_run_i_under_the_strategy_that_auto_chooses():
    together = run(1, [0, 1, 2], "auto", model="conv")
    for i in range(3):
        assert bits(together[i]) == bits(run(1, [i], "auto", model="conv")[0])


@pytest.mark.parametrize(
    ("platform", "convolutions", "strategy"),
    [
        ("cpu", False, "map"),
        ("cpu", True, "map"),
        ("gpu", False, "vmap"),
        ("gpu", True, "map"),
        ("tpu", False, "vmap"),
        ("tpu", True, "map"),
    ],
)
def test_auto_maps_convolutions_everywhere_and_dense_networks_on_a_cpu(platform, convolutions, strategy):
    mesh, devices = read_mesh("data:1", 1), [SimpleNamespace(platform=platform)]
    assert Population(1, "auto", mesh, devices, convolutions).strategy == strategy
    for forced in ("map", "vmap"):
        assert Population(1, forced, mesh, devices, convolutions).strategy == forced


def test_densities_mix_among_more_members_than_devices():
    together = run(5, [0, 1, 2, 3, 4], "auto")
    for i, ((weights, masks, _), _) in enumerate(together):
        start = start_masks(weights, 0.3 + 0.1 * i, seed=i)
        assert bits(masks) == bits(start)
        for kept, kernel in zip(jax.tree.leaves(masks), kernels(weights), strict=True):
            assert not kernel[~kept].any()
            assert np.count_nonzero(kernel) > 0.9 * kept.sum()
    counts = [sum(kept.sum() for kept in jax.tree.leaves(masks)) for (_, masks, _), _ in together]
    assert counts == sorted(set(counts))


@pytest.mark.parametrize("method", ["set", "multiprize", "cycles", "rpg"])
def test_every_kind_of_method_runs_in_a_population_too(method):
    together = run(14, [0, 1, 2], method=method)
    for i in range(3):
        solo = run(14, [i], method=method)[0]
        if method != "multiprize":
            assert bits(together[i]) == bits(solo)
            continue
        (weights, masks, _), _ = together[i]  # a program may sum the gain's weights in its own order
        assert bits(masks) == bits(solo[0][1])
        close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
        jax.tree.map(close, weights, solo[0][0])


def test_member_i_is_the_solo_run_i_to_1e_5_over_100_steps_under_vmap():
    together = run(100, [0, 1, 2], "vmap")
    for i in range(3):
        solo = run(100, [i])[0]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), together[i], solo)


@pytest.mark.parametrize("devices", [1, 8])
def test_the_number_of_devices_changes_no_bit_under_map(devices):
    assert bits(run(10, [0, 1, 2, 3, 4], devices=devices)) == bits(run(10, [0, 1, 2, 3, 4], devices=3))


def test_filling_members_are_not_seen_outside():
    population = Population(3, "map", devices=jax.devices()[:2])
    placed = population.join([{"x": np.float32(i)} for i in range(3)])
    assert placed["x"].shape == (4,)
    assert population.trim(placed)["x"].tolist() == [0, 1, 2]
    assert [m["x"] for m in population.gather(placed)] == [0, 1, 2]


def test_chunks_of_any_length_share_one_program_and_cut_nothing():
    population, program, data, member = make(1, "map", 1)
    whole = population.join([member(0)]).replace(step=np.int32(0))
    whole, _ = program.chunk(whole, data, 47)  # over two epochs of 20 steps
    parts = population.join([member(0)]).replace(step=np.int32(0))
    for length in (1, 19, 7, 20):
        parts, _ = program.chunk(parts, data, length)
    assert bits(program.observe(whole)) == bits(program.observe(parts))


def test_an_epochs_order_is_never_that_of_other_members_or_of_another_epoch():
    population, program, data, member = make(1, "map", 1)

    def begin(i, step=0):
        return population.join([member(i)]).replace(step=np.int32(step))

    first, second = begin(0), begin(1)
    for length in (5, 3, 15):  # in turns, into the second epoch of 20 steps
        first, _ = program.chunk(first, data, length)
        second, _ = program.chunk(second, data, length)
    for i, state in enumerate((first, second)):
        alone, _ = program.chunk(begin(i), data, 23)
        assert bits(program.observe(state)) == bits(program.observe(alone))
    none, _ = program.chunk(begin(0), data, 0)
    jumped, _ = program.chunk(none.replace(step=np.int32(45)), data, 3)
    straight, _ = program.chunk(begin(0, 45), data, 3)
    assert bits(program.observe(jumped)) == bits(program.observe(straight))


def test_an_unknown_strategy_is_refused():
    with pytest.raises(Refusal, match="unknown population strategy 'pmap'"):
        Population(2, "pmap")
