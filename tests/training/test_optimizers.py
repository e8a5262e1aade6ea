import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.training.optimizers import DECOUPLED, REFUSED, RULES, edit_slots, make_optimizer

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
    with pytest.raises(Refusal, match=r"unknown optimizer 'sdg'; known: .*; did you mean 'sgd'"):
        make_optimizer("sdg", 0.9)


# --- every optimizer of optax

START = {"d": {"kernel": jnp.linspace(-1.0, 1.0, 30).reshape(6, 5), "bias": jnp.full(5, 0.5)}}
MASKS = {"d": {"kernel": jnp.arange(30).reshape(6, 5) % 3 == 0, "bias": None}}
OFF = ~np.asarray(MASKS["d"]["kernel"])
MOMENTUM, DECAY, CLIP, RATE = 0.8, 1e-2, 0.03, 0.01  # no default of optax, so that each must be passed on
PRUNED, GROWN = 30, 10  # steps with the masks, and then without

ALIASES = {
    "adabelief": dict(b1=MOMENTUM, eps_root=0.0),
    "adadelta": dict(rho=MOMENTUM),
    "adagrad": dict(initial_accumulator_value=0.0),
    "rmsprop": dict(momentum=MOMENTUM),
    "sgd": dict(momentum=MOMENTUM),
    "sign_sgd": {},
    "signum": dict(beta=MOMENTUM),
}


def alias(name, **options):
    """What optax itself makes of a name, fed with gradients that are decayed and clipped."""
    build = getattr(optax, name, None) or getattr(optax.contrib, name)
    options = ALIASES.get(name, dict(b1=MOMENTUM)) | options
    clip = optax.clip_by_global_norm(CLIP)
    if name in DECOUPLED:
        return optax.chain(clip, build(RATE, weight_decay=DECAY, **options))
    return optax.chain(optax.add_decayed_weights(DECAY), clip, build(RATE, **options))


def run(optimizer, rate, start, grads):
    """All the parameters and states of a run, a row for each step."""

    def step(carry, grads):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        carry = jax.tree.map(lambda p, u: p + rate * u, params, updates), state
        return carry, carry

    return jax.lax.scan(step, (start, optimizer.init(start)), grads)[1]


@functools.cache
def gradients():
    """As small as in training: some are clipped, and every epsilon of optax can be seen."""
    draw, rows = np.random.default_rng(0), PRUNED + GROWN
    full = {"d": {"kernel": draw.normal(size=(rows, 6, 5)), "bias": draw.normal(size=(rows, 5))}}
    full = jax.tree.map(lambda g: jnp.asarray(4e-3 * g, jnp.float32), full)
    kept = jnp.asarray(~OFF | (np.arange(rows) >= PRUNED)[:, None, None])
    return masking.apply({"d": {"kernel": kept, "bias": None}}, full)


@functools.cache
def trained(name, nesterov=False):
    """The fresh state; parameters and states of every step; and the parameters by optax's own alias."""
    ours = make_optimizer(name, MOMENTUM, DECAY, CLIP, nesterov=nesterov)
    theirs = alias(name, **(dict(nesterov=True) if nesterov else {})) if name != "yogi" else ours

    def both(start, grads):
        return ours.init(start), run(ours, RATE, start, grads), run(theirs, 1.0, start, grads)[0]

    quick = jax.jit(both, compiler_options={"xla_backend_optimization_level": 0})  # it runs but once
    return jax.device_get(quick(masking.apply(MASKS, START), gradients()))


def slots_of(state, shape=(6, 5)):
    return [leaf for leaf in jax.tree.leaves(state) if leaf.shape[-2:] == shape]


@pytest.mark.parametrize("name", RULES)
def test_what_is_pruned_stays_exactly_zero_and_so_do_its_slots(name):
    _, (params, states), _ = trained(name)
    kernel = params["d"]["kernel"][:PRUNED]
    assert not kernel[:, OFF].any()
    assert (kernel[-1][~OFF] != START["d"]["kernel"][~OFF]).all()
    least = 1e-8 if name.startswith("adamax") else 0  # its epsilon
    assert all(np.abs(slot[:PRUNED, OFF]).max() <= least for slot in slots_of(states))


@pytest.mark.parametrize("name", RULES)
def test_a_fresh_state_is_all_zero_and_what_grows_takes_no_wild_step(name):
    fresh, (params, _), _ = trained(name)
    assert not any(leaf.any() for leaf in jax.tree.leaves(fresh))  # counts too: `cycles` starts afresh so
    steps = np.diff(params["d"]["kernel"], axis=0)[PRUNED - 1 :, OFF] / RATE
    assert steps.any(axis=0).all()
    assert np.abs(steps).max() < 20


