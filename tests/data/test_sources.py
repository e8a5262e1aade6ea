"""Sources give fixed, disjoint splits as they are stored, and refuse what they cannot read."""

import collections
import os
import pickle
import re

import numpy as np
import pytest
from fakes import SHARED

import giung2_ext.data.sources
from giung2_ext.core import discovery
from giung2_ext.core.errors import Refusal
from giung2_ext.data.sources import arrays, cifar10, digits


def rows(split):
    return collections.Counter(
        (image.tobytes(), int(label)) for image, label in zip(split.images, split.labels, strict=True)
    )


def test_digits_are_fixed_splits_of_the_stored_file_in_its_order():
    source = digits.build()
    assert (source.num_classes, source.image_shape) == digits.CLASSES_AND_SHAPE
    parts = [source.split(name) for name in ("train", "holdout", "test")]
    assert [len(part.labels) for part in parts] == [1200, 200, 397]
    with np.load(digits.FILE) as stored:
        assert np.array_equal(np.concatenate([part.images for part in parts]), stored["images"])
        assert np.array_equal(np.concatenate([part.labels for part in parts]), stored["labels"])
    for part in parts:
        assert part.images.shape[1:] == (8, 8, 1)
        assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int32)
        assert set(part.labels.tolist()) == set(range(source.num_classes))


def test_no_digit_is_in_two_splits():
    source = digits.build()
    images = np.concatenate([split.images.reshape(-1, 64) for split in source.splits.values()])
    assert len(images) == 1797 == len(np.unique(images, axis=0))


def test_digits_are_the_copy_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    theirs = datasets.load_digits()
    images = theirs.images.astype(np.uint8)[..., None]
    ours = sum((rows(split) for split in digits.build().splits.values()), collections.Counter())
    assert ours == collections.Counter(
        (image.tobytes(), int(label)) for image, label in zip(images, theirs.target, strict=True)
    )


def test_standardised_digits_fill_the_unit_interval():
    source = digits.build()
    seen = (source.split("train").images / 255 - source.mean) / source.std
    assert seen.min() == 0
    assert seen.max() == pytest.approx(1)


def test_an_unknown_source_option_or_split_is_refused_with_the_nearest():
    with pytest.raises(Refusal, match="did you mean 'digits'"):
        discovery.build(giung2_ext.data.sources, "data source", "digit")
    with pytest.raises(Refusal, match=r"takes no option 'hold_out'.*did you mean 'holdout'"):
        discovery.build(giung2_ext.data.sources, "data source", "arrays", hold_out=3)
    with pytest.raises(Refusal, match=r"unknown split 'hold'; known: holdout, test, train; did you"):
        digits.build().split("hold")


def to_npz(folder):
    for split in ("train", "test"):
        parts = {what: folder / f"{split}_{what}.npy" for what in ("images", "labels")}
        np.savez(folder / f"{split}.npz", **{what: np.load(path) for what, path in parts.items()})
        for path in parts.values():
            path.unlink()


@pytest.mark.parametrize("packed", [False, True])
def test_arrays_are_read_as_stored_and_the_last_of_train_are_held_out(packed, image_arrays):
    images, labels = (np.load(image_arrays / f"train_{what}.npy") for what in ("images", "labels"))
    tests = np.load(image_arrays / "test_images.npy")
    if packed:
        to_npz(image_arrays)
    source = arrays.build(os.fspath(image_arrays), num_classes=3, holdout=25)
    train, held, test = (source.split(name) for name in ("train", "holdout", "test"))
    assert np.array_equal(train.images, images[:95])
    assert np.array_equal(held.images, images[95:])
    assert np.array_equal(train.labels, labels[:95])
    assert np.array_equal(held.labels, labels[95:])
    assert np.array_equal(test.images, tests)
    assert {split.labels.dtype for split in source.splits.values()} == {np.dtype(np.int32)}
    assert isinstance(train.images, np.memmap) == (not packed)  # not read before it is needed


