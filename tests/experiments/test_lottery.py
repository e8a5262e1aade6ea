"""The arms of a ticket experiment are runs that can be typed, and what they are said to be."""

import jax
import numpy as np
import pytest
from etils import epath
from fakes import REPOSITORY

from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import lottery
from giung2_ext.experiments import setup as setups
from giung2_ext.storage import records
from giung2_ext.storage.tickets import read_ticket
from giung2_ext.training import accumulation

QUICK = (
    f"--config={REPOSITORY / 'configs/imp/digits.py'}:smoke", "--optim_ni=12", "--seed=7",
    "--pruning_ratio=1", "--config.evaluation.every=4", "--config.placement.log_every=4",
    "--config.chain.trials=1",
    "--config.chain.layer_ratios=dense:0.5,cls:0.75", "--config.start.rounding=nearest",
    "--config.chain.prune_from=last", "--config.evaluation.select_by=loss", "--config.chain.late_ni=6",
    "--config.evaluation.test_every=6", "--config.chain.finetune_lr=0.0001",
)  # fmt: skip
KEPT = [19200 + 30000 + 1000, 9600 + 15000 + 750, 4800 + 7500 + 562]  # 8x8-300-100-10; 562.5 to even
ARMS = tuple(lottery.ARMS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, chain):
    """A chain with every arm, trained once for the tests below."""
    folder = tmp_path_factory.mktemp("lottery")
    chain(folder, *QUICK, f"--config.chain.arms={','.join(ARMS)}")
    return folder


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def start_of(folder, name="iter_000000.ckpt"):
    return read_ticket(folder / name)


def masks_equal(a, b):
    return masking.digest(a.masks) == masking.digest(b.masks)


def typed(train, save, whole, matching, previous, *flags):
    """The arm's cycle by train.py, and the digest of its last ticket."""
    start = (f"--matching_ckpt={whole / matching}", f"--previous_ckpt={whole / previous}")
    train(save, *QUICK, *start, "--config.start.layer_ratios=dense:0.5,cls:0.75", *flags)
    return last_of(save)


def last_of(folder):
    return read_ticket(folder / "last.ckpt").digest


