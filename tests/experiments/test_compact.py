"""A compacted ticket is an ordinary one, with the answers and the lineage of the first."""

import re
import sys

import jax
import numpy as np
import pytest
from etils import epath
from fakes import IMAGE, REPOSITORY, SMALL, random_variables, script_module

import giung2_ext.models
from giung2_ext.core import discovery
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Failure, Refusal
from giung2_ext.experiments import compaction, exporting, importing
from giung2_ext.experiments.config import default_config
from giung2_ext.experiments.doctor import examination
from giung2_ext.experiments.evaluate import evaluate
from giung2_ext.experiments.judging import Judge, open_dataset
from giung2_ext.storage.tickets import read_ticket, write_ticket

DIGITS = {"name": "digits"}


def make_ticket(folder, name="resnet_cifar", kill=lambda masks, params: None, image=IMAGE, **options):
    """The name of a ticket of 10 classes, its every number drawn."""
    options = SMALL.get(name, {}) | options
    network = discovery.build(giung2_ext.models, "model", name, num_classes=10, **options)
    drawn = jax.tree.map(np.array, random_variables(network, image))
    params = drawn.pop("params")
    masks = jax.tree.map(np.array, masking.dense(params, "kernels"))
    kill(masks, params)
    statistics = drawn | {"image_stats": {"m": np.full(1, 0.3, "f4"), "s": np.full(1, 0.4, "f4")}}
    model = {"name": name} | {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    lineage = dict(model=model, data=DIGITS, num_classes=10, image_shape=list(image), step=7)
    lineage |= {"seed": 3, "parents": {"matching": "abc"}, "precision": "float32"}
    params = jax.device_get(masking.apply(masks, params))
    return str(write_ticket(epath.Path(folder), params, masks, statistics, lineage)[0])


def unread(masks, params):
    """Stage 1's channel 1, and two of those within the first block."""
    for layer in (1, 3, 5):
        masks[f"Conv_{layer}"]["kernel"][:, :, 1] = False
    masks["Conv_2"]["kernel"][:, :, [0, 2]] = False


LEFT = [3, 2, 3, 8, 8, 8, 16, 16, 16]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return make_ticket(tmp_path_factory.mktemp("first"), kill=unread)


@pytest.fixture(scope="module")
def compacted(first, tmp_path_factory):
    """(what was found, the folder)"""
    folder = tmp_path_factory.mktemp("compacted") / "to"
    return compaction.compact(first, str(folder), images=8), folder


def test_the_ticket_has_the_channels_that_are_left_and_the_rest_of_its_lineage(first, compacted):
    found, folder = compacted
    old, new = read_ticket(first), read_ticket(str(folder / "last.ckpt"))
    assert new.meta["model"] == old.meta["model"] | {"channels": LEFT}
    assert new.meta["parents"] == {"compacted": old.digest}
    derived = ("digest", "kept", "prunable", "parameters", "mask_digest", "layers", "model", "parents")
    assert {k: v for k, v in new.meta.items() if k not in derived} == {
        k: v for k, v in old.meta.items() if k not in derived
    }
    gone = 2 + 2 + 2 * 2  # BatchNorm's of channel 1 in the stem and Conv_2, and Conv_1's of two
    kernels = [
        9 * 1 * 3,
        9 * 3 * 2,
        9 * 2 * 3,
        9 * 3 * 8,
        9 * 8 * 8,
        3 * 8,
        9 * 8 * 16,
        9 * 16 * 16,
        8 * 16,
    ]
    vectors = old.meta["parameters"] - old.meta["prunable"]
    assert new.meta["prunable"] == sum(kernels) + 16 * 10
    assert new.meta["parameters"] == new.meta["prunable"] + vectors - gone
    assert (found["removed"], found["ticket"]) == (4, new.digest)
    assert new.meta["kept"] == new.meta["prunable"]  # all that was dead is gone


def test_it_is_judged_like_any_other_and_answers_as_the_first_did(first, compacted):
    where = default_config().placement
    dataset = open_dataset("digits", DIGITS, "", None)
    ours, theirs = (
        Judge(str(name), 64, where).answer(dataset) for name in (first, compacted[1] / "last.ckpt")
    )
    assert np.array_equal(ours["ids"], theirs["ids"])
    assert np.array_equal(ours["top"][:, 0], theirs["top"][:, 0])
    np.testing.assert_allclose(theirs["nll"], ours["nll"], rtol=1e-4, atol=1e-5)
    [judged] = evaluate(str(compacted[1] / "last.ckpt"), [], where, batch_size=64)
    assert judged["ticket"] == read_ticket(str(compacted[1] / "last.ckpt")).digest


def test_what_it_costs_is_counted_and_its_time_measured(compacted):
    found, _ = compacted
    rows = found["costs"]
    assert list(rows)[:2] == ["parameters", "kept weights"]
    pixels, quarter, sixteenth = 64, 16, 4  # of the stages, at 8x8
    dense = pixels * 9 * (4 + 16 + 16) + quarter * (9 * (4 * 8 + 8 * 8) + 4 * 8)
    dense += sixteenth * (9 * (8 * 16 + 16 * 16) + 8 * 16) + 160
    left = pixels * 9 * (3 + 6 + 6) + quarter * (9 * (3 * 8 + 8 * 8) + 3 * 8)
    left += sixteenth * (9 * (8 * 16 + 16 * 16) + 8 * 16) + 160
    assert rows["FLOPs of an image, computed densely"] == (2 * dense, 2 * left)
    times = [row for name, row in rows.items() if name.startswith("ms a batch of")]
    assert len(times) == 2
    assert all(0 < time < 1000 for pair in times for time in pair)
    assert found["difference"] < 1e-5


def test_it_says_what_it_did_and_again_writes_the_same(first, compacted, capsys, monkeypatch):
    _, folder = compacted
    before = (folder / "last.ckpt").resolve()
    command = ["compact.py", f"--to={folder}", first, "--images=4"]
    monkeypatch.setattr(sys, "argv", command)
    script_module("compact").main()
    said = capsys.readouterr().out
    assert "logits of 4 random images differ by at most" in said
    assert "4 of 94 are taken out; left are Conv_0 3 of 4, Conv_1 2 of 4, Conv_2 3 of 4" in said
    assert re.search(r"ms a batch of 32 \(float32, cpu, \w+\) +[\d.]+ +[\d.]+ +[\d.]+", said)
    assert "measured on this machine just now; no speed-up is promised" in said
    assert (folder / "last.ckpt").resolve() == before


def test_compacting_what_is_compact_says_so_and_writes_nothing(compacted, tmp_path, capsys):
    assert compaction.compact(str(compacted[1] / "last.ckpt"), str(tmp_path / "again"), 4) == {"removed": 0}
    assert (
        "no channel is dead, so there is nothing to take out; nothing is written" in capsys.readouterr().out
    )
    assert not (tmp_path / "again").exists()


def test_a_place_with_another_ticket_is_refused_before_anything_is_computed(first, compacted, tmp_path):
    other = make_ticket(tmp_path, name="lenet")
    with pytest.raises(Refusal, match=r"last.ckpt is another ticket: choose another folder"):
        compaction.compact(other, str(compacted[1]))
    with pytest.raises(Refusal, match="is inside the ticket"):
        compaction.compact(other, f"{first}/inside")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    for place in ("run", "run/tickets", "run/states", "run/damaged"):
        with pytest.raises(Refusal, match=r"run is the folder of a run: choose another"):
            compaction.compact(other, str(tmp_path / place))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_logits_that_would_change_are_refused(first, tmp_path, monkeypatch):
    monkeypatch.setattr(compaction, "TOLERANCE", -1.0)
    with pytest.raises(
        Failure, match="logits would change by more than -1 of the largest; nothing is written"
    ):
        compaction.compact(first, str(tmp_path / "to"), 4)
    assert not (tmp_path / "to").exists()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_has_diverged_is_refused_with_that_reason(value, tmp_path):
    def diverge(masks, params):
        masks["Dense_1"]["kernel"][2] = False
        params["Dense_0"]["kernel"][3, 4] = value

    ticket = make_ticket(tmp_path / "first", "lenet", diverge)
    with pytest.raises(Refusal, match="logits are not finite: it diverged; nothing is written") as refused:
        compaction.compact(ticket, str(tmp_path / "to"), 4)
    assert refused.type is Refusal
    assert not (tmp_path / "to").exists()


CONV = dict(channels=(4, 5), hidden=(6, 7))
NARROWER = {  # options, a layer that does not read its input 2, what is left: a map has a dead one too
    "lenet": ({}, "Dense_1", {"hidden": [15, 12]}),
    "convnet": ({}, "Conv_1", {"widths": [3, 6]}),
    "conv": (CONV, "Dense_1", {"channels": [4, 4], "hidden": [5, 7]}),
    "lenet5": (CONV, "Dense_1", {"channels": [4, 4], "hidden": [5, 7]}),
}


@pytest.fixture(scope="module", params=NARROWER)
def narrower(request, tmp_path_factory):
    """(model, the first ticket, the name of the compacted one)"""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    options, reader, left = NARROWER[name]

    def kill(masks, params):
        masks[reader]["kernel"][..., 2, :] = False
        if "channels" in left:
            masks["Dense_0"]["kernel"].reshape(-1, 5, 6)[:, 1] = False

    ticket = make_ticket(folder / "first", name, kill, **options)
    compaction.compact(ticket, str(folder / "to"), 2)
    return name, read_ticket(ticket), folder / "to/last.ckpt"


def test_the_widths_of_every_kind_of_layer_have_an_option(narrower):
    name, first, last = narrower
    model, left = read_ticket(str(last)).meta["model"], NARROWER[name][2]
    assert {key: model[key] for key in left} == left
    assert set(model) - set(left) == set(first.meta["model"]) - set(left)


def test_the_doctor_finds_no_fault_in_it(narrower, compacted, capsys):
    for last in (narrower[2], compacted[1] / "last.ckpt"):
        assert examination.report(last)
        assert "looked at 0 runs, 1 ticket" in capsys.readouterr().out


@pytest.mark.parametrize("ending", [".pt", ".safetensors", ".npz"])
def test_what_was_exported_of_it_is_imported_as_the_same_ticket(ending, narrower, tmp_path):
    last, file = read_ticket(str(narrower[2])), epath.Path(tmp_path / f"a{ending}")
    exporting.export(last, file)
    assert importing.open_any(file, importing.Wishes())[0].digest == last.digest


@pytest.mark.parametrize(
    ("name", "channels", "ours", "theirs"),
    [("conv", (4, 3), "Dense_0", "linear.0"), ("vgg", (4, 3, 8, 8, 16, 15), "cls", "classifier")],
)
def test_a_map_is_flattened_in_a_file_as_pytorch_flattens_the_channels_that_are_left(
    name, channels, ours, theirs, tmp_path
):
    ticket = read_ticket(make_ticket(tmp_path, name, image=(16, 16, 1), channels=channels))
    exporting.export(ticket, epath.Path(tmp_path / "a.pt"))
    imported, _ = importing.open_any(epath.Path(tmp_path / "a.pt"), importing.Wishes())
    assert imported.digest == ticket.digest
    kernel = ticket.params[ours]["kernel"]
    side = round((len(kernel) / channels[-1]) ** 0.5)
    assert side > 1
    expected = kernel.reshape(side, side, channels[-1], -1).transpose(3, 2, 0, 1)
    found = exporting.named_for_torch(ticket, masks=False)[0][f"{theirs}.weight"]
    assert np.array_equal(found.reshape(expected.shape), expected)


def test_a_model_whose_channels_cannot_be_chosen_is_refused_and_those_are_named_whose_can(tmp_path):
    def kill(masks, params):
        masks["Block_1"]["fc1"]["kernel"][:, 2] = False
        masks["Block_1"]["fc2"]["kernel"][2] = False

    ticket = make_ticket(tmp_path / "first", "vit", kill)
    said = (
        r"vit has no option for the channels that are left of Block_1/fc1/kernel: 1 channels are dead and "
        r"cannot be taken out; nothing is written. Such options have alexnet \(channels, hidden\), conv "
        r"\(channels, hidden\), convnet \(widths\), lenet \(hidden\), lenet5 .*, wide_resnet \(channels\)$"
    )
    with pytest.raises(Refusal, match=said):
        compaction.compact(ticket, str(tmp_path / "to"))
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage: python scripts/compact.py TICKET --to=DIR"),
        (["x"], "usage: python scripts/compact.py TICKET --to=DIR"),
        (["x", "--to=y", "--images=0"], "--images must be at least 1, got 0"),
        (["x", "--to=y", "--image=3"], "unknown flag --image; did you mean images?"),
        (["nowhere", "--to=y"], "no checkpoint at nowhere"),
    ],
)
def test_bad_words_are_refused_with_what_was_meant(words, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compact.py", *words])
    with pytest.raises(Refusal, match=re.escape(said)):
        script_module("compact").main()
    assert not list(tmp_path.iterdir())


def test_help_says_that_it_is_a_measurement(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compact.py", "--help"])
    script_module("compact").main()
    assert "not a promised speed-up" in " ".join(capsys.readouterr().out.split())
    assert (REPOSITORY / "scripts/compact.py").read_text().count("python scripts/compact.py TICKET") == 2