@pytest.mark.parametrize("packed", [False, True])
def test_arrays_in_a_bucket_are_those_on_a_disk(packed, image_arrays, object_store, bucket):
    if packed:
        to_npz(image_arrays)
    place = object_store.put(image_arrays, bucket / "arrays")
    here, there = (
        arrays.build(os.fspath(each), num_classes=3, holdout=25) for each in (image_arrays, place)
    )
    for split in here.splits:
        for what in ("images", "labels"):
            own, other = (getattr(each.splits[split], what) for each in (here, there))
            assert np.array_equal(own, other)


def test_a_validation_split_of_its_own_leaves_train_whole(image_arrays):
    for what in ("images", "labels"):
        np.save(image_arrays / f"validation_{what}.npy", np.load(image_arrays / f"test_{what}.npy")[:7])
    source = arrays.build(os.fspath(image_arrays), num_classes=3)
    assert [len(source.split(name).labels) for name in ("train", "holdout", "test")] == [120, 7, 45]
    with pytest.raises(Refusal, match=r"has a validation file: .*holdout must be 0, got 5"):
        arrays.build(os.fspath(image_arrays), num_classes=3, holdout=5)


def replace(name, change):
    return lambda folder: np.save(folder / name, change(np.load(folder / name)))


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def cut_packed(size):
    return lambda folder: (to_npz(folder), cut("train.npz", size)(folder))


def pack_without_labels(folder):
    to_npz(folder)
    np.savez(folder / "train.npz", images=np.zeros((9, 8, 8, 1), np.uint8))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("test_images.npy"), r"has only one of test_images\.npy and test_labels\.npy"),
        (remove("train_labels.npy"), r"has only one of train_images\.npy and train_labels\.npy"),
        (
            remove("test_images.npy", "test_labels.npy"),
            r"no test_images\.npy and test_labels\.npy, or test\.npz, in",
        ),
        (replace("train_images.npy", lambda a: a[..., 0]), r"train images .*NHWC .*uint8\(120, 12, 12\)"),
        (replace("test_images.npy", lambda a: a.astype(float)), "test images .*float32, got float64"),
        (replace("train_labels.npy", lambda a: a[:-1]), r"train labels .*120 integers, got int64\(119,\)"),
        (replace("train_labels.npy", lambda a: a / 2), "train labels .*120 integers, got float64"),
        (replace("train_labels.npy", lambda a: a + 1), r"train labels must be in 0\.\.2"),
        (replace("test_labels.npy", lambda a: a - 1), r"test labels must be in 0\.\.2"),
        (replace("train_labels.npy", lambda a: a.astype(object)), "cannot read the train arrays"),
        (cut("train_images.npy", 3000), "cannot read the train arrays"),
        (cut("test_labels.npy", 0), "cannot read the test arrays"),
        (cut_packed(3000), "cannot read the train arrays"),
        (cut_packed(0), "cannot read the train arrays"),
        (pack_without_labels, "cannot read the train arrays .*labels"),
    ],
)  # fmt: skip
def test_bad_arrays_are_refused_by_split_and_reason(damage, message, image_arrays):
    damage(image_arrays)
    with pytest.raises(Refusal, match=message):
        arrays.build(os.fspath(image_arrays), num_classes=3, holdout=25)


@pytest.mark.parametrize("holdout", [0, -1, 120, 500])
def test_something_must_be_held_out_but_not_everything(holdout, image_arrays):
    with pytest.raises(Refusal, match=rf"holdout=N, 0 < N < 120 \(it is {holdout}\)"):
        arrays.build(os.fspath(image_arrays), num_classes=3, holdout=holdout)


def test_arrays_without_a_root_say_how_to_give_one():
    with pytest.raises(Refusal, match="--data_root=DIR"):
        arrays.build()


