"""Sources give fixed, disjoint splits as they are stored, and refuse what they cannot read."""

import collections
import os

import numpy as np
import pytest

import giung2_ext.data.sources
from giung2_ext.core import discovery
from giung2_ext.core.errors import Refusal
from giung2_ext.data.sources import arrays, digits


def rows(split):
    return collections.Counter(
        (image.tobytes(), int(label)) for image, label in zip(split.images, split.labels, strict=True)
    )


def test_digits_are_fixed_splits_of_the_stored_file_in_its_order():
    source = digits.build()
    parts = [source.split(name) for name in ("train", "validation", "test")]
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
    with pytest.raises(Refusal, match=r"unknown split 'valid'; known: test, train, validation; did you"):
        digits.build().split("valid")


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
    train, held, test = (source.split(name) for name in ("train", "validation", "test"))
    assert np.array_equal(train.images, images[:95])
    assert np.array_equal(held.images, images[95:])
    assert np.array_equal(train.labels, labels[:95])
    assert np.array_equal(held.labels, labels[95:])
    assert np.array_equal(test.images, tests)
    assert {split.labels.dtype for split in source.splits.values()} == {np.dtype(np.int32)}
    assert isinstance(train.images, np.memmap) == (not packed)  # not read before it is needed


def test_a_validation_split_of_its_own_leaves_train_whole(image_arrays):
    for what in ("images", "labels"):
        np.save(image_arrays / f"validation_{what}.npy", np.load(image_arrays / f"test_{what}.npy")[:7])
    source = arrays.build(os.fspath(image_arrays), num_classes=3)
    assert [len(source.split(name).labels) for name in ("train", "validation", "test")] == [120, 7, 45]
    with pytest.raises(Refusal, match=r"has a validation split: .*holdout must be 0, got 5"):
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
