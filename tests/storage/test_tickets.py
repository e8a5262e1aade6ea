"""A ticket is what was written, or it is refused."""

import io
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from etils import epath
from fakes import REPOSITORY

from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.storage import paths, tickets

LINEAGE = {"seed": 5, "step": 30, "parents": {"rewind": "ab" * 32, "previous": None}, "rates": [0.1, 1 / 3]}


def make_parts():
    """params, masks and statistics of a small network; every call makes them anew."""
    draw = np.random.default_rng(0)
    mask = draw.random((3, 3, 2, 5)) < 0.4
    params = {
        "Conv_0": {"kernel": np.where(mask, draw.normal(size=mask.shape), 0).astype(np.float32)},
        "cls": {
            "kernel": draw.normal(size=(5, 3)).astype(np.float32),
            "bias": np.float32([-0.0, np.inf, 1e-45]),
        },
    }
    masks = {"Conv_0": {"kernel": mask}, "cls": {"kernel": None, "bias": None}}
    statistics = {"batch_stats": {"m": draw.normal(size=5)}, "image_stats": {"m": np.float32(0.5)}}
    return params, masks, statistics


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path) / "run"


def same(a, b):
    a, b = trees.named_leaves(a), trees.named_leaves(b)
    bits = lambda leaf: None if leaf is None else (leaf.dtype, leaf.shape, leaf.tobytes())  # noqa: E731
    return list(a) == list(b) and all(bits(a[name]) == bits(b[name]) for name in a)


def write(folder, parts=None, **lineage):
    return tickets.write_ticket(folder, *(parts or make_parts()), LINEAGE | lineage)


def test_what_is_read_is_what_was_written(folder):
    path, meta = write(folder)
    paths.point(folder / "last.ckpt", path)
    for name in (path, folder / "last.ckpt", os.fspath(folder / "last.ckpt")):
        ticket = tickets.read_ticket(name)
        for found, written in zip(ticket[:3], make_parts(), strict=True):
            assert same(found, written)
        assert ticket.meta == meta == tickets.read_meta(name)
        assert ticket.digest.startswith(path.name)
    assert {key: meta[key] for key in LINEAGE} == LINEAGE


def test_plain_numpy_reads_masks_of_one_bit_a_weight_and_counts(folder):
    path, meta = write(folder)
    mask = make_parts()[1]["Conv_0"]["kernel"]
    with np.load(path / tickets.ARRAYS) as stored:
        packed = stored["masks/Conv_0/kernel"]
        assert [name for name in stored.files if name.startswith("masks/")] == ["masks/Conv_0/kernel"]
    assert packed.nbytes == 12  # 90 bits
    assert np.array_equal(np.unpackbits(packed, count=90).reshape(mask.shape), mask)
    kept = int(mask.sum())
    counts = {
        "kept": kept,
        "prunable": 90,
        "parameters": 90 + 15 + 3,
        "layers": {"Conv_0/kernel": [kept, 90]},
    }
    assert set(meta) == {*LINEAGE, *counts, "format", "digest", "mask_digest"}  # no clock, no host
    assert {key: meta[key] for key in counts} == counts


def change_weight(params, masks, statistics):
    params["Conv_0"]["kernel"].view(np.uint32)[2, 1, 0, 3] ^= 1


def change_sign_of_zero(params, masks, statistics):
    params["cls"]["bias"][0] = 0.0


def change_mask(params, masks, statistics):
    masks["Conv_0"]["kernel"][2, 2, 1, 4] ^= True


def change_prunable(params, masks, statistics):
    masks["cls"]["kernel"] = np.ones((5, 3), bool)


def change_statistics(params, masks, statistics):
    statistics["image_stats"]["m"] = np.float32(0.25)


def change_type(params, masks, statistics):
    params["cls"]["bias"] = params["cls"]["bias"].view(np.int32)


def change_shape(params, masks, statistics):
    params["cls"]["kernel"] = params["cls"]["kernel"].reshape(3, 5)


def change_name(params, masks, statistics):
    params["head"], masks["head"] = params.pop("cls"), masks.pop("cls")


CHANGES = [
    change_weight, change_sign_of_zero, change_mask, change_prunable,
    change_statistics, change_type, change_shape, change_name,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_the_digest_depends_on_every_array(change, folder):
    parts = make_parts()
    change(*parts)
    assert write(folder, parts)[1]["digest"] != write(folder)[1]["digest"]


def test_the_digest_depends_on_the_lineage_and_on_the_order_of_nothing(folder):
    digest = write(folder)[1]["digest"]
    for other in (
        {"step": 31},
        {"parents": {"rewind": "ab" * 32, "previous": "cd" * 32}},
        {"arm": "reinit"},
    ):
        assert write(folder, **other)[1]["digest"] != digest
    turned = [dict(reversed(part.items())) for part in make_parts()]
    reordered = tickets.write_ticket(folder, *turned, dict(reversed(LINEAGE.items())))
    assert reordered[1]["digest"] == digest


def test_a_ticket_written_again_is_the_same_directory_untouched(folder):
    path, meta = write(folder)

    def files():
        found = {p.name: os.stat(p) for p in path.iterdir()}
        return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in found.items()}

    before = files()
    assert write(folder) == (path, meta)
    assert files() == before
    assert [p.name for p in (folder / paths.TICKETS).iterdir()] == [path.name]
    elsewhere, _ = write(folder / "other")
    assert all((elsewhere / name).read_bytes() == (path / name).read_bytes() for name in before)
    with zipfile.ZipFile(path / tickets.ARRAYS) as stored:
        assert {info.date_time[0] for info in stored.infolist()} == {1980}  # of no clock


