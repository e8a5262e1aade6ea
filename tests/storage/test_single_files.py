"""Checkpoints of the original suite, in the layout that its code writes, and compact tickets."""

import io
import json

import jax
import numpy as np
import pytest
from etils import epath
from fakes import make_model, random_variables, scattered
from flax import serialization

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.storage import paths, single_files, tickets


def variables(depth=18, width=1, seed=0):
    network = make_model("resnet", depth=depth, width=width, planes=(64, 128, 256, 512))
    found = jax.device_get(random_variables(network, (64, 64, 3), seed))
    return found["params"], found["batch_stats"]


@pytest.fixture(scope="module")
def original():
    """{params, params_mask, batch_stats, image_stats} of a ResNet-18 at 30%, as the original stores it."""
    params, batch_stats = variables()
    masks = scattered(params, 0.3, rule="conv")
    params = jax.device_get(masking.apply(masks, params))
    kernel = params.pop("cls")["kernel"]
    of = {name: leaf for name, leaf in masks.items() if name != "cls"}
    ones = lambda m, w: np.ones(w.shape, np.float32) if m is None else m.astype(np.float32)  # noqa: E731
    mask = jax.tree.map(ones, of, params, is_leaf=trees.is_none)
    pixels = {"m": np.float32([0.48, 0.46, 0.41]), "s": np.float32([0.27, 0.26, 0.28])}
    return {
        "params": {"cls": kernel, "ext": params},
        "params_mask": {"cls": np.ones_like(kernel), "ext": mask},
        "batch_stats": batch_stats,
        "image_stats": pixels,
    }


def stored(tmp_path, tree, name="best_acc.ckpt"):
    path = epath.Path(tmp_path / name)
    path.write_bytes(serialization.to_bytes(tree))
    return path


def test_a_ticket_of_the_original_suite_is_a_ticket(original, tmp_path):
    ticket = tickets.read_ticket(stored(tmp_path, original))
    for name, leaf in original["params"]["ext"].items():
        jax.tree.map(np.testing.assert_array_equal, ticket.params[name], leaf)
    np.testing.assert_array_equal(ticket.params["cls"]["kernel"], original["params"]["cls"])
    assert ticket.masks["cls"]["kernel"] is None
    assert ticket.masks["BatchNorm_3"] == {"scale": None, "bias": None}
    kernel = original["params_mask"]["ext"]["Conv_5"]["kernel"]
    np.testing.assert_array_equal(ticket.masks["Conv_5"]["kernel"], kernel == 1)
    assert ticket.meta["model"] == {"name": "resnet", "depth": 18, "width": 1, "group_size": 256}
    assert ticket.meta["kept"] == sum(int(m.sum()) for m in trees.present(ticket.masks))
    assert ticket.meta["prunable_rule"] == "conv"
    jax.tree.map(np.testing.assert_array_equal, ticket.statistics["batch_stats"], original["batch_stats"])
    assert tickets.read_meta(stored(tmp_path, original))["digest"] == ticket.digest


def test_a_dense_network_of_the_original_suite_has_whole_masks(original, tmp_path):
    dense = {key: value for key, value in original.items() if key != "params_mask"}
    ticket = tickets.read_ticket(stored(tmp_path, dense))
    assert ticket.meta["kept"] == ticket.meta["prunable"]


def test_weights_that_a_mask_of_the_original_prunes_are_zero(original, tmp_path):
    tree = jax.tree.map(np.copy, original)
    tree["params"]["ext"]["Conv_0"]["kernel"][:] = 1
    ticket = tickets.read_ticket(stored(tmp_path, tree))
    kernel, mask = ticket.params["Conv_0"]["kernel"], ticket.masks["Conv_0"]["kernel"]
    np.testing.assert_array_equal(kernel, mask.astype(np.float32))


def change(path, value):
    def apply(tree):
        for key in path[:-1]:
            tree = tree[key]
        if value is None:
            del tree[path[-1]]
        else:
            tree[path[-1]] = value

    return apply


CONV = ("params_mask", "ext", "Conv_1", "kernel")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("image_stats",),
            None,
            "has params, batch_stats, image_stats and maybe params_mask; this one has",
        ),
        (("step",), 3, "this one has batch_stats, image_stats, params, params_mask, step"),
        (("params", "ext"), None, "its params are not those of a network: ext and cls"),
        (CONV, None, "params_mask has other leaves or shapes than params"),
        (CONV, np.ones(3), "params_mask has other leaves or shapes than params"),
        (CONV, np.full((3, 3, 64, 64), 0.5), "params_mask of Conv_1/kernel is not 0 or 1 everywhere"),
        (("params_mask", "cls"), np.zeros((512, 5)), "prunes cls/kernel, which is no convolution"),
    ],
)
def test_a_file_that_is_not_in_the_layout_is_refused(path, value, message, original, tmp_path):
    tree = jax.tree.map(np.copy, original)
    change(path, value)(tree)
    with pytest.raises(Refusal, match=message):
        tickets.read_ticket(stored(tmp_path, tree))


