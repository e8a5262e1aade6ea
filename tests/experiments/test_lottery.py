"""The arms of a ticket experiment are runs that can be typed, and what they are said to be."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from fakes import REPOSITORY, Stopped, dying_at

from giung2_ext.core import ablations
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import imp, lottery, settling, single
from giung2_ext.experiments import setup as setups
from giung2_ext.experiments.bounds import check_config
from giung2_ext.experiments.config import recipe
from giung2_ext.storage import records
from giung2_ext.storage.tickets import read_ticket
from giung2_ext.training import accumulation

QUICK = (
    f"--config={REPOSITORY / 'configs/imp/digits.py'}:smoke", "--optim_ni=12", "--seed=7",
    "--pruning_ratio=1", "--config.evaluation.every=4", "--config.placement.log_every=4",
    "--config.chain.trials=1",
    "--config.chain.layer_ratios=dense:0.5,cls:0.75", "--config.start.rounding=nearest",
    "--config.chain.prune_from=last", "--config.evaluation.select_by=loss", "--config.chain.late_ni=6",
    "--config.evaluation.test_every=6", "--config.chain.finetune_lr=0.0001", "--periodic_ckpt=true",
    "--config.tickets.every=6",
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
    for arm in ("reinit", "random"):
        assert not same(start_of(whole / arm).params, point.params), arm


def test_every_arm_starts_from_the_weights_it_is_named_for(whole):
    point, late = start_of(whole), start_of(whole / "late", "iter_000006.ckpt")
    sources = dict.fromkeys(("", "shuffle", "one_shot", "sibling"), point) | {"late": late}
    sources |= {arm: start_of(whole / arm) for arm in ("reinit", "random")}
    sources |= {arm: read_ticket(whole / arm / "001/last.ckpt") for arm in ("no_rewind", "finetune")}
    for arm, source in sources.items():
        begun = start_of(whole / arm / "002")
        assert same(begun.params, masking.apply(begun.masks, source.params)), arm
    begun = start_of(whole / "signs/002")
    flat = ablations.signs(point.params, point.masks)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        begun.params,
        masking.apply(begun.masks, flat),
    )
    assert same(late.params, start_of(whole / "000", "iter_000006.ckpt").params)
    layers = {arm: read_ticket(whole / arm / "002/last.ckpt").meta["layers"] for arm in ("", *ARMS)}
    assert all(counts == layers[""] for counts in layers.values())


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
    assert rounds["random"] == {None: 0, 1: 4, 2: 4, 3: 4}
    assert rounds["one_shot"] == {1: 2, 2: 2, 3: 2}
    assert rounds["reinit"] == {None: 0, 1: 2, 2: 3, 3: 4}
    assert rounds["no_rewind"] == {1: 2, 2: 3, 3: 4}
    assert rounds["sibling"] == {0: 1, 1: 2, 2: 3, 3: 4}


def test_under_a_global_ratio_random_networks_have_the_counts_of_the_tickets(config_of):
    flags = ("--config.chain.layer_ratios=", "--pruning_ratio=0.8", "--config.chain.arms=random,one_shot")
    config = config_of(*QUICK, *flags, "--config.chain.cycles=3")
    planned = lottery.plan(config, lottery.plan_chains(config, epath.Path("/nowhere/c")))
    found = {(p.chain.base.name, p.cycle): (p.run.config.start, p.round) for p in planned}
    random, number = found["random", 2]
    assert random.previous_ckpt.endswith("/c/001/last.ckpt")
    assert (random.pruning_ratio, random.rounds, random.ablation, number) == (0.8, 1, "shuffle", 3)
    at_once, _ = found["one_shot", 3]
    assert at_once.previous_ckpt.endswith("/c/000/last.ckpt")
    assert (at_once.pruning_ratio, at_once.rounds, at_once.layer_ratios) == (0.8, 3, "")


def test_weights_that_go_on_keep_their_batch_statistics(config_of):
    config = config_of(*QUICK, f"--config.chain.arms={','.join(ARMS)}")
    planned = lottery.plan(config, lottery.plan_chains(config, epath.Path("/nowhere/c")))
    kept = {p.chain.base.name for p in planned if p.run.config.start.batch_stats == "rewind"}
    assert kept == {"no_rewind", "finetune"}


def test_as_many_members_train_together_as_fit_in_equal_parts(config_of, monkeypatch):
    config, tried = config_of(*QUICK), []

    def need(self, config, members):
        tried.append(members)
        return 10.0 * members

    monkeypatch.setattr(setups.Setups, "_need", need)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    for memory, members, expected in ((1000, 20, 20), (120, 20, 10), (60, 21, 6), (1, 20, 2)):
        monkeypatch.setattr(accumulation, "device_memory", lambda memory=memory: memory / setups.FITS)
        assert setups.Setups(True).most(config, members) == expected
    assert tried == [20, 20, 10, 21, 11, 6, 20, 10, 5, 3]
    assert setups.Setups(False).most(config, 20) == 1
    config.placement.members = "9"
    assert setups.Setups(True).most(config, 20) == 7


def test_the_number_of_members_can_be_forced_and_changes_nothing(whole, chain, tmp_path, capsys):
    chain(tmp_path / "c", *QUICK, "--config.chain.arms=reinit,shuffle", "--config.placement.members=2")
    assert "3 members, 2 + 1 at a time" in capsys.readouterr().out
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
        ("--config.start.rounds=2", "set config.chain instead"),
        ("--config.start.rounding=up", "known: cutoff, floor, nearest"),
        ("--config.placement.members=0", "must be auto or a number from 1"),
        ("--config.evaluation.select_by=luck", "known: accuracy, loss"),
    ],
)
def test_what_makes_no_experiment_is_refused_before_anything_trains(flag, message, chain, tmp_path):
    with pytest.raises(Refusal, match=message):
        chain(tmp_path / "c", *QUICK, flag)
    assert not (tmp_path / "c").exists()


def test_a_rate_that_falls_in_steps_is_the_cycles_alone(config_of, tmp_path):
    flags = ("--constant_lr=false", "--config.optim.milestones=6,9", "--config.chain.arms=finetune")
    config = config_of(*QUICK, *flags)
    trial, finetune = lottery.plan_chains(config, epath.Path(tmp_path))
    for run in (lottery.point_run(config, trial), lottery.cycle_run(config, finetune, 1)):
        check_config(run.config)
        assert (run.config.optim.constant_lr, run.config.optim.milestones) == (True, ())
    assert lottery.cycle_run(config, trial, 1).config.optim.milestones == (6, 9)


def test_arms_that_need_a_number_ask_for_it(chain, tmp_path):
    for arm, unset, message in (
        ("late", "--config.chain.late_ni=0", r"config.chain.late_ni of the dense cycle: in 1..12, got 0"),
        ("finetune", "--config.chain.finetune_lr=None", "give --config.chain.finetune_lr=RATE"),
    ):
        with pytest.raises(Refusal, match=message):
            chain(tmp_path / "c", *QUICK, f"--config.chain.arms={arm}", unset)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--config.chain.arms=late", "--constant_lr=false"), "rewind to step 0 at a constant rate"),
        (("--config.chain.arms=late", "--config.chain.rewind_ni=3"), "rewind to step 0 at a constant rate"),
        (("--config.chain.arms=signs,signs",), "names an arm twice: signs, signs"),
        (("--config.chain.finetune_lr=-1",), r"config\.chain\.finetune_lr must be"),
        (("--config.chain.layer_ratios=cls:0.9",), "says nothing of dense"),
        (
            ("--config.chain.layer_ratios=dense:0.01,cls:0.9", "--config.chain.cycles=3"),
            "3 times, keeps none",
        ),
    ],
)
def test_what_would_fail_after_hours_fails_at_once(flags, message, chain, tmp_path):
    with pytest.raises(Refusal, match=message):
        chain(tmp_path / "c", *QUICK, *flags)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_chain_has_one_precision_whatever_the_machine_would_choose_now(
    chain, config_of, tmp_path, monkeypatch
):
    flags = (*QUICK, "--mixed_precision=true", "--config.chain.cycles=1", "--config.chain.arms=reinit")
    begun = config_of(*flags, "--config.precision=bfloat16", "--mixed_precision=false")
    (tmp_path / "c").mkdir()
    records.record_session(tmp_path / "c", recipe(settling.settled(tmp_path / "c", begun)), {})
    planned = []
    monkeypatch.setattr(settling, "mixed_precision", lambda: "float32")
    monkeypatch.setattr(imp.Story, "run", lambda story: planned.extend(story.planned))
    chain(tmp_path / "c", *flags)
    assert {p.run.config.precision for p in planned} == {"bfloat16"}
    assert len(planned) == 5


def test_a_chain_of_before_there_was_a_choice_goes_on(chain, tmp_path, capsys):
    flags = (*QUICK, "--config.evaluation.select_by=accuracy", "--config.chain.cycles=0")
    chain(tmp_path / "c", *flags)
    for file in tmp_path.rglob("result.json"):
        result = json.loads(file.read_text())
        del result["selected_by"]
        file.write_text(json.dumps(result))
    capsys.readouterr()
    chain(tmp_path / "c", *flags)
    assert capsys.readouterr().out.count("finished before") == 2


def test_a_part_of_a_round_goes_on_as_it_was_begun(whole, chain, tmp_path, monkeypatch, capsys):
    flags = (*QUICK, "--config.chain.arms=reinit,shuffle", "--save_every=4", "--config.chain.cycles=1")
    chain(tmp_path / "c", *flags, "--config.chain.cycles=0")
    with monkeypatch.context() as patch:
        patch.setattr(single, "run_loop", dying_at(12))
        with pytest.raises(Stopped):
            chain(tmp_path / "c", *flags, "--config.placement.members=2")
    capsys.readouterr()
    chain(tmp_path / "c", *flags)
    said = capsys.readouterr().out
    assert "3 members, 2 + 1 at a time" in said
    assert said.count("continuing from step 8") == 1
    for place in ("001", "reinit/001", "shuffle/001"):
        assert last_of(tmp_path / "c" / place) == last_of(whole / place)
    assert not list((tmp_path / "c/chain_states").glob("001*/*"))
