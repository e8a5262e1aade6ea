"""What a run starts from: the rules of matching, previous and ratio, and the rewinding law."""

import numpy as np
import pytest
from fakes import REPOSITORY

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.storage.tickets import read_ticket

DIGITS = f"--config={REPOSITORY / 'configs/imp/digits.py'}:smoke"
SHORT = (DIGITS, "--seed=3", "--optim_ni=20", "--config.evaluation.every=10")


@pytest.fixture
def dense(train, tmp_path):
    """A rewind point at step 20 and a dense run from it."""
    train(tmp_path / "r", *SHORT, "--periodic_ckpt=true", "--constant_lr=true")
    point = tmp_path / "r/iter_000020.ckpt"
    train(tmp_path / "r/000", *SHORT, f"--matching_ckpt={point}", f"--previous_ckpt={point}")
    return point, tmp_path / "r/000/best_acc.ckpt"


def test_before_its_first_step_a_ticket_is_the_rewind_point_under_its_mask(dense, train, tmp_path):
    point, best = dense
    flags = (f"--matching_ckpt={point}", f"--previous_ckpt={best}", "--pruning_ratio=0.37")
    train(tmp_path / "t", *SHORT, *flags, "--periodic_ckpt=true")
    start, rewind, trained = (read_ticket(p) for p in (tmp_path / "t/iter_000000.ckpt", point, best))
    expected = masking.apply(start.masks, rewind.params)
    pairs = zip(trees.present(start.params), trees.present(expected), strict=True)
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
    assert start.meta["kept"] == 50200 * 37 // 100
    assert bool(masking.nested(start.masks, trained.masks))
    magnitudes = np.sort(np.concatenate([np.abs(k).ravel() for k in kernels(trained)]))[::-1]
    cut = magnitudes[start.meta["kept"] - 1]
    for kernel, mask in zip(kernels(trained), trees.present(start.masks), strict=True):
        assert (np.abs(kernel)[mask] >= cut).all()
        assert (np.abs(kernel)[~mask] <= cut).all()
    assert start.meta["parents"] == {"matching": rewind.digest, "previous": trained.digest}


def kernels(ticket):
    return [leaf for name, leaf in trees.named_leaves(ticket.params).items() if name.endswith("kernel")]


def test_a_ratio_of_one_selects_nothing_even_where_kept_weights_are_zero(dense, train, tmp_path):
    point, best = dense
    first = (f"--matching_ckpt={point}", f"--previous_ckpt={best}", "--pruning_ratio=0.5")
    train(tmp_path / "a", *SHORT, *first)
    mask = read_ticket(tmp_path / "a/last.ckpt").masks
    again = (f"--matching_ckpt={tmp_path / 'a/last.ckpt'}",)  # alone: its own mask
    train(tmp_path / "b", *SHORT, *again)
    train(tmp_path / "c", *SHORT, *again, f"--previous_ckpt={tmp_path / 'a/last.ckpt'}")
    for run in "bc":
        found = read_ticket(tmp_path / run / "last.ckpt").masks
        assert masking.overlap(found, mask) == 1.0


def test_legacy_scores_prune_as_the_original_suite_did_but_a_ratio_of_one_selects_nothing(train, tmp_path):
    train(tmp_path / "r", *SHORT)
    dense = tmp_path / "r/last.ckpt"
    weights = np.concatenate([kernel.ravel() for kernel in kernels(read_ticket(dense))])
    scores = (np.abs(weights) + np.float32(1)) - np.float32(1)  # multiples of 2^-23, so that some tie
    ranked = np.sort(scores)[::-1]
    k = next(i for i in range(20000, 40000) if ranked[i - 1] == ranked[i])  # the cut is between two ties
    legacy = (*SHORT, f"--matching_ckpt={dense}", "--config.start.legacy_scores=true", "--optim_ni=1")
    ratio = (k + 0.5) / len(scores)
    train(tmp_path / "a", *legacy, f"--previous_ckpt={dense}", f"--pruning_ratio={ratio}")
    first = read_ticket(tmp_path / "a/last.ckpt")
    kept = np.concatenate([mask.ravel() for mask in trees.present(first.masks)])
    assert np.array_equal(kept, scores >= ranked[k])
    assert first.meta["kept"] > k == int(ratio * len(scores))
    # the original's cut could fall to 0 here, which what was pruned reached too: all came back
    train(tmp_path / "b", *legacy, f"--previous_ckpt={tmp_path / 'a/last.ckpt'}")
    assert read_ticket(tmp_path / "b/last.ckpt").meta["mask_digest"] == first.meta["mask_digest"]


def test_a_criterion_cannot_ask_for_more_than_a_checkpoint_has_left(dense, train, tmp_path):
    point, best = dense
    chained = (f"--matching_ckpt={point}", f"--previous_ckpt={best}", "--pruning_ratio=0.2")
    train(tmp_path / "sparse", *SHORT, *chained)
    again = (f"--matching_ckpt={tmp_path / 'sparse/last.ckpt'}", "--config.masks.criterion=magnitude")
    with pytest.raises(
        Refusal, match=r"asks for 25,100 weights where the checkpoint's mask has 10,040 left"
    ):
        train(tmp_path / "x", *SHORT, *again, "--config.masks.density=0.5")
    assert train(tmp_path / "y", *SHORT, *again, "--config.masks.density=0.1")["kept"] == 5020


