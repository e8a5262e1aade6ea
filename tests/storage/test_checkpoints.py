"""A restored state is the saved one, bit for bit, in whatever process and on whatever devices."""

import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from fakes import REPOSITORY
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from giung2_ext.core.errors import Refusal
from giung2_ext.storage.checkpoints import StateStore, checksums


def newest(store):
    """The newest state's step and notes, or None where there is no state."""
    steps = store.steps()
    return (steps[0], store.notes(steps[0])) if steps else None


def make_tree(seed):
    """What states are made of: optax's named tuples, typed keys, absent subtrees, odd floats."""
    key = jax.random.key(seed, impl="threefry2x32")
    params = {"w": jax.random.normal(key, (3, 4)), "b": jnp.array([-0.0, jnp.nan, 1e-45]) * (seed + 1)}
    rule = optax.chain(optax.clip(1.0), optax.trace(0.9), optax.scale_by_adam(), optax.scale(-1.0))
    _, slots = rule.update(params, rule.init(params), params)
    return {
        "step": None,
        "key": key,
        "keys": jax.random.split(key, 3),
        "masks": {"w": params["w"] > 0, "b": None},
        "optimizer": slots,
        "counts": [jnp.int32(2**31 - 1 - seed), (), None],
        "params": params,
    }


def bits(tree):
    def plain(leaf):
        typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if typed else leaf)
        return str(leaf.dtype), array.shape, array.tobytes()

    return jax.tree.structure(tree), [plain(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path) / "states"


def save(folder, *steps, keep=9, tree=None):
    store = StateStore(folder, keep)
    for step in steps:
        store.save(step, make_tree(step) if tree is None else tree, {"step": step})
    store.close()


def test_a_new_store_restores_every_bit_and_every_type(folder):
    save(folder, 3, 7)
    for ask_first in (True, False):
        store = StateStore(folder, 9)
        if ask_first:
            assert newest(store) == (7, {"step": 7})
        for step in (3, 7):
            assert bits(store.restore(step, make_tree(0))) == bits(make_tree(step))
        store.close()
    restored = StateStore(folder, 9).restore(7, make_tree(0))
    assert type(restored["optimizer"][1]) is optax.TraceState
    assert restored["step"] is None
    assert jax.random.key_impl(restored["key"]) == "threefry2x32"


def test_notes_are_kept_with_the_newest_state_and_asking_makes_nothing(folder):
    assert newest(StateStore(folder, 2)) is None
    assert not folder.exists()
    notes = {"best": [{"correct": 360, "step": -1, "digest": ""}], "third": 1 / 3, "none": None, "é": "ü"}
    store = StateStore(folder, 2)
    store.save(1, {"w": jnp.ones(2)}, {"old": True})
    store.save(2, {"w": jnp.ones(2)}, notes)
    assert newest(store) == (2, notes)
    assert newest(StateStore(folder, 2)) == (2, notes)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_states_are_retained(keep, folder):
    tree = {"w": jnp.ones(2)}
    save(folder, 5, 10, 100, keep=keep, tree=tree)
    save(folder, 101, 102, keep=keep, tree=tree)  # by another process, say
    assert sorted(int(p.name) for p in folder.iterdir()) == [5, 10, 100, 101, 102][-keep:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["params"].update(extra=jnp.ones(2)), "'params.extra' is missing"),
        (lambda tree: tree["params"].pop("b"), "'params.b' was saved but is not expected"),
        (lambda tree: tree["params"].update(b=None), "'params.b' was saved but is not expected"),
        (lambda tree: tree["params"].update(b=jnp.ones(4)), "'params.b' is float32.*3.*float32.*4"),
        (lambda tree: tree["params"].update(b=jnp.ones(3, int)), "'params.b' is float32.*int32"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_name(change, message, folder):
    save(folder, 1)
    target = make_tree(0)
    change(target)
    with pytest.raises(Refusal, match=f"does not fit this run: {message}"):
        StateStore(folder, 9).restore(1, target)


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8), (8, 2)])
def test_a_state_restores_onto_another_topology(before, after, folder):
    def spread(tree, devices):
        sharding = NamedSharding(Mesh(np.array(jax.devices()[:devices]), "d"), PartitionSpec("d"))
        return jax.device_put(tree, sharding)

    tree = {"w": jnp.arange(48.0).reshape(16, 3), "keys": jax.random.split(jax.random.key(1), 8)}
    save(folder, 1, tree=spread(tree, before))
    target = spread(jax.tree.map(lambda leaf: leaf[::-1], tree), after)
    restored = StateStore(folder, 9).restore(1, target)
    assert bits(restored) == bits(tree)
    assert len(restored["w"].sharding.device_set) == after


