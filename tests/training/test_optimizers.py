import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.training.optimizers import REFUSED, RULES, edit_slots, make_optimizer

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

SMALL = {"d": {"kernel": jnp.linspace(-1.0, 1.0, 30).reshape(6, 5), "bias": jnp.full(5, 0.5)}}
MASKS = {"d": {"kernel": jnp.arange(30).reshape(6, 5) % 3 == 0, "bias": None}}


def gradients(seed):
    draw = np.random.default_rng(seed)
    full = {"d": {"kernel": draw.normal(size=(6, 5)), "bias": draw.normal(size=5)}}
    return masking.apply(MASKS, jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), full))


def train(optimizer, params, steps, rate=0.01):
    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(lambda p, u: p + rate * u, params, updates), state

    state = optimizer.init(params)
    for seed in range(steps):
        params, state = step(params, state, gradients(seed))
    return params, state


def slots_of(state):
    return [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (6, 5)]


@pytest.mark.parametrize("name", RULES)
def test_what_is_pruned_stays_exactly_zero_and_fresh_slots_are_zero(name):
    optimizer = make_optimizer(name, 0.9, 1e-2, 1.0)
    assert not any(slot.any() for slot in slots_of(optimizer.init(SMALL)))
    start = masking.apply(MASKS, SMALL)
    params, state = train(optimizer, start, 11)
    off = ~np.asarray(MASKS["d"]["kernel"])
    assert not np.asarray(params["d"]["kernel"])[off].any()
    assert (np.asarray(params["d"]["kernel"])[~off] != np.asarray(start["d"]["kernel"])[~off]).all()
    least = 1e-8 if name.startswith("adamax") else 0  # whose epsilon is in its slot
    assert all(np.abs(np.asarray(slot)[off]).max() <= least for slot in slots_of(state))
    cleared = edit_slots(
        state, lambda slot, mask: jnp.where(mask, slot, 0), jax.tree.map(jnp.zeros_like, MASKS)
    )
    assert not any(slot.any() for slot in slots_of(cleared))
    others = [[x for x in jax.tree.leaves(s) if x.shape != (6, 5)] for s in (state, cleared)]
    assert jax.tree.all(jax.tree.map(np.array_equal, *others))
    assert any(slot.any() for slot in slots_of(state)) == (name != "sign_sgd")


ALIASES = {
    "acprop": dict(b1=0.9, eps_root=0.0),
    "adabelief": dict(b1=0.9, eps_root=0.0),
    "adadelta": dict(rho=0.9),
    "adagrad": dict(initial_accumulator_value=0.0),
    **{
        n: dict(b1=0.9)
        for n in ("adam", "adamax", "adopt", "amsgrad", "nadam", "radam", "optimistic_adam_v2")
    },
    **{n: dict(b1=0.9, weight_decay=0.1) for n in ("adamw", "adamaxw", "adan", "ademamix", "lion")},
    **{n: dict(b1=0.9, weight_decay=0.1) for n in ("nadamw", "simplified_ademamix")},
    "optimistic_gradient_descent": {},
    "rmsprop": dict(momentum=0.9),
    "sgd": dict(momentum=0.9, nesterov=True),
    "sign_sgd": {},
    "signum": dict(beta=0.9),
}


@pytest.mark.parametrize("name", [name for name in RULES if name != "yogi"])  # whose alias starts at 1e-6
def test_steps_are_those_of_optax_by_that_name(name):
    options, rate = ALIASES[name], 0.01
    decay = options.get("weight_decay", 0.0)
    ours = make_optimizer(name, 0.9, decay, nesterov=options.get("nesterov", False))
    theirs = getattr(optax, name, None) or getattr(optax.contrib, name)
    found, _ = train(ours, SMALL, 4, rate)
    expected, _ = train(theirs(rate, **options), SMALL, 4, 1.0)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-5, atol=2e-5), found, expected))


def test_decay_on_kernels_leaves_the_rest_alone():
    for name in ("sgd", "adamw"):
        plain, _ = train(make_optimizer(name, 0.0, 0.0), SMALL, 1)
        some, _ = train(make_optimizer(name, 0.0, 0.5, decay_on="kernels"), SMALL, 1)
        every, _ = train(make_optimizer(name, 0.0, 0.5), SMALL, 1)
        assert np.array_equal(some["d"]["bias"], plain["d"]["bias"])
        assert np.array_equal(some["d"]["kernel"], every["d"]["kernel"])
        assert not np.array_equal(every["d"]["bias"], plain["d"]["bias"])
        assert not np.array_equal(every["d"]["kernel"], plain["d"]["kernel"])
    partial = {"d": {"kernel": SMALL["d"]["kernel"], "bias": None}}  # scores of what can be pruned
    assert make_optimizer("sgd", 0.9, 0.5, decay_on="kernels").init(partial)


@pytest.mark.parametrize("name", REFUSED)
def test_the_others_are_refused_by_name_and_told_why(name):
    with pytest.raises(Refusal, match=f"optimizer '{name}' is not for sparse training: {REFUSED[name]}"):
        make_optimizer(name, 0.9)


def test_every_optimizer_of_optax_is_either_taken_or_refused():
    assert not set(RULES) & set(REFUSED)
    known = set(RULES) | set(REFUSED)
    offered = {name for name in dir(optax) if name[0] != "_" and _is_optimizer(getattr(optax, name))}
    assert len(offered) > 25
    assert offered <= known, f"new in optax: {offered - known}: put it into RULES or REFUSED"
    wrappers = {"schedule_free"}  # of any optimizer
    of_contrib = {
        name
        for name in dir(optax.contrib)
        if name[0] != "_" and _is_optimizer(getattr(optax.contrib, name))
    }
    assert of_contrib - wrappers <= known, (
        f"new in optax.contrib: {of_contrib - known - wrappers}: put it into RULES or REFUSED"
    )


def _is_optimizer(thing):
    """A maker with a rate of its own, which is no mere part of one, nor a state."""
    name = getattr(thing, "__name__", "")
    if not callable(thing) or isinstance(thing, type) or name.startswith("scale_by_"):
        return False
    try:
        return "learning_rate" in inspect.signature(thing).parameters
    except (TypeError, ValueError):
        return False


def test_nesterov_is_for_sgd_alone():
    with pytest.raises(Refusal, match="nesterov is for sgd, got adam"):
        make_optimizer("adam", 0.9, nesterov=True)
