"""Runs that search masks: their tickets are tickets like others, and what cannot work is refused."""

import jax
import numpy as np
import pytest
from etils import epath
from fakes import REPOSITORY, kernels

from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import evaluate
from giung2_ext.experiments.config import default_config
from giung2_ext.storage import tickets
from giung2_ext.storage.records import read_metrics
from giung2_ext.storage.tickets import read_ticket

JACKPOTS = f"--config={REPOSITORY / 'configs/jackpots/digits.py'}"
SHORT = ("--seed=3", "--config.model.hidden=24,12", "--config.evaluation.every=20")
SEARCH = (f"--config={REPOSITORY / 'configs/multiprize/lenet_mnist.py'}:smoke", "--density=0.3")
MULTIPRIZE = (*SEARCH, *SHORT, "--config.optim.ni=60")


@pytest.fixture(scope="module")
def pretrained(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    train(folder, f"{JACKPOTS}:pretrain", *SHORT, "--optim_ni=150")
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def searched(train, pretrained, tmp_path_factory):
    """A jackpot at density 0.1: its folder and result."""
    folder = tmp_path_factory.mktemp("jackpot")
    flags = (f"--matching_ckpt={pretrained}", "--optim_ni=100", "--config.masks.density=0.1")
    return folder, train(folder, JACKPOTS, *SHORT, *flags, "--periodic_ckpt=true")


def same_bytes(one, other):
    pairs = zip(*map(jax.tree.leaves, (one, other)), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def test_a_jackpot_is_the_trained_network_under_another_mask_of_the_same_counts(searched, pretrained):
    folder, result = searched
    dense, start, found = map(read_ticket, (pretrained, folder / "iter_000000.ckpt", folder / "last.ckpt"))
    assert same_bytes(found.params, masking.apply(found.masks, dense.params))
    sizes = np.concatenate([np.abs(k).ravel() for k in kernels(dense.params)[:-1]])
    cut = np.sort(sizes)[::-1][found.meta["kept"] - 1]  # one global threshold of magnitude
    for kernel, mask in zip(kernels(dense.params), kernels(start.masks), strict=True):
        assert mask is None or np.array_equal(mask, np.abs(kernel) >= cut)
    assert jax.tree.map(np.count_nonzero, start.masks) == jax.tree.map(np.count_nonzero, found.masks)
    assert masking.chance_overlap(start.masks, found.masks) < masking.overlap(start.masks, found.masks) < 1
    assert result["scores"]["last"]["test"]["accuracy"] > result["scores"]["start"]["test"]["accuracy"]


AS_TICKET = (
    "--config.method.name=ticket", "--config.masks.criterion=none", "--config.masks.density=1.0",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["jackpots", "multiprize"])
def test_a_ticket_that_was_read_again_scores_exactly_what_it_was_written_with(
    kind, searched, train, tmp_path
):
    (folder, result), flags = searched, (JACKPOTS, *SHORT)
    if kind == "multiprize":
        folder, result = tmp_path / "found", train(tmp_path / "found", *MULTIPRIZE)
        assert len(np.unique(np.abs(kernels(read_ticket(folder / "last.ckpt").params)[0]))) == 2
        flags = (*MULTIPRIZE, "--weights=model", "--scale_fan=none")
    for name, when in (("best_acc.ckpt", "best"), ("last.ckpt", "last")):
        start = (f"--matching_ckpt={folder / name}", "--config.optim.ni=0")
        again = train(tmp_path / when, *flags, *AS_TICKET, *start)
        assert again["scores"]["start"] == {s: result["scores"][when][s] for s in ("holdout", "test")}


def test_a_jackpot_is_rewound_and_trained_and_pruned_like_any_ticket(searched, pretrained, train, tmp_path):
    folder, _ = searched
    start = (f"--matching_ckpt={pretrained}", f"--previous_ckpt={folder / 'last.ckpt'}")
    flags = (JACKPOTS, *SHORT, *start, *AS_TICKET, "--optim_ni=20", "--periodic_ckpt=true")
    train(tmp_path / "tuned", *flags)
    jackpot, begun, tuned = (
        read_ticket(path)
        for path in (
            folder / "last.ckpt",
            tmp_path / "tuned/iter_000000.ckpt",
            tmp_path / "tuned/last.ckpt",
        )
    )
    assert same_bytes(begun.params, jackpot.params)
    assert same_bytes(tuned.masks, jackpot.masks)
    assert not same_bytes(tuned.params, jackpot.params)
    train(tmp_path / "pruned", *flags, "--pruning_ratio=0.5")
    pruned = read_ticket(tmp_path / "pruned/last.ckpt")
    assert pruned.meta["kept"] == jackpot.meta["kept"] // 2
    assert bool(masking.nested(pruned.masks, jackpot.masks))


def test_evaluate_tells_how_much_two_masks_have_in_common(searched, pretrained, capsys):
    folder, _ = searched
    evaluate.evaluate(str(folder / "last.ckpt"), [], default_config().placement, against=str(pretrained))
    masks = [read_ticket(path).masks for path in (folder / "last.ckpt", pretrained)]
    share = masking.kept(masks[0]) / masking.size(masks[1])
    out = capsys.readouterr().out
    assert f"masks: {float(share):.4f} of what this ticket" in out
    assert f"densities of the layers: {masking.chance_overlap(*masks):.4f})" in out


def test_fresh_weights_are_drawn_and_scaled_by_what_each_layer_keeps(train, tmp_path):
    flags = ("--weights=signed_constant", "--edge_popup", "--config.optim.ni=0")
    for scale, factor in (("none", 1), ("kept", 0.3**-0.5), ("removed", 0.7**-0.5)):
        train(tmp_path / scale, *MULTIPRIZE, *flags, f"--scale_fan={scale}")
        ticket = read_ticket(tmp_path / scale / "last.ckpt")
        for kernel, mask in zip(kernels(ticket.params), kernels(ticket.masks), strict=True):
            exact = mask.mean() if scale == "kept" else 1 - mask.mean() if scale == "removed" else 1
            size = (2 / kernel.shape[0] / exact) ** 0.5
            np.testing.assert_allclose(np.abs(kernel[mask]), size, rtol=1e-6)
            assert size == pytest.approx((2 / kernel.shape[0]) ** 0.5 * factor, rel=0.02)
            assert 0.3 < (kernel[mask] > 0).mean() < 0.7


def test_the_best_ticket_is_of_the_final_density(train, tmp_path):
    cycles = f"--config={REPOSITORY / 'configs/multiprize/cycles.py'}:smoke"
    result = train(
        tmp_path,
        cycles,
        "--seed=0",
        "--epochs=3",
        "--test_freq=20",
        "--prune_percent=90",
        "--score",
        "--config.model.hidden=8",
    )
    last = 2 * 20  # steps before the third cycle, of 20 batches of 60 of 1,200 digits
    assert result["best_step"] > last
    best, end = read_ticket(tmp_path / "best_acc.ckpt"), read_ticket(tmp_path / "last.ckpt")
    assert best.meta["kept"] == end.meta["kept"] < 0.02 * best.meta["prunable"]
    rows = [row for row in read_metrics(epath.Path(tmp_path)) if row["split"] == "holdout"]
    kept = {row["step"]: row["kept"] for row in rows}  # measured before a cycle's end prunes
    assert kept[20] == best.meta["prunable"] > kept[40] > kept[60] == best.meta["kept"]


BAD = {
    "nothing to start from": ((JACKPOTS, *SHORT), "give the trained ones with --matching_ckpt"),
    "another architecture": (
        (JACKPOTS, *SHORT, "--matching_ckpt={dense}", "--config.model.hidden=24,13"),
        "is of another architecture: 'Dense_1/bias' has shape",
    ),
    "an emptied layer": (
        (JACKPOTS, *SHORT, "--matching_ckpt={dense}", "--config.masks.density=0.001"),
        "keeps no weight of Dense_",
    ),
    "dead weights": (
        (JACKPOTS, *SHORT, "--matching_ckpt={dead}", "--config.masks.allocation=uniform"),
        "Dense_1/kernel is all 0 and jackpots never trains it",
    ),
    "weights given twice": (
        (*MULTIPRIZE, "--matching_ckpt={dense}"),
        "config.start.weights=kaiming_normal draws weights, and --matching_ckpt gives them",
    ),
    "averaged scores": (
        (JACKPOTS, *SHORT, "--matching_ckpt={dense}", "--config.optim.ema=0.9"),
        "averages weights, and jackpots trains scores, or sets weights back",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def dead(pretrained, tmp_path_factory):
    """A ticket with a layer of zeros."""
    folder, ticket = epath.Path(tmp_path_factory.mktemp("dead")), read_ticket(pretrained)
    ticket.params["Dense_1"]["kernel"][:] = 0
    lineage = {key: value for key, value in ticket.meta.items() if key in ("images", "prunable_rule")}
    place, _ = tickets.write_ticket(folder, *ticket[:3], lineage)
    return place


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_searched_is_refused(kind, pretrained, dead, train, tmp_path):
    flags, message = BAD[kind]
    given = [flag.format(dense=pretrained, dead=dead) for flag in flags]
    with pytest.raises(Refusal, match=message):
        train(tmp_path / "run", *given)
    assert not (tmp_path / "run/last.ckpt").exists()