def test_a_cleared_store_is_empty_and_can_be_used_again(folder):
    store = StateStore(folder, 2)
    store.clear()  # nothing there yet
    store.save(9, make_tree(9), {})
    store.clear()
    assert not folder.exists()
    assert newest(store) is None
    store.save(9, make_tree(1), {"again": True})
    assert newest(store) == (9, {"again": True})
    assert bits(store.restore(9, make_tree(0))) == bits(make_tree(1))


def test_a_state_set_aside_makes_room_for_the_next_of_its_step(folder):
    save(folder, 5, 10)
    store = StateStore(folder, 1)
    store.set_aside([10])
    assert store.steps() == [5]
    store.save(10, make_tree(3), {"again": True})
    assert newest(store) == (10, {"again": True})
    assert bits(store.restore(10, make_tree(0))) == bits(make_tree(3))
    assert len(list((folder.parent / "damaged").iterdir())) == 1


def test_a_checksum_knows_every_single_change():
    tree = make_tree(0)
    before = checksums(tree)
    assert before == checksums(jax.tree.map(lambda leaf: leaf, tree))
    bits = np.asarray(tree["params"]["w"]).view(np.uint32)
    for place in np.ndindex(bits.shape):
        for bit in (0, 15, 31):
            changed = bits.copy()
            changed[place] ^= np.uint32(1) << np.uint32(bit)
            tree["params"]["w"] = jnp.asarray(changed.view(np.float32))
            assert checksums(tree)["params.w"] != before["params.w"]
    swapped = bits.copy()
    swapped[0, 0], swapped[2, 3] = bits[2, 3], bits[0, 0]
    tree["params"]["w"] = jnp.asarray(swapped.view(np.float32))
    assert checksums(tree)["params.w"] != before["params.w"]


def test_notes_are_those_of_the_moment(folder):
    notes = {"best": [{"step": 1}]}
    store = StateStore(folder, 2)
    store.save(1, make_tree(0), notes)
    notes["best"][0]["step"] = 2  # while it is being written, perhaps
    assert newest(store) == (1, {"best": [{"step": 1}]})


def test_two_hooks_may_save_the_same_step(folder):
    save(folder, 5, 5)
    save(folder, 5)
    assert newest(StateStore(folder, 9)) == (5, {"step": 5})
    assert bits(StateStore(folder, 9).restore(5, make_tree(0))) == bits(make_tree(5))


def test_a_killed_saver_leaves_a_whole_state(folder):
    code = """
import sys
import jax.numpy as jnp
from etils import epath
from giung2_ext.storage.checkpoints import StateStore, checksums
store = StateStore(epath.Path(sys.argv[1]), 2)
for step in range(1, 10**6):
    store.save(step, {"w": jnp.full(1000, step), "b": jnp.full(3, -step)}, {"step": step})
    print(step, flush=True)
"""
    command = [sys.executable, "-W", "ignore", "-c", code, os.fspath(folder)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as saver:
        try:
            told = [int(saver.stdout.readline()) for _ in range(4)][-1]
        finally:
            saver.kill()
    assert saver.returncode == -signal.SIGKILL
    store = StateStore(folder, 2)
    step, notes = newest(store)
    assert step >= told - 1  # the newest one may not be whole yet
    assert notes == {"step": step}
    restored = store.restore(step, {"w": jnp.zeros(1000, int), "b": jnp.zeros(3, int)})
    assert {name: set(leaf.tolist()) for name, leaf in restored.items()} == {"w": {step}, "b": {-step}}