def arm_flags(name):
    seed = lottery.arm_seed(7, name)
    return {
        "reinit": ("reinit/iter_000000.ckpt", "001/last.ckpt", f"--seed={seed}"),
        "random": ("random/iter_000000.ckpt", "random/iter_000000.ckpt", f"--seed={seed}",
                   "--config.start.rounds=2", "--config.start.ablation=shuffle"),
        "shuffle": ("iter_000000.ckpt", "001/last.ckpt", "--config.start.ablation=shuffle"),
        "signs": ("iter_000000.ckpt", "001/last.ckpt", "--config.start.ablation=signs"),
        "one_shot": ("iter_000000.ckpt", "000/last.ckpt", "--config.start.rounds=2"),
        "no_rewind": ("no_rewind/001/last.ckpt", "no_rewind/001/last.ckpt"),
        "finetune": ("finetune/001/last.ckpt", "finetune/001/last.ckpt", "--optim_lr=0.0001"),
        "late": ("late/iter_000006.ckpt", "late/001/last.ckpt"),
        "sibling": ("iter_000000.ckpt", "001/last.ckpt", f"--seed={lottery.arm_seed(7, 'sibling')}"),
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", ARMS)
def test_an_arms_cycle_is_the_run_that_can_be_typed(name, whole, train, tmp_path):
    matching, previous, *flags = arm_flags(name)
    found = typed(train, tmp_path / "typed", whole, matching, previous, *flags)
    assert found == last_of(whole / name / "002")


def test_counts_are_those_of_the_ratios_in_the_tickets_and_in_every_arm(whole):
    for chain in (whole, *(whole / arm for arm in ARMS)):
        for cycle in (1, 2):
            assert read_ticket(chain / f"00{cycle}/last.ckpt").meta["kept"] == KEPT[cycle]
    layers = read_ticket(whole / "002/last.ckpt").meta["layers"]
    assert [count for count, _ in layers.values()] == [4800, 7500, 562]


def test_arms_have_the_masks_and_weights_they_are_named_for(whole):
    ticket = read_ticket(whole / "002/last.ckpt")
    dense, point = read_ticket(whole / "000/last.ckpt"), start_of(whole)
    last = {arm: read_ticket(whole / arm / "002/last.ckpt") for arm in ARMS}
    for arm in ("reinit", "signs", "sibling"):
        assert masks_equal(last[arm], ticket), arm
    for arm in ("random", "shuffle", "one_shot", "no_rewind", "finetune", "late"):
        assert not masks_equal(last[arm], ticket), arm
    at_once = {
        name: np.sort(np.abs(kernel[kept]))[0] >= np.sort(np.abs(kernel[~kept]))[-1]
        for name, kernel, kept in (
            (n, dense.params[n]["kernel"], last["one_shot"].masks[n]["kernel"]) for n in dense.params
        )
    }
    assert all(at_once.values()), at_once
    for arm, base in (("reinit", "reinit"), ("random", "random")):
        assert not same(start_of(whole / base).params, point.params), arm
    assert same(start_of(whole / "late", "iter_000000.ckpt").params, point.params)
    assert masks_equal(last["late"], read_ticket(whole / "late/002/best_loss.ckpt"))


def test_a_late_point_is_that_step_of_the_dense_run(chain, tmp_path):
    chain(tmp_path / "c", *QUICK, "--config.chain.arms=late", "--config.chain.cycles=0",
          "--periodic_ckpt=true", "--config.tickets.every=6")  # fmt: skip
    late, dense = (start_of(tmp_path / "c" / place, "iter_000006.ckpt") for place in ("late", "000"))
    assert same(late.params, dense.params)


def test_runs_without_rewinding_start_where_the_cycle_before_ended(whole):
    for arm in ("no_rewind", "finetune"):
        before = whole / "000", whole / arm / "001"
        for cycle, previous in zip((1, 2), before, strict=True):
            meta = read_ticket(whole / arm / f"00{cycle}/last.ckpt").meta
            digest = last_of(previous)
            assert meta["parents"] == {"matching": digest, "previous": digest}


def test_the_early_stop_is_the_first_lowest_loss_and_test_is_measured_on_the_way(whole):
    for cycle in (whole / "000", whole / "reinit/002", whole / "no_rewind/001"):
        result, rows = records.read_result(cycle), records.read_metrics(cycle)
        losses = {row["step"]: row["loss"] for row in rows if row["split"] == "holdout" and row["step"]}
        assert list(losses) == [4, 8, 12]
        assert result["best_step"] == min(losses, key=losses.get)
        assert result["scores"]["best"]["holdout"]["loss"] == pytest.approx(min(losses.values()), rel=1e-6)
        assert read_ticket(cycle / "best_loss.ckpt").meta["step"] == result["best_step"]
        assert not (cycle / "best_acc.ckpt").exists()
        assert [row["step"] for row in rows if row["split"] == "test"] == [0, 6, 12]


def test_random_networks_wait_for_no_ticket_and_the_others_for_what_they_prune(config_of):
    arms = "random,one_shot,reinit,no_rewind,sibling"
    config = config_of(*QUICK, f"--config.chain.arms={arms}", "--config.chain.cycles=3")
    planned = lottery.plan(config, lottery.plan_chains(config, epath.Path("/nowhere/c")))
    rounds = {}
    for p in planned:
        rounds.setdefault(p.chain.base.name, {})[p.cycle] = p.round
    assert rounds["c"] == {None: 0, 0: 1, 1: 2, 2: 3, 3: 4}
    assert rounds["random"] == {None: 0, 1: 1, 2: 1, 3: 1}
    assert rounds["one_shot"] == {1: 2, 2: 2, 3: 2}
    assert rounds["reinit"] == {None: 0, 1: 2, 2: 3, 3: 4}
    assert rounds["no_rewind"] == {1: 2, 2: 3, 3: 4}
    assert rounds["sibling"] == {0: 1, 1: 2, 2: 3, 3: 4}


def test_a_population_that_does_not_fit_is_split_and_computes_the_same(
    whole, chain, tmp_path, monkeypatch, capsys
):
    flags = (*QUICK, "--config.chain.arms=reinit,random", "--config.chain.cycles=1")
    needs = []
    monkeypatch.setattr(setups, "FITS", 1.0)
    whole_need = accumulation.needed

    def needed(compile_steps):
        needs.append(whole_need(compile_steps))
        return needs[-1]

    monkeypatch.setattr(accumulation, "needed", needed)
    monkeypatch.setattr(accumulation, "device_memory", lambda: 1e12)
    chain(tmp_path / "wide", *flags, "--config.chain.trials=2")
    assert "members," not in capsys.readouterr().out
    widest = max(needs)
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *a: one)
    monkeypatch.setattr(accumulation, "device_memory", lambda: int(1.05 * widest))
    chain(tmp_path / "narrow", *flags, "--config.chain.trials=2")
    assert "members," in capsys.readouterr().out
    names = [str(p.relative_to(tmp_path / "wide")) for p in (tmp_path / "wide").rglob("*.ckpt")]
    assert len(names) > 10
    for name in names:
        assert (
            read_ticket(tmp_path / "wide" / name).digest == read_ticket(tmp_path / "narrow" / name).digest
        )


