"""The chain: imp.py computes what the typed chain of train.py computes, in the same places."""

import itertools

import jax
import numpy as np
import pytest
from fakes import REPOSITORY

from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import lottery
from giung2_ext.experiments import setup as setups
from giung2_ext.storage import records
from giung2_ext.storage.tickets import read_ticket
from giung2_ext.training import loop

DIGITS = f"--config={REPOSITORY / 'configs/imp/digits.py'}:smoke"
QUICK = (DIGITS, "--optim_ni=12", "--config.evaluation.every=6", "--config.placement.log_every=6")
CYCLES = ("000", "001", "002")


def digests(folder):
    return {str(p.relative_to(folder)): read_ticket(p).digest for p in sorted(folder.rglob("*.ckpt"))}


@pytest.fixture
def imagenet_flags(image_arrays):
    """The original README's chain on arrays and LeNet, with smaller numbers."""
    return (
        "--config.data.name=arrays", "--config.data.num_classes=3", "--config.data.holdout=20",
        f"--data_root={image_arrays}", "--config.model.name=lenet", "--config.model.hidden=16,12",
        "--config.masks.prunable=kernels", "--batch_size=20", "--optim_lr=0.05",
        "--config.evaluation.every=10", "--config.tickets.every=10", "--mixed_precision=true",
    )  # fmt: skip


def type_chain(train, save, flags, cycles, seed=()):
    """The commands of the original README, typed one after another."""
    train(save, *flags, *seed, "--optim_ni=20", "--constant_lr=true", "--periodic_ckpt=true")
    point, previous = save / "iter_000020.ckpt", save / "iter_000020.ckpt"
    for n in range(cycles):
        ratio = ("--pruning_ratio=0.8",) if n else ()
        chained = (f"--matching_ckpt={point}", f"--previous_ckpt={previous}", *ratio)
        train(save / f"{n:03d}", *flags, *seed, "--optim_ni=30", *chained)
        previous = save / f"{n:03d}/best_acc.ckpt"


def imp_flags(flags, *more):
    return (*flags, "--optim_ni=30", "--config.chain.rewind_ni=20", "--config.chain.cycles=3", *more)


def test_the_typed_chain_and_imp_compute_the_same_tickets(train, chain, imagenet_flags, tmp_path):
    type_chain(train, tmp_path / "typed", imagenet_flags, 4, ("--seed=4", "--mesh=data:2"))
    chain(tmp_path / "imp", *imp_flags(imagenet_flags, "--seed=4", "--mesh=data:2"))
    typed, found = digests(tmp_path / "typed"), digests(tmp_path / "imp")
    assert typed == found
    assert "iter_000000.ckpt" in typed
    assert "003/best_acc.ckpt" in typed


