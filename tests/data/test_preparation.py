"""A prepared set is the images that were given, in TFDS's own form, however often it was interrupted."""

import collections
import concurrent.futures
import hashlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath
from fakes import REPOSITORY
from PIL import Image, JpegImagePlugin
from test_folders import nested_tar_of, tar_of, write_folder

from giung2_ext.core.errors import Refusal
from giung2_ext.data import classes, distribution, preparation
from giung2_ext.data.formats import folders, shards

WNIDS = (classes.WNIDS[0], classes.WNIDS[388], classes.WNIDS[999])


def picture(seed, width=24, height=20, mode="RGB", format="JPEG", **options):
    """An encoded image of smooth colours."""
    channels = {"L": 1, "RGB": 3, "CMYK": 4, "RGBA": 4}[mode]
    draw = np.random.default_rng(seed)
    small = draw.integers(0, 256, (3, 3, channels), dtype=np.uint8)
    image = Image.fromarray(small.squeeze(), mode if mode == "CMYK" else None).resize((width, height), 2)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


TRAIN = {f"{w}/{w}_{n}.JPEG": picture(97 * i + n) for i, w in enumerate(WNIDS) for n in range(9)}
VAL = {f"ILSVRC2012_val_{n:08d}.JPEG": picture(n + 1000) for n in range(1, 6)}
NUMBERED = {f"{n}/{n:03x}.jpeg": picture(n + 2000) for n in (0, 1, 2, 3, 10, 100)}


@pytest.fixture
def places(tmp_path):
    """ImageNet's folder: train and a flat val."""
    write_folder(tmp_path / "raw/train", TRAIN)
    write_folder(tmp_path / "raw/val", VAL)
    return [str(tmp_path / "raw")]


def prepare(places, root, dataset="imagenet2012", **options):
    given = dict(allow_incomplete=True, shard=5, num_workers=2, say=lambda text: None) | options
    return preparation.prepare(dataset, places, root, **given)


