"""The main line of the suite in small: tickets of streamed JPEGs, cycle by cycle, judged on five sets."""

import csv
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from etils import epath
from fakes import REPOSITORY, Stopped, dying_at, make_model, random_variables, script_module
from flax import serialization

from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.data import preparation
from giung2_ext.data.classes import IMAGENET_A, IMAGENET_R
from giung2_ext.data.formats import shards
from giung2_ext.data.formats.example import make_example
from giung2_ext.experiments import evaluate, flags, single
from giung2_ext.experiments.config import default_config
from giung2_ext.reports import chain as report
from giung2_ext.storage import records, tickets
from giung2_ext.training import program

small_imagenet = script_module("make_imagenet")

SMALL = (
    "--config.model.name=resnet_cifar", "--config.model.depth=8", "--config.model.planes=4",
    "--config.data.image_size=32", "--config.data.holdout=40", "--batch_size=24", "--optim_lr=0.1",
    "--config.evaluation.every=4", "--config.evaluation.batch_size=40", "--config.judge.batch_size=32",
    "--config.placement.log_every=2", "--num_workers=2", "--seed=5",
)  # fmt: skip
FIVE = ("imagenet2012", "imagenet_v2", "imagenet_r", "imagenet_a", "imagenet_sketch")
REWIND = (*SMALL, "--optim_ni=8", "--constant_lr=true", "--periodic_ckpt=true", "--config.tickets.every=4",
          "--datasets=none")  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return small_imagenet.make(tmp_path_factory.mktemp("tree"), count=8)


def cycle(base, previous, *more):
    """The flags of one cycle, as the original suite's README types them."""
    return (*SMALL, "--optim_ni=8", f"--matching_ckpt={base}/iter_000008.ckpt",
            f"--previous_ckpt={previous}", *more)  # fmt: skip


def run_cycles(train, base, data):
    """rewind point, 000, 001 and 002, each by a command of its own."""
    train(base, *REWIND, data)
    previous = base / "iter_000008.ckpt"
    for name, ratio in (("000", ()), ("001", ("--pruning_ratio=0.8",)), ("002", ("--pruning_ratio=0.8",))):
        train(base / name, *cycle(base, previous, *ratio, data))
        previous = base / name / "best_acc.ckpt"
    return base


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory):
    """The chain without a disturbance."""

    def train(save, *arguments):
        given = [str(argument) for argument in ("--mesh=data:1", *arguments)]
        config, _ = flags.parse(given, {"save": None}, str(REPOSITORY / "configs/imagenet2012.py"))
        return single.train_one(config, str(save))

    return run_cycles(train, tmp_path_factory.mktemp("whole"), f"--data_root={tree}")


def digests(base):
    names = sorted(base.rglob("*.ckpt"))
    return {str(name.relative_to(base)): tickets.read_meta(name)["digest"] for name in names}


