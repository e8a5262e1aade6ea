"""The small sets are the same from their publishers' files and from TFDS; no file is taken for another."""

import collections
import gzip
import io
import itertools
import json
import os
import pickle
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from fakes import SHARED, python2_batch
from PIL import Image

from giung2_ext.core.errors import Refusal
from giung2_ext.data.formats import tfrecord
from giung2_ext.data.source import Missing
from giung2_ext.data.sources import _small, cifar10, cifar100, fashion_mnist, mnist

IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SIZES = {"train": 50, "test": 15}
MODULES = {"mnist": mnist, "fashion_mnist": fashion_mnist, "cifar10": cifar10, "cifar100": cifar100}
SHAPES = {name: (28, 28, 1) if "mnist" in name else (32, 32, 3) for name in MODULES}
CLASSES = {name: 100 if name == "cifar100" else 10 for name in MODULES}
INNER = {
    "mnist": ("mnist", "MNIST/raw"),
    "fashion_mnist": ("fashion_mnist", "FashionMNIST/raw"),
    "cifar10": ("cifar-10-batches-py", ""),
    "cifar100": ("cifar-100-python", ""),
}


@pytest.fixture(autouse=True)
def no_tfds_data_dir(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


def content(name, split):
    """Different noise for every set and split."""
    draw = np.random.default_rng([*name.encode(), *split.encode()])
    images = draw.integers(0, 256, (SIZES[split], *SHAPES[name]), dtype=np.uint8)
    return images, draw.integers(0, CLASSES[name], SIZES[split])


def idx(array):
    return (
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    )


def cifar100_batch(pixels, labels):
    """With coarse labels before the fine ones, all 7."""
    coarse = b"U\x0dcoarse_labels](" + b"K\x07" * len(labels) + b"e"
    plain = python2_batch(b"a batch", pixels, labels)
    return plain.replace(b"U\x06labels", coarse + b"U\x0bfine_labels", 1)


def write(name, folder, packed=False, dot=False):
    """The publishers' files."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in SIZES:
        images, labels = content(name, split)
        if "mnist" in name:
            for file, data in zip(IDX[split], (idx(images[..., 0]), idx(labels)), strict=True):
                file = file.replace("-idx", ".idx") if dot else file
                (folder / f"{file}{'.gz' * packed}").write_bytes(gzip.compress(data) if packed else data)
            continue
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        if name == "cifar100":
            (folder / split).write_bytes(cifar100_batch(rows, labels))
        else:
            files = [f"data_batch_{n}" for n in range(1, 6)] if split == "train" else ["test_batch"]
            for file, some, of in zip(
                files, np.split(rows, len(files)), np.split(labels, len(files)), strict=True
            ):
                (folder / file).write_bytes(python2_batch(b"a batch", some, of))
    return folder


def build(name, root, **options):
    return MODULES[name].build(None if root is None else os.fspath(root), **dict(holdout=8) | options)


def check_published(name, source):
    """Whether it has the publishers' images in their order."""
    expected = {split: content(name, split) for split in SIZES}
    images, labels = expected["train"]
    expected["train"], expected["holdout"] = (images[:-8], labels[:-8]), (images[-8:], labels[-8:])
    assert set(source.splits) == set(expected)
    for split, (images, labels) in expected.items():
        found = source.split(split)
        assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.int32)
        assert found.images.flags.c_contiguous
        assert np.array_equal(found.images, images)
        assert np.array_equal(found.labels, labels)
    assert (source.num_classes, source.image_shape) == (CLASSES[name], SHAPES[name])
    assert len(source.mean) == len(source.std) == SHAPES[name][-1]


@pytest.mark.parametrize(("name", "inner"), [(name, inner) for name in INNER for inner in INNER[name]])
def test_the_publishers_files_are_read_from_every_folder_where_they_may_be(name, inner, tmp_path):
    folder = write(name, tmp_path / inner)
    source = build(name, tmp_path)
    check_published(name, source)
    assert source.about == {"train": f"42 of 50 images, the publishers' files in {folder}"}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize("dot", [False, True], ids=["dash", "dot"])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_are_read_gzipped_or_not_with_a_dash_or_a_dot(name, dot, packed, tmp_path):
    write(name, tmp_path / name, packed, dot)
    check_published(name, build(name, tmp_path))