def test_another_network_is_refused(original, tmp_path):
    tree = jax.tree.map(np.copy, original)
    for group in ("params", "params_mask"):
        del tree[group]["ext"]["Conv_19"]
    with pytest.raises(Refusal, match="19 convolutions, the first of shape"):
        tickets.read_ticket(stored(tmp_path, tree))


def test_a_truncated_or_foreign_file_is_refused(original, tmp_path):
    whole = serialization.to_bytes(original)
    path = epath.Path(tmp_path / "x.ckpt")
    for content in (whole[: len(whole) // 2], whole[:-3], b"", b"hello", b"PK\x03\x04 a zip?"):
        path.write_bytes(content)
        with pytest.raises(Refusal, match=r"x.ckpt (is|cannot|has)"):
            tickets.read_ticket(path)


# --- compact tickets


def small_ticket():
    found = jax.device_get(random_variables(make_model("convnet"), (8, 8, 1)))
    params = found.pop("params")
    masks = scattered(params, 0.2)
    params = jax.device_get(masking.apply(masks, params))
    lineage = {"seed": 3, "parents": {"matching": "abc"}, "model": {"name": "convnet"}, "step": 5}
    return tickets.make_ticket(params, masks, found, lineage)


def test_a_compact_ticket_is_the_ticket_and_small(tmp_path):
    ticket, path = small_ticket(), epath.Path(tmp_path / "x.npz")
    content = single_files.to_compact(*ticket)
    path.write_bytes(content)
    again = tickets.read_ticket(path)
    assert again.digest == ticket.digest
    assert again.meta == json.loads(json.dumps(ticket.meta))
    assert single_files.to_compact(*again) == content
    for group in ("params", "masks", "statistics"):
        jax.tree.map(np.testing.assert_array_equal, getattr(again, group), getattr(ticket, group))
    place, _ = tickets.write_ticket(epath.Path(tmp_path), *again)
    assert place.name == ticket.digest[:16]
    kept, prunable, whole = (ticket.meta[key] for key in ("kept", "prunable", "parameters"))
    bare = prunable // 8 + 4 * (kept + whole - prunable)
    statistics = sum(leaf.nbytes for leaf in jax.tree.leaves(ticket.statistics))
    assert len(content) < bare + statistics + 12_000  # of names and headers


def test_a_compact_ticket_that_was_changed_is_refused(tmp_path):
    content = single_files.to_compact(*small_ticket())
    with np.load(io.BytesIO(content)) as stored_:
        arrays = {name: stored_[name] for name in stored_.files}
    arrays["kept/Conv_0/kernel"] = arrays["kept/Conv_0/kernel"] + 1
    path = epath.Path(tmp_path / "x.npz")
    with path.open("wb") as file:
        np.savez(file, **arrays)
    with pytest.raises(Refusal, match="does not match its digest"):
        tickets.read_ticket(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(Refusal, match="is damaged"):
        tickets.read_ticket(path)


def test_directories_and_names_of_tickets_are_no_single_files(tmp_path):
    folder = epath.Path(tmp_path)
    place, _ = tickets.write_ticket(folder, *small_ticket())
    tickets.name_ticket(folder, paths.LAST, place)
    assert not paths.is_single(folder / paths.LAST)
    assert not paths.is_single(place)
    assert not paths.is_single(folder / "nothing")


def test_a_foreign_checkpoint_is_never_replaced(tmp_path):
    folder = epath.Path(tmp_path)
    place, _ = tickets.write_ticket(folder, *small_ticket())
    (folder / paths.LAST).write_bytes(b"of another suite")
    with pytest.raises(Refusal, match="a file that this suite has not written"):
        tickets.name_ticket(folder, paths.LAST, place)
    assert (folder / paths.LAST).read_bytes() == b"of another suite"
    tickets.drop_unnamed(folder, [place.name])
    assert place.exists()


def test_the_masks_of_a_chain_are_those_of_cycles_without_a_gap(tmp_path):
    folder = epath.Path(tmp_path)
    place, _ = tickets.write_ticket(folder / "trial_0/000", *small_ticket())
    for name in ("000", "002"):
        (folder / "trial_0" / name).mkdir(exist_ok=True)
        tickets.name_ticket(folder / "trial_0" / name, paths.LAST, place)
    with pytest.raises(Refusal, match="finished cycles 000, 002, and"):
        paths.finished_cycles(folder)
    (folder / "trial_0/002").rename(folder / "trial_0/001")
    assert [cycle.name for cycle in paths.finished_cycles(folder)] == ["000", "001"]
    (folder / "trial_1").mkdir()
    with pytest.raises(Refusal, match="2 trials: name one"):
        paths.finished_cycles(folder)