def test_the_chain_learns_and_is_judged_on_every_set_in_every_cycle(whole):
    kept = [records.read_result(whole / name)["kept"] for name in ("000", "001", "002")]
    assert kept[1] == kept[0] * 8 // 10
    assert kept[2] == kept[1] * 8 // 10
    rows = [json.loads(line) for line in (whole / "000/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert losses[-1] < losses[0]
    for point in report.read_chain(whole):
        assert set(point.judged) == set(FIVE)
        seen = {name: found["seen"] for name, found in point.judged.items()}
        in_a, in_r = (len(set(small_imagenet.LABELS) & set(subset)) for subset in (IMAGENET_A, IMAGENET_R))
        assert seen == {
            "imagenet2012": 80, "imagenet_v2": 40, "imagenet_r": 3 * in_r, "imagenet_a": 2 * in_a,
            "imagenet_sketch": 40,
        }  # fmt: skip
        assert set(point.judged["imagenet_r"]["scores"]) == {"200", "all"}


def test_the_report_has_the_columns_of_the_original_suite_and_says_what_they_are(whole, capsys):
    folder = report.write_report(whole)
    table = (folder / "shifts.md").read_text().splitlines()
    header = [cell.strip() for cell in table[0].strip("|").split("|")]
    assert header == [
        "Cycle", "# Params (Conv)", "IN %", "IN-V2 %", "IN-R %", "IN-A %", "IN-S %", "GFLOPs",
        "density of all",
    ]  # fmt: skip
    assert len(table) == 2 + 3
    said = capsys.readouterr().out
    assert "IN-R: top-1 of best_acc.ckpt on imagenet_r" in said
    assert "among 200 classes, pipeline timm" in said
    assert "which was selected on holdout" in said
    assert "pipeline tf" in said  # of the holdout and of `test %`
    judged = json.loads(next((whole / "002/predictions").rglob("imagenet_a.timm.json")).read_text())
    row = dict(zip(header, (cell.strip() for cell in table[-1].strip("|").split("|")), strict=True))
    assert row["IN-A %"] == f"{100 * judged['scores']['200']['top1'][0]:.2f}"


@pytest.mark.parametrize("where", ["from a state", "from the start"])
def test_a_streamed_run_that_was_killed_ends_as_if_it_had_not_been(
    where, whole, tree, train, tmp_path, monkeypatch
):
    base = tmp_path / "chain"
    shutil.copytree(whole, base, symlinks=True)
    shutil.rmtree(base / "001")
    save = ("--save_every=3",) if where == "from a state" else ("--save_every=never",)
    arguments = cycle(base, base / "000/best_acc.ckpt", "--pruning_ratio=0.8", f"--data_root={tree}", *save)
    with monkeypatch.context() as patch:
        patch.setattr("giung2_ext.experiments.single.run_loop", dying_at(5))
        with pytest.raises(Stopped):
            train(base / "001", *arguments)
    train(base / "001", *arguments)
    assert digests(base) == digests(whole)


def test_a_real_job_killed_by_a_real_signal_goes_on_to_the_same_tickets(whole, tree, tmp_path):
    """imp.py over the same tree, in processes of its own: killed once within a cycle, then left alone."""
    command = [
        sys.executable, str(REPOSITORY / "scripts/imp.py"), *SMALL, "--mesh=data:1", "--optim_ni=8",
        "--config.chain.rewind_ni=8", "--config.chain.cycles=2", "--config.tickets.every=4",
        "--save_every=2", f"--data_root={tree}", f"--save={tmp_path / 'chain'}",
    ]  # fmt: skip
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        until = time.monotonic() + 300
        states = tmp_path / "chain/001/states"
        while first.poll() is None and time.monotonic() < until and not any(states.glob("[0-9]*")):
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not (tmp_path / "chain/002/result.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "chain") == digests(whole)
    assert "| IN-V2 % |" in done.stdout


def test_members_of_a_chain_of_streamed_data_train_one_after_another(tree, chain, tmp_path):
    both = ("--config.chain.trials=2", "--config.chain.arms=reinit", "--config.chain.rewind_ni=4")
    more = ("--optim_ni=4", "--config.chain.cycles=1", "--datasets=imagenet_a", f"--data_root={tree}")
    folder = chain(tmp_path / "chain", *SMALL, *more, *both)
    found = {str(p.relative_to(folder)) for p in pathlib.Path(folder).rglob("result.json")}
    for trial in ("trial_0", "trial_1"):
        assert {f"{trial}/{name}/result.json" for name in ("000", "001", "reinit/001")} <= found
    first, second = (tickets.read_meta(folder / f"trial_{i}/000/last.ckpt") for i in (0, 1))
    assert (first["seed"], second["seed"]) == (5, 6)
    assert first["digest"] != second["digest"]


def test_steps_do_not_pile_up_on_the_device_and_none_is_waited_for_at_once(monkeypatch):
    waited = []
    monkeypatch.setattr(program.jax, "block_until_ready", waited.append)
    waiting = program.deque()
    for step in range(6):
        program._wait(waiting, step)
    assert waited == [0, 1, 2, 3]
    assert len(waiting) == program.AHEAD


def test_damaged_training_images_are_told_once_and_do_not_end_a_run(tree, train, tmp_path, capfd):
    damaged = tmp_path / "tree"
    shutil.copytree(tree, damaged)
    victims = sorted((damaged / "train").rglob("*.JPEG"))[:3]
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:200])
    train(tmp_path / "run", *SMALL, "--optim_ni=20", "--datasets=none", f"--data_root={damaged}")
    told = [line for line in capfd.readouterr().err.splitlines() if "cannot be decoded" in line]
    assert len(told) == len(victims)
    for victim in victims:
        assert sum(victim.name in line for line in told) == 1


def test_a_run_does_not_go_on_with_other_images(tree, train, tmp_path, monkeypatch, capsys):
    """The same names in the same order, but prepared smaller: that is another training."""
    command = (*SMALL, "--optim_ni=8", "--datasets=none", "--save_every=2")
    with monkeypatch.context() as patch:
        patch.setattr("giung2_ext.experiments.single.run_loop", dying_at(4))
        with pytest.raises(Stopped):
            train(tmp_path / "run", *command, f"--data_root={tree}")
    quiet = dict(allow_incomplete=True, say=lambda line: None)
    preparation.prepare("imagenet2012", [str(tree)], tmp_path / "small", shorter_side=30, **quiet)
    with pytest.raises(Refusal, match=r"begun on other images \(train: 120 then, 120 now"):
        train(tmp_path / "run", *command, f"--data_root={tmp_path / 'small'}")
    preparation.prepare("imagenet2012", [str(tree)], tmp_path / "same", **quiet)
    train(tmp_path / "run", *command, f"--data_root={tmp_path / 'same'}")  # the same files, elsewhere
    train(tmp_path / "straight", *command, f"--data_root={tree}")
    assert digests(tmp_path / "run") == digests(tmp_path / "straight")
    capsys.readouterr()
    parent = tmp_path / "run/last.ckpt"
    for place in ("same", "small"):
        more = (f"--matching_ckpt={parent}", f"--previous_ckpt={parent}", f"--data_root={tmp_path / place}")
        train(tmp_path / place / "run", *command, "--optim_ni=0", *more)
        warned = f"warning: {parent} was trained on other images" in capsys.readouterr().out
        assert warned == (place == "small")


def test_on_the_tree_itself_the_original_rule_chooses_on_its_validation_set(tree, train, tmp_path):
    result = train(
        tmp_path / "run", *SMALL, "--optim_ni=4", "--config.data.holdout=0", "--select_on=validation",
        "--datasets=none", f"--data_root={tree}",
    )  # fmt: skip
    assert result["selected_on"] == "test"
    assert result["scores"]["best"]["test"]["seen"] == 80
    assert result["data"]["train"].startswith("160 of 160 images (the whole set has 1,281,167)")


def test_a_set_that_is_missing_is_told_at_the_start_and_refused_where_it_was_named(
    tree, train, tmp_path, capsys
):
    data = tmp_path / "tree"
    shutil.copytree(tree, data)
    shutil.rmtree(data / "sketch")
    train(tmp_path / "run", *SMALL, "--optim_ni=2", f"--data_root={data}")
    said = capsys.readouterr().out
    assert "tickets are not judged on imagenet_sketch: not found (--datasets=imagenet_sketch says" in said
    assert "imagenet_a " in said.splitlines()[-1]
    with pytest.raises(Refusal, match="no test split of imagenet_sketch"):
        train(
            tmp_path / "run2", *SMALL, "--optim_ni=2", f"--data_root={data}", "--datasets=imagenet_sketch"
        )
    assert not (tmp_path / "run2/result.json").exists()


def test_damaged_images_of_a_set_are_counted_with_its_scores(whole, tree, tmp_path, capsys):
    data = tmp_path / "tree"
    shutil.copytree(tree, data)
    victim = sorted((data / "imagenet-a").rglob("*.JPEG"))[5]
    victim.write_bytes(b"")
    ticket = tmp_path / "ticket"
    shutil.copytree(whole / "000/best_acc.ckpt", ticket)
    [found] = evaluate.evaluate(str(ticket), ["imagenet_a"], where_of(data), batch_size=16)
    assert (found["seen"], found["damaged"]) == (28, 1)
    assert "1 of them cannot be decoded and are judged as black images" in capsys.readouterr().out


def where_of(tree):
    where = default_config().placement
    where.data_root, where.num_workers = str(tree), 2
    return where


@pytest.mark.parametrize(("batch_size", "mesh"), [(7, "data:1"), (16, "data:8"), (500, "data:2,fsdp:2")])
def test_every_example_counts_once_at_any_batch_size_on_any_devices(
    whole, tree, tmp_path, batch_size, mesh
):
    ticket = tmp_path / "ticket"
    shutil.copytree(whole / "002/best_acc.ckpt", ticket)
    where = where_of(tree)
    where.mesh = mesh
    results = evaluate.evaluate(str(ticket), FIVE, where, batch_size=batch_size)
    for point in report.read_chain(whole)[-1:]:
        for found in results:
            recorded = point.judged[found["dataset"]]
            assert found["seen"] == recorded["seen"]
            for kind, values in found["scores"].items():
                for name, score in values.items():
                    np.testing.assert_allclose(score, recorded["scores"][kind][name], rtol=1e-4, atol=1e-6)


def test_two_tickets_are_compared_on_the_same_images_and_flips_are_listed(whole, tree, capsys):
    first, last = (str(whole / f"{name}/best_acc.ckpt") for name in ("000", "002"))
    results = evaluate.evaluate(
        last, ["imagenet2012", "imagenet_r"], where_of(tree), batch_size=32, against=first
    )
    here = pathlib.Path(last).resolve()
    for found in results:
        for kind, difference in found["against"]["scores"].items():
            other = next(p for p in report.read_chain(whole) if p.cycle == 0).judged[found["dataset"]]
            apart = found["scores"][kind]["top1"][0] - other["scores"][kind]["top1"][0]
            assert difference["top1"][0] == pytest.approx(apart, abs=1e-9)
            ending = f".{kind}" if len(found["scores"]) > 1 else ""
            [listed] = here.parents[1].glob(
                f"predictions/*/flips.{found['dataset']}{ending}.timm.against_*.csv"
            )
            rows = list(csv.DictReader(listed.read_text().splitlines()))
            assert len(rows) == difference["gained"] + difference["lost"]
            assert all((row["answer"] == row["label"]) == (row["flip"] == "gained") for row in rows)
            assert all(row["example"].endswith(".JPEG") for row in rows)
            assert difference["gained"] - difference["lost"] == pytest.approx(apart * found["seen"])
    assert "minus" in capsys.readouterr().out


def test_a_network_for_other_images_is_refused(whole, tree, tmp_path):
    where = where_of(tree)
    where.data_root = None
    with pytest.raises(
        Refusal, match=r"was trained on images of \[32, 32, 3\] in 1000 classes; digits has"
    ):
        evaluate.evaluate(str(whole / "000/best_acc.ckpt"), ["digits"], where)
    with pytest.raises(Refusal, match="has no variants"):
        evaluate.evaluate(str(whole / "000/best_acc.ckpt"), ["imagenet_r/x"], where_of(tree))


def test_corrupted_and_relabelled_images_are_judged_where_they_are(whole, tmp_path, capsys):
    for name, severity in (("fog", 1), ("fog", 3), ("snow", 5)):
        small_imagenet.write(
            tmp_path / f"imagenet-c/{name}/{severity}", small_imagenet.LABELS, 1, side=(32, 32)
        )
    labels = small_imagenet.LABELS
    answers = [(label, 999) if i % 3 else () for i, label in enumerate(labels)]
    examples = [
        make_example(
            {
                "image": small_imagenet.picture(label, 3),
                "original_label": label,
                "real_label": right,
                "file_name": f"{label}.JPEG".encode(),
            }
        )
        for label, right in zip(labels, answers, strict=True)
    ]
    folder, name = epath.Path(tmp_path / "imagenet2012_real/1.0.0"), "imagenet2012_real"
    folder.mkdir(parents=True)
    shards.write(shards.place(folder, name, "validation", 0, 1), len(examples), examples)
    shards.finish(folder, name, None, {"validation": [len(examples)]}, "")
    (folder / "features.json").unlink()  # it would tell of other features than these
    results = evaluate.evaluate(
        str(whole / "002/best_acc.ckpt"), ["imagenet_c", "imagenet_real"], where_of(tmp_path), batch_size=16
    )
    assert [found["dataset"] for found in results] == [
        "imagenet_c/snow_5", "imagenet_c/fog_1", "imagenet_c/fog_3", "imagenet_real"
    ]  # fmt: skip
    assert results[0]["pipeline"] == "stored"
    real = results[-1]
    assert real["seen"] == sum(map(bool, answers))
    [kept] = (whole / "002/predictions").rglob("imagenet_real.timm.npz")
    top = np.load(kept)["top"][:, 0]
    hits = [t in right for t, right in zip(top, answers, strict=True) if right]
    assert real["scores"]["real"]["top1"][0] == pytest.approx(np.mean(hits))
    against = evaluate.evaluate(
        str(whole / "002/best_acc.ckpt"), ["imagenet_real"], where_of(tmp_path),
        against=str(whole / "000/best_acc.ckpt"),
    )  # fmt: skip
    [other] = (whole / "000/predictions").rglob("imagenet_real.timm.npz")
    theirs = [t in right for t, right in zip(np.load(other)["top"][:, 0], answers, strict=True) if right]
    difference = against[0]["against"]["scores"]["real"]
    assert list(difference) == ["top1", "gained", "lost"]
    assert difference["top1"][0] == pytest.approx(np.mean(hits) - np.mean(theirs))
    shutil.rmtree(other.parent)
    said = capsys.readouterr().out
    error = 100 * np.mean([1 - found["scores"]["all"]["top1"][0] for found in results[:3]])
    assert f"mean error {error:.2f}% over 3 variants" in said
    shutil.rmtree(kept.parent)  # the chain's own record is not about these sets


def test_a_chain_that_was_begun_in_the_original_suite_goes_on_here(tree, train, tmp_path):
    """Its checkpoints, in its own format, are named where tickets are; their masks are shrunk."""
    network = make_model("resnet", planes=(64, 128, 256, 512)).clone(num_classes=1000)
    found = jax.device_get(random_variables(network, (32, 32, 3)))
    params, batch_stats = found["params"], found["batch_stats"]
    draw = np.random.default_rng(0)
    kernel = params.pop("cls")["kernel"]
    ones = jax.tree.map(np.ones_like, params)
    masks = jax.tree.map(
        lambda w: (draw.random(w.shape) < 0.5) * np.float32(w.ndim == 4) + (w.ndim < 4), ones
    )
    whole = {"params": {"cls": kernel, "ext": jax.tree.map(np.multiply, params, masks)}}
    whole |= {"params_mask": {"cls": np.ones_like(kernel), "ext": masks}, "batch_stats": batch_stats}
    whole["image_stats"] = {"m": np.full(3, 0.5, np.float32), "s": np.full(3, 0.25, np.float32)}
    for name in ("iter_016000.ckpt", "best_acc.ckpt"):
        (tmp_path / name).write_bytes(serialization.to_bytes(whole))
    small = (
        "--resnet_depth=18",
        "--batch_size=8",
        "--config.model.group_size=8",
        "--config.data.image_size=32",
    )
    files = (f"--matching_ckpt={tmp_path}/iter_016000.ckpt", f"--previous_ckpt={tmp_path}/best_acc.ckpt")
    run = ("--config.data.holdout=8", "--optim_ni=1", "--datasets=none", "--num_workers=2", "--seed=1")
    result = train(tmp_path / "007", *small, *files, *run, "--pruning_ratio=0.8", f"--data_root={tree}")
    before = tickets.read_ticket(tmp_path / "best_acc.ckpt")
    assert result["kept"] == before.meta["kept"] * 8 // 10
    after = tickets.read_ticket(tmp_path / "007/last.ckpt")
    assert bool(masking.nested(after.masks, before.masks))
    assert after.meta["parents"] == {"matching": before.digest, "previous": before.digest}
