"""One run in its folder: continued, finished, refused; nothing lost."""

import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from fakes import REPOSITORY, Stopped, dying_at, tensorboard_events

from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Failure, Refusal
from giung2_ext.experiments import evaluate, setup
from giung2_ext.experiments.config import default_config
from giung2_ext.storage import records
from giung2_ext.storage.tickets import read_ticket
from giung2_ext.training import accumulation

DIGITS = f"--config={REPOSITORY / 'configs/imp/digits.py'}:smoke"
RUN = (
    DIGITS,
    "--seed=5",
    "--optim_ni=30",
    "--config.evaluation.every=10",
    "--config.placement.log_every=5",
)
RIGL = ("--config.method.name=rigl", "--config.method.every=4", "--config.method.stop=20",
        "--config.masks.criterion=random", "--config.masks.density=0.1")  # fmt: skip
SEARCH = ("--config.method.name=multiprize", "--config.method.threshold=global", "--config.method.ramp=0.5",
          "--config.method.stairs=3", "--config.method.others=true", "--config.masks.criterion=random",
          "--config.masks.density=0.1")  # fmt: skip
CYCLES = ("--config.method.name=cycles", "--config.method.every=8", "--config.method.percent=40",
          "--config.method.by=scores", "--config.method.binarise=true")  # fmt: skip
RPG = ("--config.method.name=rpg", "--config.method.every=3", "--config.method.ramp=0.5",
       "--config.method.stop=0.9")  # fmt: skip
SNFS = ("--config.method.name=snfs", *RIGL[1:])
STE = ("--config.method.name=ste", "--config.method.end=15", "--config.method.every=4")
STATES = ("--save_every=5",)
WHERE = default_config().placement


def stop_at(monkeypatch, step):
    monkeypatch.setattr("giung2_ext.experiments.single.run_loop", dying_at(step))


