"""`load_and_evaluate`: a run's own numbers, from its checkpoints."""

import numpy as np
import pytest
from etils import epath
from fakes import REPOSITORY, random_variables, script_module

from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments.config import default_config
from giung2_ext.experiments.evaluate import evaluate, load_and_evaluate
from giung2_ext.models import lenet
from giung2_ext.storage import tickets

RUN = (
    f"--config={REPOSITORY / 'configs/imp/digits.py'}:smoke", "--optim_ni=60", "--seed=4",
    "--optim_lr=0.02", "--config.evaluation.every=20", "--config.placement.log_every=20",
    "--config.model.hidden=12,8", "--periodic_ckpt=true", "--config.tickets.every=30",
)  # fmt: skip


def contents(folder):
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_every_checkpoint_has_the_numbers_that_its_run_recorded(train, tmp_path):
    result = train(tmp_path / "run", *RUN)
    before = contents(tmp_path)
    for name, when in (("iter_000000", "start"), ("best_acc", "best"), ("last", "last")):
        found = load_and_evaluate(tmp_path / f"run/{name}.ckpt")
        assert set(found) == {"holdout", "test"}
        for split, scores in found.items():
            recorded = result["scores"][when][split]
            assert scores["accuracy"] == recorded["accuracy"]
            assert scores["seen"] == recorded["seen"] == {"holdout": 200, "test": 397}[split]
            assert scores["loss"] == pytest.approx(recorded["loss"], rel=1e-6)
    middle = load_and_evaluate(str(tmp_path / "run/iter_000030.ckpt"), split_names=["train"])
    assert middle["train"]["seen"] == 1200
    assert contents(tmp_path) == before


def test_the_data_is_found_where_it_is_now_and_a_split_that_is_not_there_is_refused(
    train, image_arrays, tmp_path
):
    flags = (
        "--data_name=arrays",
        "--config.model.hidden=4",
        "--batch_size=10",
        "--optim_ni=2",
        "--config.data.holdout=20",
    )
    train(tmp_path / "run", *RUN, *flags, f"--data_root={image_arrays}")
    moved = image_arrays.rename(tmp_path / "moved")
    found = load_and_evaluate(tmp_path / "run/last.ckpt", str(moved), ("test",))
    assert found["test"]["seen"] == 45 == len(np.load(moved / "test_labels.npy"))
    with pytest.raises(Refusal, match="unknown split 'validation'; known: holdout, test, train"):
        load_and_evaluate(tmp_path / "run/last.ckpt", str(moved), ("validation",))


def test_images_are_prepared_as_the_run_prepared_them_not_as_tickets_are_judged(tmp_path):
    tree = script_module("make_imagenet").make(tmp_path / "tree", count=1)
    shape, data = (16, 16, 3), {"name": "imagenet2012", "image_size": 16, "pipeline": "tf"}
    params = random_variables(lenet.build(1000, hidden=(4,)), shape)["params"]
    statistics = {"image_stats": {"m": np.full(3, 0.5, "f4"), "s": np.full(3, 0.2, "f4")}}
    model = {"name": "lenet", "hidden": [4]}
    lineage = dict(model=model, data=data, num_classes=1000, image_shape=list(shape), step=0)
    masks = masking.dense(params, "kernels")
    place, _ = tickets.write_ticket(epath.Path(tmp_path), params, masks, statistics, lineage)
    loss = load_and_evaluate(place, str(tree), ["test"])["test"]["loss"]
    where = default_config().placement
    where.data_root = str(tree)
    [tf], [timm] = (evaluate(str(place), [], where, pipeline=name) for name in ("tf", "timm"))
    assert loss == pytest.approx(tf["scores"]["all"]["nll"][0], rel=1e-6)
    assert loss != pytest.approx(timm["scores"]["all"]["nll"][0], rel=1e-4)
