"""Precision and averaged weights of a run: chosen, recorded, continued, evaluated; and what it costs."""

import json
import re
import shutil
import types

import jax
import numpy as np
import pytest
from fakes import REPOSITORY, Stopped, dying_at

from giung2_ext.core import accounting
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import building, command, evaluate, setup, single
from giung2_ext.experiments.config import default_config
from giung2_ext.experiments.flags import parse
from giung2_ext.storage import records
from giung2_ext.storage.tickets import read_ticket, write_ticket
from giung2_ext.training import loss_scale

DIGITS = f"--config={REPOSITORY / 'configs/imp/digits.py'}:smoke"
RUN = (DIGITS, "--seed=5", "--optim_ni=30", "--config.evaluation.every=10",
       "--config.placement.log_every=5", "--save_every=5")  # fmt: skip
SPARSE = ("--config.masks.criterion=random", "--config.masks.density=0.1", "--config.masks.prunable=body",
          "--optim_lr=0.01")  # fmt: skip
EMA = "--config.optim.ema=0.8"
WHERE = default_config().placement
HALF = (*RUN, *SPARSE, EMA)  # with --config.precision=float16: the run `half`


@pytest.fixture(scope="module", autouse=True)
def shared_setups():
    """Runs of one recipe share their compiled programs, as the cycles of a chain do."""
    with pytest.MonkeyPatch.context() as patch:
        setups = setup.Setups()
        patch.setattr(single, "Setups", lambda: setups)
        yield


def once(tmp_path_factory, *arguments):
    folder = tmp_path_factory.mktemp("once") / "run"
    config, _ = parse(["--mesh=data:1", *arguments], {"save": None}, "")
    return folder, single.train_one(config, str(folder))


@pytest.fixture(scope="module")
def finished_half(tmp_path_factory):
    """float16 with a loss scale that has yet to come down, averaged and sparse."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_scale, "START", loss_scale.MOST)
        return once(tmp_path_factory, *HALF, "--config.precision=float16")


@pytest.fixture(scope="module")
def finished_plain(tmp_path_factory):
    return once(tmp_path_factory, *RUN)


@pytest.fixture
def half(finished_half, tmp_path):
    """A copy of the folder, and the run's result."""
    return shutil.copytree(finished_half[0], tmp_path / "half", symlinks=True), finished_half[1]


@pytest.fixture
def plain(finished_plain, tmp_path):
    return shutil.copytree(finished_plain[0], tmp_path / "plain", symlinks=True), finished_plain[1]


def cut(train, folder, step, *flags):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(single, "run_loop", dying_at(step))
        with pytest.raises(Stopped):
            train(folder, *flags)


# --- which precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        (dict(platform="cpu"), "float32"),
        (dict(platform="tpu", device_kind="TPU v3"), "bfloat16"),
        (dict(platform="gpu", compute_capability="6.1"), "float16"),
        (dict(platform="gpu", compute_capability="7.5"), "float16"),
        (dict(platform="gpu", compute_capability="8.0"), "bfloat16"),
        (dict(platform="gpu", compute_capability="9.0"), "bfloat16"),
        (dict(platform="gpu", compute_capability="12.0"), "bfloat16"),
        (dict(platform="gpu", compute_capability="gfx90a"), "bfloat16"),
    ],
)
def test_mixed_precision_is_what_the_device_has_natively(device, precision, monkeypatch):
    monkeypatch.setattr(setup.jax, "devices", lambda: [types.SimpleNamespace(**device)])
    assert building.mixed_precision() == precision


def test_mixed_precision_on_a_cpu_is_float32_and_the_run_says_so(train, tmp_path, capsys):
    train(tmp_path / "run", *RUN, "--mixed_precision=true", "--optim_ni=0")
    recipe = records.recorded_recipe(tmp_path / "run")
    assert (recipe["mixed_precision"], recipe["precision"]) == (True, "float32")
    assert re.search(r"seed 5 · float32 on one of 8 cpu device\(s\) \(cpu\) → ", capsys.readouterr().out)


def test_the_precision_that_is_asked_for_is_the_one_that_is_computed(half):
    folder, result = half
    recipe = records.recorded_recipe(folder)
    assert (recipe["mixed_precision"], recipe["precision"]) == (False, "float16")
    assert read_ticket(folder / "last.ckpt").meta["precision"] == "float16"
    rows = [row for row in records.read_metrics(folder) if row["split"] == "train"]
    skipped = [row.get("skipped_steps", 0) for row in rows]
    assert 0 < skipped[0] < 10  # the loss scale came down
    assert [row["seen"] for row in rows] == [(10 - n) * 60 for n in skipped]
    assert result["scores"]["last"]["test"]["accuracy"] > 0.3