@pytest.mark.parametrize("name", RULES)
def test_every_slot_of_the_shape_is_cleared_where_asked_and_nothing_else(name):
    _, (_, states), _ = trained(name)
    state = jax.tree.map(lambda rows: rows[-1], states)
    where = {"d": {"kernel": jnp.arange(30).reshape(6, 5) % 4 == 0, "bias": None}}
    cleared = edit_slots(state, lambda slot, clear: jnp.where(clear, 0, slot), where)
    there = np.asarray(where["d"]["kernel"])
    slots = 0
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(cleared), strict=True):
        if before.shape == (6, 5):
            assert np.array_equal(after, np.where(there, 0, before))
            slots += before[there].any()
        else:
            assert np.array_equal(before, after)
    assert slots == len(slots_of(state))
    assert (slots > 0) == (name != "sign_sgd")


@pytest.mark.parametrize(
    ("name", "nesterov"),
    [*((name, False) for name in RULES if name != "yogi"), ("sgd", True)],  # whose alias starts at 1e-6
)
def test_steps_are_those_of_optax_by_that_name(name, nesterov):
    _, (found, _), expected = trained(name, nesterov)
    assert np.ptp(found["d"]["kernel"], axis=0).max() > 1e-5
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        moved = np.abs(theirs[-1] - theirs[0]).max()
        assert np.abs(ours - theirs).max() <= 1e-5 * moved


def test_decay_on_kernels_leaves_the_rest_alone():
    def update(name, decay, decay_on="all"):
        optimizer = make_optimizer(name, 0.0, decay, decay_on=decay_on)
        return optimizer.update(START, optimizer.init(START), START)[0]["d"]

    for name in ("sgd", "adamw"):
        every, some, plain = jax.jit(
            lambda name=name: (update(name, 0.5), update(name, 0.5, "kernels"), update(name, 0.0))
        )()
        assert np.array_equal(some["bias"], plain["bias"])
        assert np.array_equal(some["kernel"], every["kernel"])
        assert not np.array_equal(every["bias"], plain["bias"])
        assert not np.array_equal(every["kernel"], plain["kernel"])


def test_decay_on_kernels_takes_trees_of_scores_and_holds_no_array():
    optimizer = make_optimizer("sgd", 0.9, 0.5, decay_on="kernels")
    scores = {"d": {"kernel": START["d"]["kernel"], "bias": None}}  # of what can be pruned
    program = jax.make_jaxpr(optimizer.update)(scores, optimizer.init(scores), scores)
    assert not program.consts
    updates, _ = optimizer.update(scores, optimizer.init(scores), scores)
    assert updates["d"]["bias"] is None
    assert np.allclose(updates["d"]["kernel"], -1.5 * scores["d"]["kernel"])


@pytest.mark.parametrize("name", REFUSED)
def test_the_others_are_refused_by_name_and_told_why_and_what_instead(name):
    message = f"optimizer '{name}' is not for sparse training: {REFUSED[name]}; choose .*: adabelief, "
    with pytest.raises(Refusal, match=message):
        make_optimizer(name, 0.9)


def test_every_optimizer_of_optax_is_either_taken_or_refused():
    offered = {
        name
        for module in (optax, optax.contrib)
        for name, thing in vars(module).items()
        if _is_optimizer(name, thing)
    }
    new = offered - set(RULES) - set(REFUSED)
    assert not new, f"new in optax: {sorted(new)}: put each into RULES or REFUSED"
    gone = (set(RULES) | set(REFUSED)) - set(vars(optax)) - set(vars(optax.contrib))
    assert not gone, f"no longer in optax: {sorted(gone)}"
    assert not set(RULES) & set(REFUSED)
    assert set(DECOUPLED) <= set(RULES)


def _is_optimizer(name, thing):
    """Of the aliases all; elsewhere a maker with a rate of its own, or around another one."""
    if not inspect.isfunction(thing) or name.startswith(("_", "scale_by_")):
        return False
    makers = {"learning_rate", "max_learning_rate", "base_optimizer"}
    return thing.__module__ == "optax._src.alias" or bool(makers & set(inspect.signature(thing).parameters))


def test_nesterov_is_for_sgd_with_a_momentum():
    with pytest.raises(Refusal, match="nesterov is for sgd, got adam"):
        make_optimizer("adam", 0.9, nesterov=True)
    with pytest.raises(Refusal, match=r"nesterov needs a momentum, got config\.optim\.momentum=0"):
        make_optimizer("sgd", 0.0, nesterov=True)