def test_whether_a_file_is_gzipped_is_told_by_its_content(tmp_path):
    folder = write("mnist", tmp_path / "mnist", packed=True)
    for files in IDX.values():
        unpacked = gzip.decompress((folder / f"{files[0]}.gz").read_bytes())
        (folder / f"{files[0]}.gz").write_bytes(unpacked)
        (folder / f"{files[1]}.gz").rename(folder / files[1])
    check_published("mnist", build("mnist", tmp_path))


def test_a_folder_named_for_the_set_comes_before_the_root(tmp_path):
    folder = write("fashion_mnist", tmp_path / "mnist")  # whatever it is
    write("mnist", folder / "mnist")
    check_published("mnist", build("mnist", folder))


def test_mnist_and_fashion_mnist_may_both_lie_below_one_root(tmp_path):
    for name in ("mnist", "fashion_mnist"):
        write(name, tmp_path / INNER[name][1])
    for name in ("mnist", "fashion_mnist"):
        check_published(name, build(name, tmp_path))


@pytest.mark.parametrize(
    "inner", ["data", "fashion-mnist/data/fashion", "raw", "mnist/fashion", "mnist/raw/x"]
)
def test_idx_files_in_a_folder_without_the_name_of_a_set_are_taken_for_none(inner, tmp_path, monkeypatch):
    folder = write("mnist", tmp_path / inner)
    monkeypatch.chdir(folder)
    for name, root in itertools.product(("mnist", "fashion_mnist"), (folder, ".", "../" + folder.name)):
        with pytest.raises(Missing, match=rf"into a folder DIR/{name} \(its name alone tells") as raised:
            build(name, root)
        folders = [f"{epath.Path(root) / each} (which does not exist)" for each in INNER[name]]
        assert f"idx1-ubyte in {', '.join(folders)}, and no {name}/VERSION" in str(raised.value)


NAMED = {
    "mnist": ["mnist", "MNIST", "MNIST/raw", "mnist/raw"],
    "fashion_mnist": ["fashion_mnist", "FashionMNIST/raw", "fashion-mnist", "Fashion-MNIST/raw"],
}


@pytest.mark.parametrize(("name", "inner"), [(name, inner) for name in NAMED for inner in NAMED[name]])
def test_idx_files_of_a_root_are_taken_for_the_set_that_it_is_named_for_alone(
    name, inner, tmp_path, monkeypatch
):
    folder = write(name, tmp_path / inner)
    monkeypatch.chdir(folder)
    [other] = NAMED.keys() - {name}
    for root in (folder, ".", f"{folder}/../{folder.name}"):
        check_published(name, build(name, root))
        with pytest.raises(Missing, match=rf"into a folder DIR/{other} "):
            build(other, root)


def test_the_publishers_files_need_no_decoder_of_images(tmp_path):
    absent = "import sys; sys.modules.update(dict.fromkeys(['PIL', 'simplejpeg', 'cv2', 'array_record']))"
    code = "; ".join([absent, "from giung2_ext.data.sources import mnist, cifar100"])
    for name in ("mnist", "cifar100"):
        code += f"; {name}.build({os.fspath(write(name, tmp_path / INNER[name][0]).parent)!r}, holdout=8)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def flipped(place):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)

    return damage


def put(array):
    return lambda path: path.write_bytes(idx(array))


def exchange(name):
    def swap(path):
        other = path.with_name(name)
        mine = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(mine)

    return swap


def cut(end):
    return lambda path: path.write_bytes(path.read_bytes()[:end])


def pack(then):
    return lambda path: (path.write_bytes(gzip.compress(path.read_bytes())), then(path))