def test_event_files_have_what_the_metrics_have_also_of_a_run_that_went_on(train, tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX", reason="the [tensorboard] extra is absent here (2026-11-27)")
    words = (*RUN, *STATES, "--config.placement.tensorboard=true")
    with monkeypatch.context() as patch:
        stop_at(patch, 20)
        with pytest.raises(Stopped):
            train(tmp_path / "cut", *words)
    train(tmp_path / "cut", *words)
    rows = records.read_metrics(epath.Path(tmp_path) / "cut")
    wanted = {(f"{r['split']}/{n}", r["step"]): r[n] for r in rows for n in ("accuracy", "loss") if n in r}
    assert len({step for _, step in wanted}) > 2
    assert tensorboard_events(tmp_path / "cut") == pytest.approx(wanted)


@pytest.mark.parametrize("saves", [STATES, ()], ids=["from a state", "from the start"])
@pytest.mark.parametrize(
    "method",
    [(), RIGL, SEARCH, CYCLES, RPG, SNFS],
    ids=["ticket", "rigl", "multiprize", "cycles", "rpg", "snfs"],
)
def test_resumed_is_uninterrupted_bit_for_bit(method, saves, train, tmp_path, monkeypatch, capsys):
    calm = train(tmp_path / "calm", *RUN, *method)
    with monkeypatch.context() as patch:
        stop_at(patch, 20)
        with pytest.raises(Stopped):
            train(tmp_path / "cut", *RUN, *method, *saves)
    assert not (tmp_path / "cut/result.json").exists()
    capsys.readouterr()
    resumed = train(tmp_path / "cut", *RUN, *method, *saves)
    assert ("continuing from step 15" in capsys.readouterr().out) == bool(saves)
    assert resumed == calm
    for name in ("metrics.jsonl", "masks.jsonl"):
        rows = [path.read_text() for run in ("calm", "cut") if (path := tmp_path / run / name).exists()]
        assert rows == rows[::-1]
        assert len(rows) == (2 if name == "metrics.jsonl" or method in (RIGL, CYCLES, RPG, SNFS) else 0)
    assert not (tmp_path / "cut/states").exists()


def test_the_flops_of_training_are_those_of_every_step_under_its_mask(train, tmp_path):
    result = train(tmp_path / "run", *RUN, *RIGL)
    dense, sparse = result["flops"]["all"], result["flops"]["all_kept"]
    exact, grown = 3 * sparse, 2 * sparse + dense  # due are steps 0, 4, 8, 12 and 16 of 30
    assert result["training_flops"] == [60 * (25 * exact + 5 * grown), 60 * 30 * 3 * dense]
    rows = [json.loads(line) for line in (tmp_path / "run/masks.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 5, 9, 13, 17]
    assert all(sum(kept for kept, *_ in row["layers"].values()) == 5020 for row in rows)
    assert train(tmp_path / "ste", *RUN, *STE)["training_flops"] is None  # between updates too
    assert not (tmp_path / "ste/masks.jsonl").exists()


def test_a_finished_run_is_left_alone_and_another_recipe_refused(train, tmp_path, capsys):
    train(tmp_path / "run", *RUN)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert train(tmp_path / "run", *RUN, "--config.placement.log_every=7")["steps"] == 30
    assert "already finished" in capsys.readouterr().out
    assert train(tmp_path / "run", *RUN, "--config.tickets.every=7")["steps"] == 30  # it says nothing here
    with pytest.raises(
        Refusal, match=r"another recipe .*optim\.lr: 0\.0012 -> 0\.01.*Choose another --save"
    ):
        train(tmp_path / "run", *RUN, "--optim_lr=0.01")
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}


def test_a_seed_that_is_not_given_is_drawn_recorded_and_used_again(train, tmp_path):
    flags = (*RUN, "--seed=None")
    first = train(tmp_path / "a", *flags)
    assert train(tmp_path / "a", *flags) == first
    assert records.recorded_recipe(tmp_path / "a")["seed"] == first["seed"]
    assert train(tmp_path / "b", *flags)["seed"] != first["seed"]


def test_the_last_step_is_kept_though_it_is_no_multiple(train, tmp_path):
    train(tmp_path / "run", *RUN, "--optim_ni=25", "--periodic_ckpt=true", "--config.tickets.every=10")
    names = sorted(p.name for p in (tmp_path / "run").glob("*.ckpt"))
    assert names == ["best_acc.ckpt"] + [f"iter_0000{s}.ckpt" for s in ("00", "10", "20", "25")] + [
        "last.ckpt"
    ]
    steps = [row["step"] for row in records.read_metrics(tmp_path / "run")]
    assert sorted(set(steps)) == [0, 10, 20, 25]
    assert (
        read_ticket(tmp_path / "run/last.ckpt").digest
        == read_ticket(tmp_path / "run/iter_000025.ckpt").digest
    )


def test_no_steps_write_just_step_zero(train, tmp_path):
    result = train(tmp_path / "run", *RUN, "--optim_ni=0", "--periodic_ckpt=true")
    tickets = {p.name: read_ticket(p).digest for p in (tmp_path / "run").glob("*.ckpt")}
    assert sorted(tickets) == ["best_acc.ckpt", "iter_000000.ckpt", "last.ckpt"]
    assert len(set(tickets.values())) == 1
    assert result["steps"] == result["best_step"] == 0


def test_the_best_ticket_is_the_first_with_the_most_hits_on_the_selection_split(train, tmp_path):
    result = train(tmp_path / "run", *RUN)
    rows = records.read_metrics(tmp_path / "run")
    hits = [(r["step"], r["correct"]) for r in rows if r["split"] == "holdout" and r["step"] > 0]
    most = max(c for _, c in hits)
    assert result["best_step"] == next(s for s, c in hits if c == most)
    assert result["scores"]["best"]["holdout"]["correct"] == most
    assert {r["step"] for r in rows if r["split"] == "test"} == {0}  # never looked at while selecting
    on_test = train(tmp_path / "test", *RUN, "--config.evaluation.select_on=test")
    assert on_test["selected_on"] == "test"


def test_a_loss_that_turns_nan_stops_the_run_and_keeps_what_was_good(train, tmp_path):
    flags = (*RUN, *STATES, "--config.optim.name=sgd", "--optim_ni=40", "--periodic_ckpt=true",
             "--config.tickets.every=5", "--config.evaluation.every=5")  # fmt: skip
    with pytest.raises(
        Failure, match=r"not finite at step \d+ .*Kept: .*iter_000000\.ckpt.*Try a lower rate"
    ):
        train(tmp_path / "run", *flags, "--optim_lr=1e7")
    kept = [read_ticket(p) for p in (tmp_path / "run").glob("*.ckpt")]
    assert kept
    assert all(np.isfinite(leaf).all() for t in kept for leaf in jax.tree.leaves(t.params))
    assert not (tmp_path / "run/result.json").exists()
    ended = json.loads((tmp_path / "run/config.json").read_text())["sessions"][-1]["ended"]
    assert ended["how"] == "failed"
    assert "the loss is not finite at step" in ended["why"]


def test_a_network_that_turned_nan_in_its_last_step_is_no_result(train, tmp_path):
    with pytest.raises(Failure, match="not finite at step 1 "):
        train(tmp_path / "run", *RUN, "--config.optim.name=sgd", "--optim_lr=1e38", "--optim_ni=1")
    assert not list((tmp_path / "run").glob("*.ckpt"))
    assert train(tmp_path / "run", *RUN, "--optim_ni=1")["steps"] == 1  # no work was there to protect


# What orbax leaves of a restore that failed midway closes its event loop loudly (0.12.8, 2026-11-21).
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["cut short", "readable but another's", "no notes"])
def test_a_damaged_newest_state_falls_back_to_the_one_before(how, train, tmp_path, monkeypatch, capsys):
    calm = train(tmp_path / "calm", *RUN)
    with monkeypatch.context() as patch:
        stop_at(patch, 20)
        with pytest.raises(Stopped):
            train(tmp_path / "cut", *RUN, *STATES)
    newest, before = tmp_path / "cut/states/15", tmp_path / "cut/states/10"
    if how == "cut short":
        for file in newest.rglob("d/*"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif how == "no notes":
        shutil.rmtree(newest / "notes")
    else:
        shutil.rmtree(newest / "state")
        shutil.copytree(before / "state", newest / "state")
    capsys.readouterr()
    assert train(tmp_path / "cut", *RUN, *STATES) == calm
    said = capsys.readouterr().out
    assert "the state of step 15 is damaged" in said
    assert "continuing from step 10" in said
    [aside] = (tmp_path / "cut/damaged").iterdir()  # for whoever wants to know why
    assert aside.name.startswith("states_15_")


def test_micro_batches_that_fit_in_memory_train_the_same(train, tmp_path, monkeypatch, capsys):
    resnet = ("resnet_cifar", "--config.model.depth=8", "--config.model.group_size=10", "--optim_ni=10")
    flags = (*RUN, *(f"--config.model.name={resnet[0]}", *resnet[1:]), "--grad_accum=auto")
    need, real = [], accumulation.needed
    watch = lambda compile_steps: need.append(real(compile_steps)) or need[-1]  # noqa: E731
    monkeypatch.setattr(accumulation, "needed", watch)
    monkeypatch.setattr(accumulation, "device_memory", lambda: 2**40)
    whole = train(tmp_path / "whole", *flags)
    assert "micro-batches" not in capsys.readouterr().out
    monkeypatch.setattr(accumulation, "device_memory", lambda: int(0.8 * need[0] / setup.FITS))
    parts = train(tmp_path / "parts", *flags)
    assert "micro-batches of" in capsys.readouterr().out
    assert need[-1] < 0.8 * need[0]
    loss = [result["scores"]["last"]["holdout"]["loss"] for result in (whole, parts)]
    assert loss[0] == pytest.approx(loss[1], rel=1e-4)
    monkeypatch.setattr(accumulation, "device_memory", lambda: 1000)
    with pytest.raises(Refusal, match="a step does not fit in"):
        train(tmp_path / "none", *flags)


def test_micro_batches_that_would_change_the_recipe_are_refused(train, tmp_path):
    with pytest.raises(Refusal, match="can be cut into 1, 2"):
        train(tmp_path, *RUN, "--grad_accum=7")


def test_dying_between_the_last_state_and_the_result_changes_nothing(train, tmp_path, monkeypatch):
    calm = train(tmp_path / "calm", *RUN)
    with monkeypatch.context() as patch:
        patch.setattr("giung2_ext.training.hooks.Keeper.finish", lambda *a: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            train(tmp_path / "cut", *RUN, *STATES)
    assert train(tmp_path / "cut", *RUN, *STATES) == calm


def test_a_field_that_a_record_lacks_has_its_default(train, tmp_path):
    result = train(tmp_path / "run", *RUN)
    path = tmp_path / "run" / records.CONFIG
    stored = json.loads(path.read_text())
    del stored["recipe"]["masks"]["allocation"], stored["recipe"]["model"]["hidden"]
    path.write_text(json.dumps(stored))
    assert train(tmp_path / "run", *RUN) == result
    with pytest.raises(Refusal, match=r"masks\.allocation: 'global' -> 'erk'"):
        train(tmp_path / "run", *RUN, "--config.masks.allocation=erk")


def test_a_run_is_not_written_into_a_ticket(train, tmp_path):
    train(tmp_path / "run", *RUN)
    with pytest.raises(Refusal, match="is inside the ticket"):
        train(tmp_path / "run/last.ckpt/000", *RUN)


def test_evaluating_a_ticket_gives_the_number_that_the_run_recorded(train, tmp_path, capsys):
    result = train(tmp_path / "run", *RUN)
    for name, when in (("best_acc.ckpt", "best"), ("last.ckpt", "last")):
        [judged] = evaluate.evaluate(str(tmp_path / "run" / name), [], WHERE, batch_size=64)
        scores, own = judged["scores"]["all"], result["scores"][when]["test"]
        assert scores["top1"][0] == own["accuracy"]
        assert scores["nll"][0] == pytest.approx(own["loss"], rel=1e-5)
        assert judged["seen"] == 397
    assert "50,200 of 50,200 prunable (1.0000)" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["rigl", "jackpots"])
def test_searching_beats_a_random_mask_of_the_same_density(method, train, tmp_path):
    short = ("--config.evaluation.every=200",)
    if method == "rigl":
        path = f"--config={REPOSITORY / 'configs/dynamic/digits.py'}:steps=400"
        found = train(tmp_path / "found", f"{path},method=rigl", *short)
        control = train(tmp_path / "control", f"{path},method=static", *short)
    else:
        path = f"--config={REPOSITORY / 'configs/jackpots/digits.py'}"
        train(tmp_path / "dense", f"{path}:pretrain", "--optim_ni=300", *short)
        start = (f"--matching_ckpt={tmp_path / 'dense/last.ckpt'}", *short)
        found = train(tmp_path / "found", path, "--optim_ni=400", *start)
        control = train(tmp_path / "control", f"{path}:control", *start)
    assert found["kept"] == control["kept"] == found["prunable"] * 2 // 100
    gain = found["scores"]["last"]["test"]["accuracy"] - control["scores"]["last"]["test"]["accuracy"]
    assert gain > 0.10
    ticket = read_ticket(tmp_path / "found/last.ckpt")
    assert int(masking.kept(ticket.masks)) == found["kept"]
