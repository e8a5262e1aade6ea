"""The package from Python, and the notebook that shows it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import REPOSITORY
from test_start import DIGITS

import giung2_ext
from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import converting
from giung2_ext.experiments.importing import Wishes
from giung2_ext.storage import tickets


@pytest.fixture(scope="module")
def save(chain, tmp_path_factory):
    """A chain of a dense cycle and two pruned ones."""
    folder = tmp_path_factory.mktemp("library") / "digits"
    fields = ("--config.chain.cycles=2", "--config.chain.trials=1", "--config.chain.arms=")
    chain(folder, DIGITS, "--seed=1", *fields)
    return folder


def test_a_ticket_has_what_its_run_recorded(save):
    ticket = giung2_ext.load_ticket(save / "002/best_acc.ckpt")
    stored = tickets.read_ticket(save / "002/best_acc.ckpt")
    assert ticket.digest == stored.digest
    said = f"Ticket(lenet on digits, {ticket.lineage['kept']:,} of 50,200 weights, density 0.6400, "
    assert repr(ticket) == f"{said}{ticket.digest[:16]})"
    assert ticket.density() == stored.meta["kept"] / stored.meta["prunable"]
    whole = sum(np.count_nonzero(m) for m in trees.present(stored.masks))
    assert ticket.density("all") == pytest.approx((whole + 410) / 50610)  # 410 biases
    assert sum(kept for kept, _ in ticket.layers().values()) == whole
    with pytest.raises(Refusal, match="'prunable' or 'all', got 'conv'"):
        ticket.density("conv")


def test_logits_are_those_that_its_run_was_scored_by(save):
    path = save / "001/best_acc.ckpt"
    ticket = giung2_ext.load_ticket(path)
    from giung2_ext.data.sources import digits

    split = digits.build(None).split("test")
    found = np.argmax(ticket.apply(split.images), axis=1)
    expected = giung2_ext.load_and_evaluate(path, split_names=("test",))["test"]
    assert np.mean(found == split.labels) == pytest.approx(expected["accuracy"])
    with pytest.raises(Refusal, match=r"images are \(2, 28, 28, 1\), the network was trained on"):
        ticket.apply(np.zeros((2, 28, 28, 1), np.uint8))
    loss = lambda params: ticket.apply(split.images[:4], params).sum()  # noqa: E731
    assert any(np.any(leaf) for leaf in jax.tree.leaves(jax.grad(loss)(ticket.params)))


def test_overlap_is_of_what_either_keeps(save):
    dense, one, two = (giung2_ext.load_ticket(save / f"{n:03d}/last.ckpt") for n in range(3))
    assert dense.overlap(dense) == 1
    assert one.overlap(two) == two.overlap(one) == two.lineage["kept"] / one.lineage["kept"]


def test_a_ticket_that_is_saved_is_a_ticket_of_its_parent(save, tmp_path):
    ticket = giung2_ext.load_ticket(save / "001/last.ckpt")
    masks = jax.tree.map(
        lambda m: None if m is None else m & (np.arange(m.shape[-1]) % 2 == 0),
        ticket.masks,
        is_leaf=trees.is_none,
    )
    made = giung2_ext.save_ticket(
        tmp_path / "half", jax.tree.map(jnp.asarray, ticket.params), masks, like=ticket
    )
    again = giung2_ext.load_ticket(tmp_path / "half/last.ckpt")
    assert again.digest == made.digest != ticket.digest
    assert again.lineage["parents"] == {"like": ticket.digest}
    assert again.lineage["kept"] == sum(int(m.sum()) for m in trees.present(masks))
    for weight, mask in zip(
        trees.present(again.params), jax.tree.leaves(masks, is_leaf=trees.is_none), strict=True
    ):
        assert mask is None or not weight[~mask].any()
    soft = jax.tree.map(lambda m: None if m is None else m * 0.5, masks, is_leaf=trees.is_none)
    with pytest.raises(Refusal, match=r"masks are True or False; that of .* has other values"):
        giung2_ext.save_ticket(tmp_path / "no", ticket.params, soft, like=ticket)
    with pytest.raises(Refusal, match="like is a ticket, of load_ticket"):
        giung2_ext.save_ticket(tmp_path / "no", ticket.params, masks, like="path")
    wrong = dict(masks)
    del wrong["cls"]
    with pytest.raises(Refusal, match="not of the network of"):
        giung2_ext.save_ticket(tmp_path / "no", ticket.params, wrong, like=ticket)


def test_the_masks_of_a_chain_are_the_same_from_its_folder_and_its_map(save, tmp_path, capsys):
    converting.convert(str(save), str(tmp_path / "chain.npz"), Wishes())
    assert "3 nested masks of 50,200 weights, 50,200 to 32,128 kept" in capsys.readouterr().out
    of_folder, of_map = (giung2_ext.load_chain_masks(p) for p in (save, tmp_path / "chain.npz"))
    assert len(of_folder) == len(of_map) == 3
    for a, b in zip(of_folder, of_map, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_mask_of_a_map_is_put_onto_weights(save, tmp_path):
    converting.convert(str(save), str(tmp_path / "chain.npz"), Wishes())
    point = str(save / "iter_000000.ckpt")
    wishes = Wishes(onto=str(save / "000/last.ckpt"), cycle=2)
    made = converting.convert(str(tmp_path / "chain.npz"), str(tmp_path / "two"), wishes)
    ticket, dense, two = map(giung2_ext.load_ticket, (made, save / "000/last.ckpt", save / "002/last.ckpt"))
    assert ticket.lineage["mask_digest"] == two.lineage["mask_digest"]
    assert ticket.lineage["parents"] == {"weights": dense.digest}
    with pytest.raises(Refusal, match="map of a chain of 3 cycles: name one, --cycle=N"):
        converting.convert(str(tmp_path / "chain.npz"), str(tmp_path / "x"), Wishes(onto=point))
    with pytest.raises(Refusal, match="--onto=TICKET"):
        converting.convert(str(tmp_path / "chain.npz"), str(tmp_path / "x"), Wishes(cycle=1))


@pytest.mark.parametrize(
    ("name", "to", "wishes", "masks", "message"),
    [
        ("002/last.ckpt", "a.pt", dict(cycle=1), False, "--cycle says nothing about .*which is a ticket"),
        ("002/last.ckpt", "a.npz", {}, True, "--masks=true is for .pt, .pth, .safetensors; got --to=.*npz"),
        ("002/last.ckpt", "folder", {}, True, "--masks=true is for .pt"),
        ("002/last.ckpt", "folder", {}, False, "is a ticket already: --to=NAME with .pt, .pth"),
        ("002/last.ckpt", "a.onnx", {}, False, "ending of --to '.onnx'; known: .npz, .pt"),
        ("", "a.npz", dict(prunable="conv"), False, "--prunable says nothing about .*which is a chain"),
    ],
)
def test_a_wish_that_would_do_nothing_is_refused(name, to, wishes, masks, message, save, tmp_path):
    with pytest.raises(Refusal, match=message):
        converting.convert(str(save / name), str(tmp_path / to), Wishes(**wishes), masks)
    assert not list(tmp_path.iterdir())


def test_the_notebook_runs(save, tmp_path, monkeypatch):
    """Its cells as one program, in a folder that has the README's chain (here a short one)."""
    notebook = json.loads((REPOSITORY / "scripts/notebooks/tickets.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5
    (tmp_path / "save").mkdir()
    (tmp_path / "save/digits").symlink_to(save)
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in cells:
        exec(compile(cell, "notebook", "exec"), names)
    assert (tmp_path / "save/half/last.ckpt").exists()


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    assert set(giung2_ext.__all__) >= {"load_ticket", "save_ticket", "Ticket"}
    assert set(giung2_ext.__all__) <= set(dir(giung2_ext))
    assert all(callable(getattr(giung2_ext, name)) for name in giung2_ext.__all__)
    with pytest.raises(AttributeError, match="no attribute 'load_tickets'"):
        giung2_ext.load_tickets  # noqa: B018