def test_the_number_of_members_can_be_forced_and_changes_nothing(whole, chain, tmp_path, capsys):
    chain(tmp_path / "c", *QUICK, "--config.chain.arms=reinit,shuffle", "--config.placement.members=2")
    assert "3 members, 2 at a time" in capsys.readouterr().out
    for place in ("002", "reinit/002", "shuffle/002"):
        assert last_of(tmp_path / "c" / place) == last_of(whole / place)


def test_arms_can_be_added_to_a_chain_that_is_finished(whole, chain, tmp_path, capsys):
    chain(tmp_path / "c", *QUICK)
    capsys.readouterr()
    chain(tmp_path / "c", *QUICK, "--config.chain.arms=signs,random")
    for place in ("signs/002", "random/001"):
        assert last_of(tmp_path / "c" / place) == last_of(whole / place)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.chain.arms=rienit", "did you mean 'reinit'"),
        ("--pruning_ratio=0.8", "both say how much is pruned"),
        ("--config.chain.layer_ratios=fc:0.8", "kinds: conv, dense, cls"),
        ("--config.chain.prune_from=first", "known: best, last"),
        ("--config.start.rounds=2", "set fields of config.chain"),
        ("--config.start.rounding=up", "known: cutoff, floor, nearest"),
        ("--config.placement.members=0", "must be auto or a number from 1"),
        ("--config.evaluation.select_by=luck", "known: accuracy, loss"),
    ],
)
def test_what_makes_no_experiment_is_refused_before_anything_trains(flag, message, chain, tmp_path):
    with pytest.raises(Refusal, match=message):
        chain(tmp_path / "c", *QUICK, flag)
    assert not (tmp_path / "c").exists()


def test_arms_that_need_a_number_ask_for_it(chain, tmp_path):
    for arm, unset, message in (
        ("late", "--config.chain.late_ni=0", r"config.chain.late_ni of the dense run: in 1..12, got 0"),
        ("finetune", "--config.chain.finetune_lr=None", "give --config.chain.finetune_lr=RATE"),
    ):
        with pytest.raises(Refusal, match=message):
            chain(tmp_path / "c", *QUICK, f"--config.chain.arms={arm}", unset)
