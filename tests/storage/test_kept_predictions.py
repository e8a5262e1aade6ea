"""Predictions beside a ticket: whole or not there, and found again whatever the ticket is called."""

import shutil

import numpy as np
import pytest
from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.storage import paths, predictions, tickets

ARRAYS = {"ids": np.arange(4, dtype="<u8"), "top": np.zeros((4, 5), np.int16)}
SCORES = {"dataset": "imagenet_v2/topimages", "pipeline": "timm", "seen": 4}


def test_what_is_written_is_read_again(tmp_path):
    folder = epath.Path(tmp_path) / "predictions/abc"
    path = predictions.write(folder, SCORES, ARRAYS)
    assert path.name == "imagenet_v2.topimages.timm.npz"
    assert predictions.all_scores(folder) == [SCORES]
    found = predictions.read_arrays(folder, "imagenet_v2/topimages", "timm")
    assert found.keys() == ARRAYS.keys()
    assert all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


def test_two_pipelines_are_kept_side_by_side(tmp_path):
    folder = epath.Path(tmp_path)
    for pipeline in ("timm", "tf"):
        predictions.write(folder, SCORES | {"pipeline": pipeline}, ARRAYS)
    assert {scores["pipeline"] for scores in predictions.all_scores(folder)} == {"timm", "tf"}


def test_scores_of_a_killed_judgement_are_not_there(tmp_path, monkeypatch):
    folder = epath.Path(tmp_path)
    predictions.write(folder, SCORES, ARRAYS)
    whole = paths.write_bytes

    def killed(path, content):
        whole(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(paths, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        predictions.write(folder, SCORES | {"seen": 5}, ARRAYS)
    assert predictions.all_scores(folder) == []  # not those of the arrays before


def test_damaged_arrays_are_refused_by_name(tmp_path):
    folder = epath.Path(tmp_path)
    path = predictions.write(folder, SCORES, ARRAYS)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(Refusal, match=r"topimages\.timm\.npz is damaged .*evaluate again"):
        predictions.read_arrays(folder, "imagenet_v2/topimages", "timm")


def test_a_ticket_has_one_folder_by_whatever_name(tmp_path):
    run = epath.Path(tmp_path) / "run"
    params = {"cls": {"kernel": np.ones((2, 3), np.float32)}}
    place, meta = tickets.write_ticket(run, params, {"cls": {"kernel": None}}, {}, {"step": 0})
    tickets.name_ticket(run, "last.ckpt", place)
    expected = run / "predictions" / meta["digest"][:16]
    for name in (place, run / "last.ckpt"):
        assert predictions.folder_of(name, meta["digest"]) == expected
    alone = epath.Path(tmp_path) / "shipped"
    shutil.copytree(place, alone)
    assert (
        predictions.folder_of(alone, meta["digest"]) == alone.parent / "predictions" / meta["digest"][:16]
    )