IMAGES, LABELS = IDX["train"]
BAD_IDX = {
    "images cut short": (IMAGES, cut(-1), "must have 39216 bytes for its 50 items, got 39215"),
    "images too long": (IMAGES, lambda path: path.write_bytes(path.read_bytes() + b"\0"), "got 39217"),
    "labels cut short": (LABELS, cut(-1), "must have 58 bytes for its 50 items, got 57"),
    "a header cut short": (IMAGES, cut(15), "must be an idx file of 3 dimensions .*got only 15 bytes"),
    "an empty file": (IMAGES, cut(0), "must be an idx file .*got only 0 bytes"),
    "a page of text": (IMAGES, lambda path: path.write_bytes(b"<html>" * 99), "must be an idx file"),
    "gzip cut short": (IMAGES, pack(cut(-100)), "is damaged"),
    "gzip of no data": (LABELS, pack(cut(11)), "is damaged"),
    "gzip with a wrong sum": (LABELS, pack(flipped(-6)), "is damaged"),
    "gzip with wrong data": (LABELS, pack(flipped(10)), "is damaged"),
    "another type": (IMAGES, flipped(2), "must be an idx file .*got 00000903"),
    "images for labels": (IMAGES, exchange(LABELS), "must be an idx file of 3 dimensions.*got 00000801"),
    "other images": (IMAGES, put(np.zeros((50, 28, 27))), r"images of \(28, 28\), got \(28, 27\)"),
    "the images of test": (IMAGES, exchange(IDX["test"][0]), "has 15 images and .* 50 labels"),
    "the labels of test": (LABELS, exchange(IDX["test"][1]), "has 50 images and .* 15 labels"),
}


@pytest.mark.parametrize("kind", BAD_IDX)
def test_a_bad_idx_file_is_refused_by_name(kind, tmp_path):
    file, damage, told = BAD_IDX[kind]
    path = write("mnist", tmp_path / "mnist") / file
    damage(path)
    with pytest.raises(Refusal) as raised:
        build("mnist", tmp_path)
    assert str(path) in str(raised.value)
    assert re.search(told, str(raised.value))


def test_labels_beyond_the_classes_are_refused(tmp_path):
    folder = write("mnist", tmp_path / "mnist")
    put(np.full(15, 10))(folder / IDX["test"][1])
    with pytest.raises(Refusal, match=r"test labels must be in 0\.\.9, got 10\.\.10"):
        build("mnist", tmp_path)
    put(np.zeros(0))(folder / IDX["test"][1])
    put(np.zeros((0, 28, 28)))(folder / IDX["test"][0])
    with pytest.raises(Refusal, match=r"test labels must be in 0\.\.9, got none"):
        build("mnist", tmp_path)


class Command:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_bad_batch_of_cifar100_is_refused_by_name_and_runs_nothing(tmp_path):
    path, ran = write("cifar100", tmp_path) / "train", tmp_path / "ran"
    path.write_bytes(pickle.dumps({b"data": Command(f"touch {ran}"), b"fine_labels": [1]}, protocol=2))
    with pytest.raises(Refusal, match=rf"{path} is not a CIFAR-100 python batch: it asks for \w+\.system"):
        build("cifar100", tmp_path)
    assert not ran.exists()
    path.write_bytes(python2_batch(b"of CIFAR-10", np.zeros((9, 3072), np.uint8), [1] * 9))
    with pytest.raises(Refusal, match=rf"{path} is not a CIFAR-100 python batch: b'fine_labels'"):
        build("cifar100", tmp_path)


@pytest.mark.parametrize("name", MODULES)
def test_a_set_that_is_not_there_is_refused_by_its_files_and_where_they_were_looked_for(name, tmp_path):
    with pytest.raises(Missing, match=rf"'{name}' needs --data_root=DIR with {INNER[name][0]}/\w+"):
        build(name, None)
    with pytest.raises(Missing) as raised:
        build(name, tmp_path / "nowhere")
    told = str(raised.value)
    write(name, tmp_path / "files")
    assert all(path.name in told for path in (tmp_path / "files").iterdir())
    for inner in INNER[name]:
        assert f"{tmp_path / 'nowhere' / inner} (which does not exist)" in told
    assert f"no {name}/VERSION of TFDS in {tmp_path / 'nowhere'}: " in told
    assert told.endswith("and give --data_root=DIR")