def stored(f, images):
    """The images and labels that the fixture wrote into its f-th file, image by image and NHWC."""
    image, row, column, channel = np.ogrid[images, :32, :32, :3]
    pixels = (101 * f + 37 * image + 3 * row + 7 * column + 85 * channel) % 251
    return pixels.astype(np.uint8), [(7 * f + i) % 10 for i in range(images.start or 0, images.stop)]


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_cifar10_is_read_in_the_order_of_its_files_with_channels_last(inner, cifar10_files):
    source = cifar10.build(os.fspath(cifar10_files / inner), holdout=20)
    parts = {
        "test": [stored(0, slice(12))],
        "train": [*(stored(f, slice(12)) for f in (1, 2, 3)), stored(4, slice(4))],
        "holdout": [stored(4, slice(4, 12)), stored(5, slice(12))],
    }
    assert set(source.splits) == set(parts)
    for name, expected in parts.items():
        split = source.split(name)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        assert np.array_equal(split.images, np.concatenate([images for images, _ in expected]))
        assert split.labels.tolist() == [label for _, labels in expected for label in labels]
    assert source.num_classes == 10


def test_cifar10_written_again_by_python3_is_read_too(cifar10_files):
    for path in (cifar10_files / "cifar-10-batches-py").iterdir():
        batch = pickle.loads(path.read_bytes(), encoding="bytes")
        assert set(batch) == {b"batch_label", b"labels", b"data"}
        again = pickle.dumps(batch, protocol=2)
        path.write_bytes(again.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    images, labels = stored(0, slice(12))
    test = cifar10.build(os.fspath(cifar10_files), holdout=20).split("test")
    assert np.array_equal(test.images, images)
    assert test.labels.tolist() == labels


@pytest.mark.parametrize("holdout", [0, -1, 60, 5000])
def test_of_cifar10_too_something_must_be_held_out_but_not_everything(holdout, cifar10_files):
    with pytest.raises(Refusal, match=rf"holdout must be in 1\.\.59, got {holdout}"):
        cifar10.build(os.fspath(cifar10_files), holdout=holdout)


def test_cifar10_that_is_not_there_is_refused_by_the_names_of_its_files(cifar10_files, tmp_path):
    with pytest.raises(Refusal, match=r"needs --data_root=DIR with cifar-10-batches-py/data_batch_1"):
        cifar10.build()
    for name in ("data_batch_3", "test_batch"):
        (cifar10_files / "cifar-10-batches-py" / name).unlink()
    with pytest.raises(Refusal, match=r"no data_batch_3, test_batch in .*python version of CIFAR-10"):
        cifar10.build(os.fspath(cifar10_files))
    with pytest.raises(Refusal, match=r"no data_batch_1, data_batch_2, .* in .*/nowhere"):
        cifar10.build(os.fspath(tmp_path / "nowhere"))


class Command:
    """Unpickled by a reader that trusts its files, it runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def rewrite(change):
    def damage(path):
        batch = pickle.loads(path.read_bytes(), encoding="bytes")
        text = pickle.dumps(change(batch) or batch, protocol=2)
        path.write_bytes(text.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))

    return damage


BAD_BATCHES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-30000]),
    "without its end": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "no pickle": lambda path: path.write_bytes(b"\x1f\x8b not a pickle"),
    "a list": rewrite(lambda batch: list(batch)),
    "without labels": rewrite(lambda batch: {b"data": batch[b"data"]}),
    "of another size": rewrite(lambda batch: batch.update({b"data": batch[b"data"][:, :-1]})),
    "of text": rewrite(lambda batch: batch.update({b"data": b"pixels"})),
}


@pytest.mark.parametrize("kind", BAD_BATCHES)
def test_a_damaged_batch_is_refused_by_name(kind, cifar10_files):
    path = cifar10_files / "cifar-10-batches-py/data_batch_2"
    BAD_BATCHES[kind](path)
    with pytest.raises(Refusal, match=re.escape(f"{path} is not a CIFAR-10 python batch")):
        cifar10.build(os.fspath(cifar10_files), holdout=20)


def test_labels_that_do_not_fit_the_images_are_refused(cifar10_files):
    path = cifar10_files / "cifar-10-batches-py/test_batch"
    rewrite(lambda batch: batch[b"labels"].__setitem__(3, 10))(path)
    with pytest.raises(Refusal, match=r"test labels must be in 0\.\.9, got 0\.\.10"):
        cifar10.build(os.fspath(cifar10_files), holdout=20)
    rewrite(lambda batch: batch.update({b"labels": batch[b"labels"][:-1]}))(path)
    with pytest.raises(Refusal, match=r"test labels must be 12 integers, got int64\(11,\)"):
        cifar10.build(os.fspath(cifar10_files), holdout=20)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_batch_that_would_run_a_command_is_refused_and_runs_nothing(protocol, cifar10_files, tmp_path):
    ran = tmp_path / "ran"
    batch = pickle.dumps({b"data": Command(f"touch {ran}"), b"labels": [1]}, protocol=protocol)
    (cifar10_files / "cifar-10-batches-py/data_batch_1").write_bytes(batch)
    with pytest.raises(Refusal, match=r"it asks for \w+\.system"):
        cifar10.build(os.fspath(cifar10_files))
    assert not ran.exists()
    pickle.loads(batch)  # the file is what it says
    assert ran.exists()


def test_a_batch_of_objects_brings_none_in(cifar10_files, tmp_path):
    objects = np.array([[Command(f"touch {tmp_path / 'ran'}")] * 3072], dtype=object)
    rewrite(lambda batch: {b"data": objects, b"labels": [0]})(
        cifar10_files / "cifar-10-batches-py/data_batch_1"
    )
    with pytest.raises(Refusal, match="something else than numbers"):
        cifar10.build(os.fspath(cifar10_files))
    assert not (tmp_path / "ran").exists()


def real_cifar10():
    if not any(path.exists() for path in (SHARED / "test_batch", SHARED / "cifar-10-batches-py")):
        pytest.skip(f"no CIFAR-10 in {SHARED}; name its folder with GIUNG2_EXT_DATA (2026-11-21)")
    return os.fspath(SHARED)


def test_the_published_cifar10_has_its_published_splits_classes_mean_and_deviation():
    source = cifar10.build(real_cifar10())
    sizes = {name: split.images.shape for name, split in source.splits.items()}
    assert sizes == {
        "train": (45000, 32, 32, 3), "holdout": (5000, 32, 32, 3), "test": (10000, 32, 32, 3)
    }  # fmt: skip
    count = {name: np.bincount(split.labels, minlength=10) for name, split in source.splits.items()}
    assert (count["test"] == 1000).all()
    assert (count["train"] + count["holdout"] == 5000).all()
    assert source.split("train").labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]  # frog, truck, …
    levels = np.arange(256) / 255
    for channel in range(3):
        pixels = [source.split(name).images[..., channel].ravel() for name in ("train", "holdout")]
        share = sum(np.bincount(p, minlength=256) for p in pixels) / (50000 * 1024)
        mean = (share * levels).sum()
        assert round(mean, 4) == source.mean[channel]
        assert round((share * (levels - mean) ** 2).sum() ** 0.5, 4) == source.std[channel]


def test_one_mean_serves_all_channels_and_one_in_the_wrong_units_is_refused(tmp_path):
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        np.save(tmp_path / f"{split}_images.npy", draw.integers(0, 256, (20, 4, 4, 3), dtype=np.uint8))
        np.save(tmp_path / f"{split}_labels.npy", draw.integers(0, 2, 20))
    options = dict(root=str(tmp_path), num_classes=2, holdout=5)
    source = discovery.build(giung2_ext.data.sources, "data source", "arrays", **options, mean=(0.4,))
    assert source.mean == (0.4, 0.4, 0.4)
    assert source.std == (1.0, 1.0, 1.0)
    for mean, told in (((127.0,), "of pixels / 255"), ((0.4, 0.4), "1 or 3 values")):
        with pytest.raises(Refusal, match=told):
            discovery.build(giung2_ext.data.sources, "data source", "arrays", **options, mean=mean)