def read_back(folder, split):
    """(image bytes, label, name) of every record, by TFDS."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return [(row["image"], int(row["label"]), row["file_name"].decode()) for row in source]


def digests(folder):
    return {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in pathlib.Path(folder).iterdir()}


def times(folder):
    return {p.name: p.stat().st_mtime_ns for p in pathlib.Path(folder).iterdir()}


def test_tfds_reads_back_every_image_with_its_label_and_name(places, tmp_path):
    folder = prepare(places, tmp_path / "out")
    assert folder == tmp_path / "out/imagenet2012/5.1.0"
    train = read_back(folder, "train")
    assert {name: image for image, _, name in train} == {k.split("/")[1]: v for k, v in TRAIN.items()}
    assert all(classes.WNIDS[label] == name.split("_")[0] for _, label, name in train)
    val = read_back(folder, "validation")
    assert {name: image for image, _, name in val} == VAL
    labels = {name: classes.WNIDS[label] for _, label, name in val}
    assert labels["ILSVRC2012_val_00000001.JPEG"] == "n01751748"  # sea snake


def test_tfds_knows_it_by_name_and_decodes_it(places, tmp_path):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(prepare(places, tmp_path / "out"))
    assert (builder.name, str(builder.version)) == ("imagenet2012", "5.1.0")
    assert builder.info.features["label"].names == list(classes.WNIDS)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 27,
        "validation": 5,
    }
    assert builder.info.splits["train"].num_shards == 6
    row = builder.as_data_source("train[:4]")[3]
    assert (row["image"].shape, row["image"].dtype) == ((20, 24, 3), np.uint8)


def test_the_order_is_that_of_the_folder_and_of_the_tars(places, tmp_path):
    want = [(row.image, row.label) for row in folders.read(f"{places[0]}/train")]
    tars = tmp_path / "tars"
    tars.mkdir()
    (tars / "ILSVRC2012_img_train.tar").write_bytes(nested_tar_of(TRAIN))
    (tars / "ILSVRC2012_img_val.tar").write_bytes(tar_of(VAL))
    two = [str(tars / name) for name in ("ILSVRC2012_img_val.tar", "ILSVRC2012_img_train.tar")]
    prepared = [
        prepare(given, tmp_path / out) for given, out in ((places, "a"), ([str(tars)], "b"), (two, "c"))
    ]
    assert [row[:2] for row in read_back(prepared[0], "train")] == want
    assert digests(prepared[0]) == digests(prepared[1]) == digests(prepared[2])


def test_numbered_folders_keep_their_labels(tmp_path):
    write_folder(tmp_path / "raw", NUMBERED)
    given = [str(tmp_path / "raw")]
    folder = prepare(given, tmp_path / "out", "imagenet_v2", variant="topimages")
    assert folder == tmp_path / "out/imagenet_v2/topimages/3.0.0"
    rows = read_back(folder, "test")
    assert {name: image for image, _, name in rows} == NUMBERED
    assert all(label == int(name.split("/")[0]) for _, label, name in rows)
    with pytest.raises(Refusal, match=r"needs --variant=matched-frequency or threshold-0\.7 or topimages"):
        prepare(given, tmp_path / "out", "imagenet_v2")
    with pytest.raises(Refusal, match="did you mean 'topimages'"):
        prepare(given, tmp_path / "out", "imagenet_v2", variant="top-images")


@pytest.mark.parametrize(
    ("dataset", "label"), [("imagenet_r", 1), ("imagenet_a", 6), ("imagenet_sketch", 9)]
)
def test_labels_of_the_shifts_are_among_the_thousand(dataset, label, tmp_path):
    write_folder(tmp_path / "raw", {f"{classes.WNIDS[label]}/art_0.jpg": picture(0)})
    rows = read_back(prepare([str(tmp_path / "raw")], tmp_path / "out", dataset), "test")
    assert [row[1] for row in rows] == [label]


def test_a_shorter_side_shrinks_what_is_larger_and_keeps_the_rest(tmp_path):
    files = {
        "wide.JPEG": picture(1, 96, 40),
        "tall.JPEG": picture(2, 33, 50),
        "small.JPEG": picture(3, 16, 90),
        "grey.JPEG": picture(4, 60, 60, "L"),
        "grey_small.JPEG": picture(5, 10, 10, "L"),
        "cmyk.JPEG": picture(6, 12, 14, "CMYK"),
        "png_in_truth.JPEG": picture(7, 12, 14, format="PNG"),
        "clear.png": picture(8, 64, 32, "RGBA", format="PNG"),
        "exact.JPEG": picture(9, 16, 16),
    }
    write_folder(tmp_path / "train" / WNIDS[0], files)
    folder = prepare([str(tmp_path / "train")], tmp_path / "out", shorter_side=16, quality=95)
    stored = {name: image for image, _, name in read_back(folder, "train")}
    sizes = {name: Image.open(io.BytesIO(data)).size for name, data in stored.items()}
    assert sizes == {
        "wide.JPEG": (38, 16),
        "tall.JPEG": (16, 24),
        "small.JPEG": (16, 90),
        "grey.JPEG": (16, 16),
        "grey_small.JPEG": (10, 10),
        "cmyk.JPEG": (12, 14),
        "png_in_truth.JPEG": (12, 14),
        "clear.png": (32, 16),
        "exact.JPEG": (16, 16),
    }
    kept = {name for name in files if stored[name] == files[name]}
    assert kept == {"small.JPEG", "grey_small.JPEG", "exact.JPEG"}
    for name, data in stored.items():
        image = Image.open(io.BytesIO(data))
        assert image.format == "JPEG"
        if name not in kept:
            assert JpegImagePlugin.get_sampling(image) == 2  # 4:2:0
        assert image.mode == ("L" if name == "grey_small.JPEG" else "RGB")
        original = (
            Image.open(io.BytesIO(files[name])).convert("RGB").resize(image.size, Image.Resampling.BICUBIC)
        )
        difference = np.asarray(image.convert("RGB"), float) - np.asarray(original, float)
        assert np.abs(difference).mean() < 6, name  # a flipped or mistaken image differs by 50 and more


def test_without_a_shorter_side_awkward_files_keep_their_bytes(tmp_path):
    files = {
        "cmyk.JPEG": picture(6, mode="CMYK"),
        "png.JPEG": picture(7, format="PNG"),
        "l.JPEG": picture(8, mode="L"),
    }
    write_folder(tmp_path / "train" / WNIDS[0], files)
    rows = read_back(prepare([str(tmp_path / "train")], tmp_path / "out"), "train")
    assert {name: image for image, _, name in rows} == files


@pytest.mark.parametrize("broken", [b"", b"no image", TRAIN[f"{WNIDS[0]}/{WNIDS[0]}_1.JPEG"][:-200]])
@pytest.mark.parametrize("side", [None, 8])
def test_an_image_that_cannot_be_decoded_stops_it_by_name_and_leaves_no_data_set(
    broken, side, places, tmp_path
):
    (pathlib.Path(places[0]) / "train" / WNIDS[1] / "bad.JPEG").write_bytes(broken)
    with pytest.raises(Refusal, match=rf"^{WNIDS[1]}/bad.JPEG cannot be decoded \(.+\): replace it"):
        prepare(places, tmp_path / "out", shorter_side=side)
    folder = tmp_path / "out/imagenet2012/5.1.0"
    assert not (folder / "dataset_info.json").exists()
    assert not [name for name in digests(folder) if name.startswith(shards.UNFINISHED)]
    assert preparation.describe(folder).endswith("unfinished")


def test_an_image_that_cannot_be_decoded_leaves_whole_shards_alone(places, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "SAMPLE", 1)  # so that it is met in the middle of a shard
    (pathlib.Path(places[0]) / "train" / WNIDS[1] / "bad.JPEG").write_bytes(b"")
    rows = [row.name.split("/")[1] for row in folders.read(f"{places[0]}/train")]
    with pytest.raises(Refusal, match=r"bad.JPEG cannot be decoded \(the file is empty\)"):
        prepare(places, tmp_path / "out")
    first = rows.index("bad.JPEG") * 6 // 28  # the shard that it would be in, one of six
    assert first > 0
    names = [f"imagenet2012-train.array_record-{k:05d}-of-00006" for k in range(first)]
    assert sorted(digests(tmp_path / "out/imagenet2012/5.1.0")) == [*names, "preparation.json"]


def test_a_file_appears_when_it_is_whole_or_never(tmp_path):
    path = epath.Path(tmp_path / "file")
    path.write_text("old")

    def fail():
        with shards.publishing(path) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert digests(tmp_path).keys() == {"file"}
    with shards.publishing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        written = os.stat(temporary).st_ino
    assert (path.read_text(), os.stat(path).st_ino) == ("new", written)  # renamed, not copied
    assert digests(tmp_path).keys() == {"file"}


def test_an_incomplete_set_is_refused_before_anything_is_written(places, tmp_path):
    with pytest.raises(
        Refusal, match=r"train has 27 images, expected 1,281,167; validation has 5 images, expected 50,000"
    ):
        prepare(places, tmp_path / "out", allow_incomplete=False)
    with pytest.raises(Refusal, match=r"validation is missing.*--allow_incomplete=true"):
        prepare([f"{places[0]}/train"], tmp_path / "out", allow_incomplete=False)
    assert not (tmp_path / "out").exists()


def test_expected_counts_are_the_published_ones():
    counts = {name: tuple(kind.counts.values()) for name, kind in distribution.KINDS.items()}
    assert counts == {
        "imagenet2012": (1_281_167, 50_000),
        "imagenet_v2": (10_000,),
        "imagenet_r": (30_000,),
        "imagenet_a": (7_500,),
        "imagenet_sketch": (50_889,),
    }


def test_a_folder_says_how_it_was_prepared(places, tmp_path, monkeypatch):
    assert preparation.describe(tmp_path) == ""
    folder = prepare(places, tmp_path / "a", shorter_side=16, quality=80)
    assert preparation.describe(folder) == "prepared at shorter side 16, quality 80, from an incomplete set"
    full = distribution.KINDS["imagenet2012"]._replace(counts={"train": 27, "validation": 5})
    monkeypatch.setitem(distribution.KINDS, "imagenet2012", full)
    folder = prepare(places, tmp_path / "b", allow_incomplete=False)
    assert preparation.describe(folder) == "prepared at original size"
    assert json.loads((folder / "preparation.json").read_text())["complete"] is True


def test_a_finished_folder_is_left_alone_and_another_plan_refused(places, tmp_path):
    folder = prepare(places, tmp_path / "out", shorter_side=16)
    before = times(folder)
    said = []
    assert prepare(places, tmp_path / "out", shorter_side=16, say=said.append) == folder
    assert "is finished already: prepared at shorter side 16, quality 90" in said[-1]
    with pytest.raises(Refusal, match=r"otherwise: shorter_side is 16 there, now 12\. Give"):
        prepare(places, tmp_path / "out", shorter_side=12)
    with pytest.raises(Refusal, match=r"otherwise: quality is 90 there, now 75\. Give"):
        prepare(places, tmp_path / "out", shorter_side=16, quality=75)
    one = pathlib.Path(places[0]) / "train" / WNIDS[0]
    (one / f"{WNIDS[0]}_1.JPEG").rename(one / "renamed.JPEG")
    with pytest.raises(Refusal, match=r"splits\.train\.digest is \w+ there, now \w+"):
        prepare(places, tmp_path / "out", shorter_side=16)
    assert times(folder) == before


def test_a_folder_of_other_files_is_not_written_to(places, tmp_path):
    write_folder(tmp_path / "out/imagenet2012/5.1.0", {"dataset_info.json": b"{}"})
    with pytest.raises(Refusal, match=r"has files but no preparation\.json"):
        prepare(places, tmp_path / "out")


def test_a_damaged_or_missing_shard_is_written_again(places, tmp_path):
    folder = prepare(places, tmp_path / "out")
    whole = digests(folder)
    names = sorted(name for name in whole if "train" in name)
    (folder / "dataset_info.json").unlink()
    (folder / names[0]).unlink()
    (folder / names[1]).write_bytes((folder / names[1]).read_bytes()[:1000])
    (folder / names[2]).write_bytes(b"")
    said = []
    prepare(places, tmp_path / "out", say=said.append)
    assert digests(folder) == whole
    assert "13 images, 3 shards (4 are there)" in said[1]


SCRIPT = """
import sys
from giung2_ext.data import preparation
options = dict(allow_incomplete=True, shard=4, num_workers=2)
preparation.prepare("imagenet2012", [sys.argv[1]], sys.argv[2], **options)
"""


def test_a_killed_preparation_goes_on_and_ends_with_the_same_files(places, tmp_path):
    more = {f"{WNIDS[0]}/{WNIDS[0]}_{n}.JPEG": picture(n, 700, 600) for n in range(100, 160)}
    write_folder(pathlib.Path(places[0]) / "train", more)
    want = digests(prepare(places, tmp_path / "undisturbed", shard=4))
    folder = tmp_path / "killed/imagenet2012/5.1.0"
    command = [sys.executable, "-c", SCRIPT, places[0], str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=REPOSITORY)
    deadline = time.monotonic() + 60
    while process.poll() is None and len(list(folder.glob("*train*"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    there = {name: time for name, time in times(folder).items() if "train" in name}
    assert 3 <= len(there) < len([name for name in want if "train" in name])
    assert not (folder / "dataset_info.json").exists()
    (folder / f"{shards.UNFINISHED}left").write_bytes(b"half")  # as a kill within a shard leaves it
    prepare(places, tmp_path / "killed", shard=4)
    assert digests(folder) == want
    assert {name: times(folder)[name] for name in there} == there


def test_two_at_once_harm_nothing(places, tmp_path):
    want = digests(prepare(places, tmp_path / "alone", shard=2))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: prepare(places, tmp_path / "out", shard=2), range(3)))
    assert digests(tmp_path / "out/imagenet2012/5.1.0") == want


def test_a_full_disk_is_foreseen(places, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")(0, 0, 10_000)
    monkeypatch.setattr(preparation.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(Refusal, match=r"needs about .* GB more, and 0\.0 GB are free"):
        prepare(places, tmp_path / "out")


def test_paths_that_do_not_say_their_split_are_refused(places, tmp_path):
    write_folder(tmp_path / "photos", TRAIN)
    with pytest.raises(Refusal, match=r"photos: neither holds any of train, .* nor says in its name"):
        prepare([str(tmp_path / "photos")], tmp_path / "out")
    with pytest.raises(Refusal, match=r"two places for train: "):
        prepare([*places, f"{places[0]}/train"], tmp_path / "out")
    with pytest.raises(Refusal, match=r"imagenet_r is one folder or archive, got 2 paths"):
        prepare(["a", "b"], tmp_path / "out", "imagenet_r")
    with pytest.raises(Refusal, match="did you mean 'imagenet2012'"):
        prepare(places, tmp_path / "out", "imagenet2021")


def run_script(*arguments):
    command = [sys.executable, "scripts/prepare.py", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )


def test_the_script_prepares_and_speaks_of_it(places, tmp_path):
    given = [
        "--dataset=imagenet2012",
        f"--images={places[0]}/train,{places[0]}/val",
        f"--data_root={tmp_path}/out",
    ]
    done = run_script(*given, "--shorter_side=16", "--allow_incomplete=true", "--num_workers=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "27 train, 5 validation images" in done.stdout
    assert len(read_back(tmp_path / "out/imagenet2012/5.1.0", "train")) == 27
    refused = run_script(*given)
    assert (refused.returncode, refused.stdout.count("\n")) == (2, 1)
    assert refused.stderr.startswith("error: imagenet2012 in ")
    assert refused.stderr.count("\n") == 1