BAD = {
    ("--config.method.name=jackpots",): "jackpots never trains a weight: give the trained ones",
    ("--optim_lr=-1",): "config.optim.lr must be a finite number, at least 0, got -1",
    ("--optim_momentum=2",): r"config.optim.momentum must be in \[0, 1\), got 2",
    ("--config.evaluation.select_on=train",): "must be a split that is not trained on",
    ("--config.evaluation.select_on=tset",): "unknown split 'tset'",
    ("--config.masks.criterion=random", "--config.masks.density=1e-9"): "config.masks.density=1e-09 of",
    ("--seed=99999999999999999999",): "seed must be in",
    ("--config.method.name=rigl", "--config.method.every=0"): "rigl needs every >= 1",
    ("--previous_ckpt=x",): "--previous_ckpt without --matching_ckpt",
    ("--pruning_ratio=0.8",): "--pruning_ratio=0.8 without --previous_ckpt",
    ("--matching_ckpt=x", "--pruning_ratio=0.8"): "--pruning_ratio=0.8 without --previous_ckpt",
    ("--matching_ckpt=x", "--previous_ckpt=x", "--pruning_ratio=1.2"): r"must be in \(0, 1\], got 1.2",
    ("--matching_ckpt=x", "--previous_ckpt=x", "--pruning_ratio=0"): r"must be in \(0, 1\], got 0",
    ("--matching_ckpt=nowhere/last.ckpt",): "no checkpoint at nowhere/last.ckpt",
    ("--config.masks.density=0.5",): "needs a config.masks.criterion",
    ("--config.masks.criterion=magnitud",): "unknown config.masks.criterion 'magnitud'.* mean 'magnitude'",
    ("--config.masks.criterion=synflo",): "did you mean 'synflow'",
    ("--config.masks.criterion=snip", "--config.masks.allocation=unifrom"): "did you mean 'uniform'",
    ("--config.masks.criterion=snip", "--config.masks.structure=4:2"): r"n:m with 0 < n < m.* got '4:2'",
    (
        "--config.masks.structure=2:4",
    ): r"structure=2:4 needs a config\.masks\.criterion \(random, magnitude, s",
    (
        *("--config.masks.criterion=snip", "--config.masks.structure=2:4"),
        "--config.masks.density=0.4",
    ): r"structure=2:4 keeps 0\.5 of every layer: leave config\.masks\.density=0\.4 out",
    (
        *("--config.masks.criterion=snip", "--config.masks.structure=2:4"),
        "--config.masks.allocation=erk",
    ): r"keeps 0\.5 of every layer: config\.masks\.allocation=erk does not",
    (
        "--config.masks.criterion=snip",
        "--config.masks.structure=3:5",
    ): "multiples of 5, and Dense_0/kernel has 64",
    (
        "--config.masks.criterion=snip",
        "--config.masks.batches=0",
    ): "masks.batches must be at least 1, got 0",
    ("--config.masks.prunable=conv",): "finds nothing to prune",
    ("--batch_size=5000",): r"batch_size must be in 1..1200",
    ("--config.evaluation.every=0",): "config.evaluation.every must be at least 1, got 0",
}


@pytest.mark.parametrize("flags", BAD, ids=lambda f: f[-1])
def test_a_start_that_means_nothing_is_refused_and_leaves_no_result(flags, train, tmp_path):
    with pytest.raises(Refusal, match=BAD[flags]):
        train(tmp_path / "run", *SHORT, *flags)
    assert not (tmp_path / "run/last.ckpt").exists()


def test_a_checkpoint_of_another_architecture_names_the_first_leaf(dense, train, tmp_path):
    point, _ = dense
    with pytest.raises(
        Refusal, match=r"another architecture: 'Dense_0/bias' has shape \(300,\), expected \(20,\)"
    ):
        train(tmp_path / "x", *SHORT, f"--matching_ckpt={point}", "--config.model.hidden=20,10")
    with pytest.raises(Refusal, match=r"another config\.masks\.prunable"):
        train(tmp_path / "x", *SHORT, f"--matching_ckpt={point}", "--config.masks.prunable=body")


def test_a_truncated_checkpoint_is_refused(dense, train, tmp_path):
    point, _ = dense
    arrays = point / "arrays.npz"
    arrays.write_bytes(arrays.read_bytes()[:-100])
    with pytest.raises(Refusal, match="is damaged"):
        train(tmp_path / "x", *SHORT, f"--matching_ckpt={point}")


def test_batch_statistics_are_reset_or_rewound_as_told(train, image_arrays, tmp_path):
    flags = (
        *SHORT, "--data_name=arrays", f"--data_root={image_arrays}", "--config.data.num_classes=3",
        "--config.data.holdout=20", "--config.model.name=convnet", "--optim_ni=6", "--batch_size=20",
        "--config.model.widths=4,6", "--config.masks.prunable=conv",
    )  # fmt: skip
    train(tmp_path / "a", *flags)
    trained = read_ticket(tmp_path / "a/last.ckpt").statistics["batch_stats"]
    for rule in ("reset", "rewind"):
        again = (f"--matching_ckpt={tmp_path / 'a/last.ckpt'}", "--periodic_ckpt=true")
        train(tmp_path / rule, *flags, *again, f"--config.start.batch_stats={rule}")
        start = read_ticket(tmp_path / rule / "iter_000000.ckpt").statistics["batch_stats"]
        mean = start["BatchNorm_0"]["mean"]
        assert np.array_equal(mean, trained["BatchNorm_0"]["mean"] if rule == "rewind" else np.zeros(4))


def test_a_method_that_keeps_its_density_refuses_a_dense_start(train, tmp_path):
    for name in ("rigl", "set", "snfs"):
        with pytest.raises(Refusal, match=f"{name} keeps the density .*: choose one, such as"):
            train(tmp_path / name, *SHORT, f"--config.method.name={name}")
    with pytest.raises(Refusal, match=r"this method's own density is config\.method\.density"):
        train(tmp_path / "own", *SHORT, "--config.method.name=gradual", "--config.masks.density=0.1")