def test_a_folders_precision_holds_where_none_is_given_and_another_is_refused(half, train, capsys):
    folder, result = half
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert train(folder, *HALF) == result
    assert train(folder, *HALF, "--config.precision=float16") == result
    assert capsys.readouterr().out.count("already finished") == 2
    with pytest.raises(Refusal, match=r"another recipe .*: precision: 'float16' -> 'bfloat16'\. Choose"):
        train(folder, *HALF, "--config.precision=bfloat16")
    with pytest.raises(Refusal, match=r"another recipe .*: optim\.ema: 0\.8 -> 0\.9\. Choose"):
        train(folder, *HALF, "--config.optim.ema=0.9")
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_an_unknown_precision_is_refused_with_those_that_are_known(train, tmp_path):
    known = "unknown value of config.precision 'float61'; known: bfloat16, float16, float32; did you mean"
    with pytest.raises(Refusal, match=known):
        train(tmp_path / "run", *RUN, "--config.precision=float61")
    assert not (tmp_path / "run" / records.CONFIG).exists()


def test_a_precision_is_not_named_twice(train, tmp_path):
    with pytest.raises(Refusal, match=r"--mixed_precision=true .* config\.precision=float16 .* leave one"):
        train(tmp_path / "run", *RUN, "--mixed_precision=true", "--config.precision=float16")


@pytest.mark.parametrize("decay", ["0", "1", "-0.1", "1.5", "nan"])
def test_a_decay_that_averages_nothing_is_refused(decay, train, tmp_path):
    with pytest.raises(Refusal, match=rf"config\.optim\.ema must be in \(0, 1\), got {decay}"):
        train(tmp_path / "run", *RUN, f"--config.optim.ema={decay}")


def test_averaging_weights_that_are_never_trained_is_refused(plain, train, tmp_path):
    flags = ("--config.method.name=jackpots", f"--matching_ckpt={plain[0] / 'last.ckpt'}", EMA)
    with pytest.raises(Refusal, match=r"config\.optim\.ema averages weights, and jackpots trains scores"):
        train(tmp_path / "run", *RUN, *flags)


# --- continued ---------------------------------------------------------------------------------------


def test_averaged_float16_resumed_is_uninterrupted_bit_for_bit(half, train, tmp_path, capsys):
    folder, calm = half
    for stop, saved in ((10, 5), (20, 15)):  # while the loss scale comes down, and later
        where, flags = tmp_path / f"cut{stop}", (*HALF, "--config.precision=float16")
        cut(train, where, stop, *flags)
        assert train(where, *HALF) == calm
        assert f"continuing from step {saved}" in capsys.readouterr().out
        assert (where / "metrics.jsonl").read_text() == (folder / "metrics.jsonl").read_text()


def test_bfloat16_resumed_is_uninterrupted_bit_for_bit(train, tmp_path, capsys):
    flags = (*RUN, "--config.precision=bfloat16")
    cut(train, tmp_path / "cut", 20, *flags)
    resumed = train(tmp_path / "cut", *flags)
    assert "continuing from step 15" in capsys.readouterr().out
    assert resumed == train(tmp_path / "calm", *flags)
    assert records.recorded_recipe(tmp_path / "cut")["precision"] == "bfloat16"


def test_a_float16_run_that_diverges_ends_instead_of_skipping_for_ever(train, tmp_path, capsys):
    flags = (*RUN, "--config.precision=float16", "--optim_lr=1e30", "--config.evaluation.every=60")
    with pytest.raises(SystemExit) as left:
        command.guarded(lambda: train(tmp_path / "run", *flags, "--optim_ni=60"))
    assert left.value.code == 1
    said = re.search(
        r"error: .*/run: the loss is not finite at step (\d+) .*lr=1e\+30", capsys.readouterr().err
    )
    assert 0 < int(said[1]) <= 17  # the scale was halved 16 times at most
    assert not (tmp_path / "run/result.json").exists()


def forget(recipe):
    """A recipe as it was recorded before there were these fields."""
    del recipe["precision"], recipe["optim"]["ema"], recipe["start"]["legacy_scores"]
    return recipe


def edit(path, change):
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


def test_an_older_finished_folder_is_recognised_and_was_float32(plain, train, capsys):
    folder, result = plain
    edit(folder / records.CONFIG, lambda stored: forget(stored["recipe"]))
    edit(folder / records.RESULT, lambda stored: stored.pop("flops"))
    old = {key: value for key, value in result.items() if key != "flops"}
    assert train(folder, *RUN) == old
    assert train(folder, *RUN, "--config.precision=float32") == old
    assert capsys.readouterr().out.count("already finished") == 2
    for flag, line in (("--config.precision=float16", "precision: 'float32' -> 'float16'"),
                       (EMA, "optim.ema: None -> 0.8"),
                       ("--config.start.legacy_scores=true", "legacy_scores: False -> True")):  # fmt: skip
        with pytest.raises(Refusal, match=re.escape(line)):
            train(folder, *RUN, flag)