def test_imp_continues_a_typed_chain_in_its_folder(train, chain, imagenet_flags, tmp_path, capsys):
    save = tmp_path / "chain"
    type_chain(train, save, imagenet_flags, 2)  # no seed: each command drew its own
    before = digests(save)
    capsys.readouterr()
    chain(save, *imp_flags(imagenet_flags))
    said = capsys.readouterr().out
    assert said.count("finished before") == 3
    after = digests(save)
    assert before.items() <= after.items()
    kept = [read_ticket(save / f"{n:03d}/best_acc.ckpt") for n in range(4)]
    total = kept[0].meta["prunable"]
    assert [t.meta["kept"] for t in kept] == [
        total,
        *(k := [total * 4 // 5]),
        k[0] * 4 // 5,
        k[0] * 4 // 5 * 4 // 5,
    ]
    for outer, inner in itertools.pairwise(kept):
        assert bool(masking.nested(inner.masks, outer.masks))
    assert records.recorded_recipe(save / "002")["seed"] == records.recorded_recipe(save)["seed"]
    train(save / "003", *imagenet_flags, "--optim_ni=30", f"--matching_ckpt={save / 'iter_000020.ckpt'}",
          f"--previous_ckpt={save / '002/best_acc.ckpt'}", "--pruning_ratio=0.8")  # fmt: skip
    assert "already finished" in capsys.readouterr().out


def test_trials_and_arms_are_the_runs_that_can_be_typed(train, chain, tmp_path):
    chain(tmp_path / "c", *QUICK, "--seed=7")
    base = tmp_path / "c/trial_1"
    assert records.recorded_recipe(base / "001")["seed"] == 8
    seed = lottery.arm_seed(8, "reinit")
    train(
        tmp_path / "t/reinit",
        *QUICK,
        f"--seed={seed}",
        "--optim_ni=0",
        "--constant_lr=true",
        "--periodic_ckpt=true",
    )
    for n in (1, 2):
        train(
            tmp_path / f"t/reinit/{n:03d}", *QUICK, f"--seed={seed}", "--pruning_ratio=0.8",
            f"--matching_ckpt={tmp_path / 't/reinit/iter_000000.ckpt'}",
            f"--previous_ckpt={base / f'{n - 1:03d}/best_acc.ckpt'}",
        )  # fmt: skip
    assert digests(tmp_path / "t/reinit") == digests(base / "reinit")
    for n in (1, 2):
        ticket, arm = (read_ticket(p / f"{n:03d}/last.ckpt") for p in (base, base / "reinit"))
        assert masking.overlap(ticket.masks, arm.masks) == 1.0
        assert ticket.meta["parents"]["previous"] == arm.meta["parents"]["previous"]
        assert ticket.meta["parents"]["matching"] != arm.meta["parents"]["matching"]


def test_a_chain_can_be_made_longer_and_its_members_finished_by_hand(train, chain, tmp_path):
    save = tmp_path / "c"
    chain(save, *QUICK, "--seed=1", "--config.chain.cycles=1")
    point = save / "trial_0/iter_000000.ckpt"
    train(save / "trial_0/002", *QUICK, "--seed=1", "--pruning_ratio=0.8", f"--matching_ckpt={point}",
          f"--previous_ckpt={save / 'trial_0/001/best_acc.ckpt'}")  # fmt: skip
    chain(save, *QUICK, "--seed=1", "--config.chain.cycles=2")
    chain(tmp_path / "whole", *QUICK, "--seed=1", "--config.chain.cycles=2")
    assert digests(save) == digests(tmp_path / "whole")


class Died(Exception):
    pass


@pytest.mark.parametrize("devices", [2, 8])
def test_a_cycle_of_a_population_goes_on_with_another_number_of_devices(
    devices, chain, tmp_path, monkeypatch
):
    everything = jax.devices()
    flags = (*QUICK, "--seed=1", "--save_every=4", "--config.placement.log_every=2")
    chain(tmp_path / "calm", *flags)
    whole = loop.run_loop

    def dying(*args, total, on_metrics, **options):
        def watch(now, metrics):
            if now > 8:  # the window since the evaluation at 6 is not empty
                raise Died
            on_metrics(now, metrics)

        return whole(*args, total=total, on_metrics=watch, **options)

    with monkeypatch.context() as patch:
        patch.setattr(jax, "devices", lambda *a: everything[:3])
        patch.setattr("giung2_ext.experiments.single.run_loop", dying)
        with pytest.raises(Died):
            chain(tmp_path / "cut", *flags)
    monkeypatch.setattr(jax, "devices", lambda *a: everything[:devices])
    chain(tmp_path / "cut", *flags)
    assert digests(tmp_path / "calm") == digests(tmp_path / "cut")


def test_dying_among_the_results_of_a_cycle_repeats_none_of_its_steps(chain, tmp_path, monkeypatch, capsys):
    flags = (*QUICK, "--seed=1", "--config.chain.cycles=1", "--save_every=4")
    chain(tmp_path / "calm", *flags)
    write, written = records.write_result, []

    def dying(folder, result):
        if "001" in str(folder) and written.count("001") == 1:
            raise Died
        written.append(folder.name)
        write(folder, result)

    with monkeypatch.context() as patch:
        patch.setattr(records, "write_result", dying)
        with pytest.raises(Died):
            chain(tmp_path / "cut", *flags)
    capsys.readouterr()
    chain(tmp_path / "cut", *flags)
    assert "001: continuing from step 12" in capsys.readouterr().out
    assert digests(tmp_path / "calm") == digests(tmp_path / "cut")


def test_one_folder_holds_one_trial_or_several(chain, tmp_path):
    alone = ("--config.chain.trials=1", "--config.chain.arms=", "--config.chain.cycles=0")
    chain(tmp_path / "one", *QUICK, *alone)
    with pytest.raises(Refusal, match="holds a chain of one trial"):
        chain(tmp_path / "one", *QUICK)
    chain(tmp_path / "two", *QUICK, "--config.chain.cycles=0")
    with pytest.raises(Refusal, match="holds a chain of several trials"):
        chain(tmp_path / "two", *QUICK, *alone)


def test_cycles_of_another_seed_are_named(train, chain, imagenet_flags, tmp_path, capsys):
    type_chain(train, tmp_path / "c", imagenet_flags, 1)
    capsys.readouterr()
    chain(tmp_path / "c", *imp_flags(imagenet_flags, "--config.chain.cycles=0"))
    seeds = [records.recorded_recipe(tmp_path / "c" / place)["seed"] for place in ("000", "")]
    assert (
        f"000: {tmp_path / 'c/000'} was run with seed {seeds[0]}, not {seeds[1]}" in capsys.readouterr().out
    )


def test_a_bad_ratio_is_refused_before_anything_trains(chain, tmp_path):
    with pytest.raises(Refusal, match=r"pruning_ratio must be in \(0, 1\], got 1.2"):
        chain(tmp_path / "c", *QUICK, "--pruning_ratio=1.2")
    assert not (tmp_path / "c").exists()


def test_cycles_compile_nothing_anew(chain, tmp_path, monkeypatch):
    made = []
    whole = setups.make_setup
    monkeypatch.setattr(setups, "make_setup", lambda *a: made.append(whole(*a)) or made[-1])
    chain(tmp_path / "c", *QUICK, "--seed=1", "--config.chain.cycles=4")
    assert len(made) == 3  # rewind points, the dense cycle without arms, every other cycle


def test_counts_and_lineage_reach_back_to_the_rewind_point(chain, tmp_path):
    chain(tmp_path / "c", *QUICK, "--seed=1", "--config.chain.trials=1", "--config.chain.arms=")
    point = read_ticket(tmp_path / "c/iter_000000.ckpt")
    kept = []
    for n, cycle in enumerate(CYCLES):
        last = read_ticket(tmp_path / "c" / cycle / "last.ckpt")
        assert last.meta["parents"]["matching"] == point.digest
        parent = tmp_path / "c" / (f"{CYCLES[n - 1]}/best_acc.ckpt" if n else "iter_000000.ckpt")
        assert last.meta["parents"]["previous"] == read_ticket(parent).digest
        kept.append(last.meta["kept"])
        assert kept[-1] == sum(int(np.sum(m)) for m in masks_of(last))
    assert kept == [50200, 40160, 32128]


def masks_of(ticket):
    return [layer["kernel"] for layer in ticket.masks.values()]


def test_imp_refuses_what_it_chains_itself_and_arms_it_does_not_know(chain, tmp_path):
    with pytest.raises(Refusal, match=r"imp\.py chains the checkpoints itself"):
        chain(tmp_path / "c", *QUICK, "--matching_ckpt=x")
    with pytest.raises(Refusal, match=r"unknown arm 'reinitt'; known: .*did you mean 'reinit'"):
        chain(tmp_path / "c", *QUICK, "--config.chain.arms=reinitt")
    chain(tmp_path / "d", *QUICK, "--seed=1", "--config.chain.cycles=0")
    with pytest.raises(Refusal, match="holds a run with another recipe"):
        chain(tmp_path / "d", *QUICK, "--seed=2", "--config.chain.cycles=0")