@pytest.mark.parametrize("name", MODULES)
def test_of_a_set_that_is_partly_there_the_missing_files_are_named(name, tmp_path):
    folder = write(name, tmp_path / INNER[name][0])
    first, *others = sorted(folder.iterdir())
    first.unlink()
    with pytest.raises(Missing, match=rf"no {first.name} in {folder}, which has the other files") as raised:
        build(name, tmp_path)
    assert not any(other.name in str(raised.value).partition(" in ")[0] for other in others)
    first.mkdir()  # a folder is no file
    with pytest.raises(Missing, match=rf"no {first.name} in {folder}, which"):
        build(name, tmp_path)


@pytest.mark.parametrize("name", MODULES)
def test_some_of_train_is_held_out_and_the_mean_has_every_channel(name, tmp_path):
    write(name, tmp_path / INNER[name][0])
    for holdout in (0, -1, 50):
        with pytest.raises(Refusal, match=rf"config\.data\.holdout must be in 1\.\.49, got {holdout}"):
            build(name, tmp_path, holdout=holdout)
    channels = SHAPES[name][-1]
    for wrong in (dict(mean=(0.1, 0.2)), dict(std=(0.1, 0.2))):
        with pytest.raises(Refusal, match=rf"\.mean and \.std need {channels} values"):
            build(name, tmp_path, **wrong)
    source = build(name, tmp_path, holdout=49, mean=[0.5] * channels, std=[0.25] * channels)
    assert (len(source.split("train")), len(source.split("holdout"))) == (1, 49)
    assert (source.mean, source.std) == ((0.5,) * channels, (0.25,) * channels)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "PNG")
    file.seek(0)
    return file


def tfds_set(name, root):
    """The set as TFDS prepares it, in ArrayRecord."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed (2026-11-21)")
    tfds.disable_progress_bar()
    features = dict(image=tfds.features.Image(shape=SHAPES[name], encoding_format="png"))
    features |= dict(label=tfds.features.ClassLabel(num_classes=CLASSES[name]))
    coarse = dict(coarse_label=tfds.features.ClassLabel(num_classes=20)) if name == "cifar100" else {}

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.2" if "cifar" in name else "3.0.1")

        def _info(self):
            both = tfds.features.FeaturesDict(features | coarse)
            return tfds.core.DatasetInfo(builder=self, features=both)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in SIZES}

        def _generate_examples(self, split):
            for i, (image, label) in enumerate(zip(*content(name, split), strict=True)):
                yield i, dict(image=png(image), label=label) | dict.fromkeys(coarse, 7)

    Small.name = name
    made = Small(data_dir=root, file_format="array_record")
    made.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    return made


def framed(data):
    length = struct.pack("<Q", len(data))
    sums = [tfrecord.masked_crc(np.frombuffer(each, np.uint8)[None])[0] for each in (length, data)]
    return length + struct.pack("<I", sums[0]) + data + struct.pack("<I", sums[1])


def to_tfrecord(made, root):
    """The same records in one TFRecord shard a split."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed (2026-11-21)")
    folder = root / made.name / str(made.version)
    folder.mkdir(parents=True)
    for split, size in SIZES.items():
        records = made.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        shard = folder / f"{made.name}-{split}.tfrecord-00000-of-00001"
        shard.write_bytes(b"".join(framed(records[i]) for i in range(size)))
    info = json.loads((epath.Path(made.data_dir) / "dataset_info.json").read_text())
    splits = [dict(name=split, shardLengths=[str(size)]) for split, size in SIZES.items()]
    (folder / "dataset_info.json").write_text(json.dumps(info | dict(fileFormat="tfrecord", splits=splits)))


@pytest.fixture(scope="module")
def tfds_roots(tmp_path_factory):
    roots = {form: tmp_path_factory.mktemp(form) for form in ("array_record", "tfrecord")}
    for name in MODULES:
        to_tfrecord(tfds_set(name, roots["array_record"]), roots["tfrecord"])
    return roots


def rows(*splits):
    return collections.Counter(
        (image.tobytes(), int(label))
        for split in splits
        for image, label in zip(split.images, split.labels, strict=True)
    )