def test_an_older_half_done_run_continues(plain, train, tmp_path, capsys):
    where = tmp_path / "cut"
    cut(train, where, 20, *RUN)
    edit(where / records.CONFIG, lambda stored: forget(stored["recipe"]))
    for notes in where.glob("states/*/notes/metadata"):
        edit(notes, lambda stored: [forget(recipe) for recipe in stored["identity"]])
        edit(notes, lambda stored: stored["train"] and stored["train"].pop())  # `skipped` is new too
        edit(notes, lambda stored: [stored.pop(name) for name in ("stacked", "checksums")])
    capsys.readouterr()
    assert train(where, *RUN) == plain[1]
    assert "continuing from step 15" in capsys.readouterr().out
    assert records.recorded_recipe(where) == records.recorded_recipe(plain[0])


# --- evaluated ---------------------------------------------------------------------------------------


def test_a_float16_ticket_is_judged_in_float32_and_gives_the_runs_own_numbers(half, capsys):
    folder, result = half
    ticket = read_ticket(folder / "last.ckpt")
    for name, when in (("best_acc.ckpt", "best"), ("last.ckpt", "last")):
        [judged] = evaluate.evaluate(str(folder / name), [], WHERE, batch_size=64)
        scores, own = judged["scores"]["all"], result["scores"][when]["test"]
        assert scores["top1"][0] == own["accuracy"]
        assert scores["nll"][0] == pytest.approx(own["loss"], rel=1e-6)
    said = capsys.readouterr().out
    assert said.count("lenet on digits in float32 (trained in float16)\n") == 2
    assert f"{ticket.meta['kept'] * 2:,} of 98,400 in prunable layers (0.1000)" in said

    older = {key: v for key, v in ticket.meta.items() if key not in ("precision", "digest")}
    place, _ = write_ticket(folder, ticket.params, ticket.masks, ticket.statistics, older)
    assert evaluate.evaluate(str(place), [], WHERE, batch_size=64)[0]["scores"]["all"] == scores
    assert [building.judged_in(name) for name in building.PRECISIONS] == ["float32", "bfloat16", "float32"]


def test_a_deep_float16_network_is_not_lost_to_an_evaluation_with_fresh_statistics(train, tmp_path):
    # 54 blocks whose variances add up: far above 65,504 until BatchNorm has statistics
    deep = ("--config.model.name=resnet_cifar", "--config.model.depth=110", "--config.model.planes=2")
    flags = (*deep, "--config.masks.prunable=conv", "--config.precision=float16", "--optim_ni=0")
    result = train(tmp_path / "deep", DIGITS, "--seed=0", *flags)
    assert np.isfinite(result["scores"]["last"]["test"]["loss"])


def test_a_kept_ticket_holds_the_average_of_what_the_run_went_through(half, train, tmp_path, monkeypatch):
    folder, _ = half
    monkeypatch.setattr(loss_scale, "START", loss_scale.MOST)  # the same run but for the average
    flags = (
        *RUN,
        *SPARSE,
        "--config.precision=float16",
        "--periodic_ckpt=true",
        "--config.tickets.every=1",
    )
    train(tmp_path / "live", *flags)
    live = [read_ticket(tmp_path / f"live/iter_{step:06d}.ckpt") for step in range(31)]
    average, before = live[0].params, live[0].params
    for now in (ticket.params for ticket in live[1:]):
        if not jax.tree.all(jax.tree.map(np.array_equal, before, now)):  # else the step was skipped
            average = jax.tree.map(lambda a, p: 0.8 * a + 0.2 * p, average, now)
        before = now
    averaged = read_ticket(folder / "last.ckpt")
    assert averaged.meta["mask_digest"] == live[-1].meta["mask_digest"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), averaged.params, average)


# --- what it costs -----------------------------------------------------------------------------------


def test_result_and_parameters_txt_say_what_the_ticket_costs(half):
    folder, result = half
    assert result["kept"] == 4920
    flops = result["flops"]  # every weight of LeNet is used once: two operations
    assert flops == {"prunable": 98_400, "kept": 9_840, "all": 100_400, "all_kept": 11_840}
    text = (folder / "parameters.txt").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "/" in line]
    table = {row[0]: dict(size=row[2], kept=row[3], flops=row[4], flops_kept=row[5]) for row in rows if row}
    number = lambda text: int(text.replace(",", ""))  # noqa: E731
    kept = {name: number(row["kept"]) for name, row in table.items() if row["kept"] != "None"}
    assert kept == {name: count for name, (count, _) in result["layers"].items()}
    assert sum(kept.values()) == result["kept"]
    assert sum(number(row["size"]) for row in table.values()) == result["parameters"]
    assert sum(number(row["flops"]) for row in table.values()) == flops["all"]
    assert sum(number(row["flops_kept"]) for row in table.values()) == flops["all_kept"]
    assert "9,840 of 98,400 in prunable layers (0.1000), 11,840 of all 100,400" in text
    assert accounting.describe_flops(accounting.Totals(**flops)) in single.summary(result, folder)