@pytest.mark.parametrize("file", [tickets.ARRAYS, tickets.META])
def test_a_flipped_byte_is_refused_or_has_changed_nothing(file, folder):
    weights = {"w": np.arange(3, dtype=np.float32)}
    path, meta = tickets.write_ticket(folder, weights, {"w": np.array([1, 0, 1], bool)}, {}, {"seed": 1})
    whole = (path / file).read_bytes()
    messages = []
    for place in range(len(whole)):
        for flip in (0x01, 0xFF):
            (path / file).write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            try:
                found = tickets.read_ticket(path)
            except Refusal as refusal:
                messages.append(str(refusal))
                continue
            assert file == tickets.ARRAYS  # a zip keeps dates and the like, which say nothing
            assert same(found.params, weights)
            assert found.masks["w"].tolist() == [True, False, True]
            assert found.meta == meta
    assert all("is damaged" in message or "has ticket format" in message for message in messages)
    assert len(messages) >= 1.2 * len(whole)


@pytest.mark.parametrize("file", [tickets.ARRAYS, tickets.META])
def test_a_truncated_or_missing_file_is_refused(file, folder):
    path, _ = write(folder)
    whole = (path / file).read_bytes()
    for size in range(0, len(whole), 7):
        (path / file).write_bytes(whole[:size])
        with pytest.raises(Refusal, match=f"is damaged: cannot read its {file}"):
            tickets.read_ticket(path)
    (path / file).unlink()
    with pytest.raises(Refusal, match=f"cannot read its {file}"):
        tickets.read_ticket(path)


@pytest.mark.parametrize("change", CHANGES)
def test_arrays_or_lineage_of_another_ticket_are_refused(change, folder):
    parts = make_parts()
    change(*parts)
    (path, _), (other, _) = write(folder), write(folder, parts)
    for file in (tickets.ARRAYS, tickets.META):
        own = (path / file).read_bytes()
        (path / file).write_bytes((other / file).read_bytes())
        with pytest.raises(Refusal, match="does not match its digest"):
            tickets.read_ticket(path)
        (path / file).write_bytes(own)
    tickets.read_ticket(path)


def test_nothing_is_unpickled(folder):
    path, _ = write(folder)
    buffer = io.BytesIO()
    np.savez(buffer, **{"params/w": np.array([print], object)})
    (path / tickets.ARRAYS).write_bytes(buffer.getvalue())
    with pytest.raises(Refusal, match="allow_pickle"):
        tickets.read_ticket(path)


def test_another_format_or_what_is_no_ticket_is_refused(folder):
    path, meta = write(folder)
    (path / tickets.META).write_text(json.dumps(meta | {"format": 2}))
    with pytest.raises(Refusal, match="ticket format 2, this suite reads 1"):
        tickets.read_meta(path)
    for odd in ("[1]", "{}", "null"):
        (path / tickets.META).write_text(odd)
        with pytest.raises(Refusal):
            tickets.read_ticket(path)
    with pytest.raises(Refusal, match=r"cannot read its ticket\.json"):
        tickets.read_meta(folder / paths.TICKETS)


def test_dropping_the_unnamed_keeps_every_named_ticket(folder):
    made = [write(folder, step=step)[0] for step in range(6)]
    tickets.name_ticket(folder, paths.LAST, made[1])
    tickets.name_ticket(folder, paths.iteration(1), made[1])
    tickets.name_ticket(folder, paths.best("accuracy"), made[0])
    tickets.name_ticket(folder, paths.best("accuracy"), made[4])  # surpassed: 0 has lost its only name
    (folder / paths.iteration(5)).write_text(f"{paths.POINTER}{paths.TICKETS}/{made[5].name}")
    tickets.drop_unnamed(folder)
    left = {made[1].name, made[4].name, made[5].name}
    assert {p.name for p in (folder / paths.TICKETS).iterdir()} == left
    best = paths.best("accuracy")
    for name, step in ((paths.LAST, 1), (paths.iteration(1), 1), (best, 4), (paths.iteration(5), 5)):
        assert tickets.read_ticket(folder / name).meta["step"] == step


def test_a_ticket_read_by_a_name_that_is_being_moved_is_one_ticket(folder):
    steps = {1, 2}
    for step in steps:
        parts = make_parts()
        parts[0]["cls"]["bias"] += step
        paths.point(folder / f"{step}.ckpt", write(folder, parts, step=step)[0])
    paths.point(folder / paths.LAST, paths.resolve(folder / "1.ckpt"))
    code = """
import sys
from etils import epath
from giung2_ext.storage import paths
folder = epath.Path(sys.argv[1])
both = [paths.resolve(folder / f"{step}.ckpt") for step in (1, 2)]
print("ready", flush=True)
for i in range(10**9):
    paths.point(folder / "last.ckpt", both[i % 2])
"""
    command = [sys.executable, "-c", code, os.fspath(folder)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as mover:
        try:
            mover.stdout.readline()
            seen = {tickets.read_ticket(folder / paths.LAST).meta["step"] for _ in range(100)}
        finally:
            mover.kill()
    assert seen <= steps