@pytest.mark.parametrize("form", ["array_record", "tfrecord"])
@pytest.mark.parametrize("name", MODULES)
def test_from_tfds_come_the_pixels_and_labels_of_the_publishers_files(
    name, form, tfds_roots, tmp_path, monkeypatch
):
    monkeypatch.setattr(_small, "STRETCH", 7)  # as threads share a larger set
    theirs, source = build(name, write(name, tmp_path / name)), build(name, tfds_roots[form])
    assert rows(source.split("test")) == rows(theirs.split("test"))
    both = ("train", "holdout")
    assert rows(*map(source.split, both)) == rows(*map(theirs.split, both))
    assert [len(source.split(split)) for split in both] == [42, 8]
    version = "3.0.2" if "cifar" in name else "3.0.1"
    folder = tfds_roots[form] / name / version
    assert source.about == {"train": f"42 of 50 images, tfds {name}/{version} ({form}) in {folder}"}
    records = _small.tfds_folders.read(folder, "train")
    labels = [records[i].label for i in range(50)]
    assert [*source.split("train").labels, *source.split("holdout").labels] == labels
    for split in source.splits.values():
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize("name", MODULES)
def test_the_publishers_files_come_first_if_they_are_whole(name, tfds_roots, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", os.fspath(tfds_roots["array_record"]))
    assert "tfds" in build(name, None).about["train"]
    assert "tfds" in build(name, tmp_path).about["train"]
    folder = write(name, tmp_path / INNER[name][0])
    check_published(name, build(name, tmp_path))
    next(folder.iterdir()).unlink()
    assert "tfds" in build(name, tmp_path).about["train"]


def test_the_publishers_files_may_be_below_the_folder_of_tfds(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", os.fspath(tmp_path))
    write("mnist", tmp_path / "mnist")
    check_published("mnist", build("mnist", None))
    check_published("mnist", build("mnist", tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (png(np.zeros((28, 27), np.uint8)).getvalue(), r"expected an image of \(28, 28\), got \(28, 27\)"),
        (png(content("mnist", "train")[0][0]).getvalue()[:300], "fetch the dataset again"),
        (b"", "the file is empty; fetch the dataset again"),
    ],
    ids=["another size", "cut short", "empty"],
)
def test_a_bad_image_of_tfds_is_refused_by_its_name(image, told, tfds_roots, monkeypatch):
    good = (png(np.zeros((28, 28), np.uint8)).getvalue(), 1, "train/0")
    records = [good, (image, 1, "train/1"), good]
    monkeypatch.setattr(_small.tfds_folders, "read", lambda folder, split: records)
    with pytest.raises(Refusal, match=rf"mnist/3\.0\.1, train/1: .*{told}"):
        build("mnist", tfds_roots["array_record"])


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar100"])
def test_the_published_sets_have_their_published_mean_and_deviation(name):
    try:
        source = MODULES[name].build(os.fspath(SHARED))
    except Missing:
        pytest.skip(f"no {name} in {SHARED}; name its folder with GIUNG2_EXT_DATA (2026-11-21)")
    parts = [source.split(split) for split in ("train", "holdout")]
    assert sum(map(len, parts)) == (50000 if name == "cifar100" else 60000)
    assert (len(parts[1]), len(source.split("test"))) == (5000, 10000)
    levels = np.arange(256) / 255
    for channel in range(SHAPES[name][-1]):
        counts = sum(np.bincount(part.images[..., channel].ravel(), minlength=256) for part in parts)
        share = counts / counts.sum()
        mean = (share * levels).sum()
        assert round(mean, 4) == source.mean[channel]
        assert round((share * (levels - mean) ** 2).sum() ** 0.5, 4) == source.std[channel]


def test_the_published_mnist_has_its_published_classes():
    try:
        source = mnist.build(os.fspath(SHARED))
    except Missing:
        pytest.skip(f"no mnist in {SHARED}; name its folder with GIUNG2_EXT_DATA (2026-11-21)")
    assert source.split("train").labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert source.split("test").labels[:5].tolist() == [7, 2, 1, 0, 4]
    count = {name: np.bincount(split.labels, minlength=10) for name, split in source.splits.items()}
    trained = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert (count["train"] + count["holdout"]).tolist() == trained
    assert count["test"].tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
