"""ImageNet and its shifts in the forms they come in; labels are always among the thousand."""

import pickle

import numpy as np
import pytest
from fakes import script_module

import giung2_ext.data.sources
from giung2_ext.core import discovery
from giung2_ext.core.errors import Refusal
from giung2_ext.data import preparation
from giung2_ext.data.classes import IMAGENET_A, IMAGENET_R, WNIDS
from giung2_ext.data.sources import (
    _imagenet,
    imagenet2012,
    imagenet_a,
    imagenet_c,
    imagenet_r,
    imagenet_sketch,
    imagenet_v2,
)

small_imagenet = script_module("make_imagenet")

SUBSETS = {"imagenet_r": (imagenet_r, IMAGENET_R, "R"), "imagenet_a": (imagenet_a, IMAGENET_A, "A")}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return small_imagenet.make(tmp_path_factory.mktemp("tree"), count=3)


@pytest.fixture(autouse=True)
def no_tfds_folder(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


def labels_of(records):
    return [records[i].label for i in range(len(records))]


def write_arrays(root, name, labels, size=224):
    folder = root / f"{name}_x224"
    folder.mkdir(parents=True)
    np.save(folder / "test_images.npy", np.zeros((len(labels), size, size, 3), np.uint8))
    np.save(folder / "test_labels.npy", np.asarray(labels))
    return root


@pytest.fixture(scope="module", params=SUBSETS)
def subset(request, tmp_path_factory):
    """A set of 200 classes in all three forms, one image a class."""
    name, (module, classes, letter) = request.param, SUBSETS[request.param]
    root = tmp_path_factory.mktemp(name)
    folder = root / "folders" / name.replace("_", "-")
    small_imagenet.write(folder, classes, 1, named="{wnid}")
    preparation.prepare(
        name, [str(folder)], str(root / "tfds"), allow_incomplete=True, say=lambda line: None
    )
    write_arrays(root / "arrays", f"ImageNet{letter}", np.arange(200), size=8)
    return root, module, classes


@pytest.mark.parametrize("form", ["folders", "tfds", "arrays"])
def test_all_200_classes_have_their_label_among_the_thousand_in_every_form(subset, form):
    root, module, classes = subset
    source = module.build(str(root / form), image_size=8)
    records = source.split("test")
    found = labels_of(records)
    assert sorted(found) == list(classes)
    assert source.classes == classes
    assert source.num_classes == 1000
    for i, label in enumerate(found):
        if form == "folders":
            assert records[i].name.split("/")[0] == WNIDS[label]
        elif form == "arrays":  # 0..199 there, in the order of the wnids
            assert label == classes[i]
        else:
            assert records[i].name.startswith(WNIDS[label]) or WNIDS[label] in records[i].name


def test_v2_folders_are_numbers_and_not_read_in_string_order(tmp_path):
    labels = [2, 10, 1, 100, 99, 0, 999]
    small_imagenet.write(tmp_path / small_imagenet.V2, labels, 1, named="{label}")
    records = imagenet_v2.build(str(tmp_path)).split("test")
    found = {records[i].name.split("/")[1].split("_")[0]: records[i].label for i in range(len(records))}
    assert found == {WNIDS[label]: label for label in labels}


def test_the_variants_of_v2_are_sets_of_their_own(tmp_path):
    for number, folder in enumerate(imagenet_v2.VARIANTS.values()):
        small_imagenet.write(tmp_path / folder, [number], 1, named="{label}")
    for number, variant in enumerate(imagenet_v2.VARIANTS):
        assert labels_of(imagenet_v2.build(str(tmp_path), variant=variant).split("test")) == [number]
    with pytest.raises(Refusal, match="did you mean 'topimages'"):
        imagenet_v2.build(str(tmp_path), variant="top-images")


def test_train_holdout_and_test_share_no_image_and_the_holdout_is_a_mixture_of_classes(tree):
    source = imagenet2012.build(str(tree), holdout=20)
    names = [
        {source.split(s)[i].name for i in range(len(source.split(s)))} for s in ("train", "holdout", "test")
    ]
    assert [len(n) for n in names] == [40, 20, 80]
    assert len(set.union(*names)) == 140
    assert len({name.split("/")[0] for name in names[1]}) > 8  # the last 20 by name are of 7 classes


def test_validation_is_what_the_sets_authors_call_the_test_split(tree):
    source = imagenet2012.build(str(tree), holdout=5)
    assert source.canonical("validation") == "test"
    assert source.split("validation") is source.split("test")


def test_without_a_holdout_all_is_trained_on_and_choosing_on_it_is_refused(tree):
    source = imagenet2012.build(str(tree), holdout=0)
    assert len(source.split("train")) == 60
    with pytest.raises(Refusal, match="--select_on=validation"):
        source.split("holdout")
    with pytest.raises(Refusal, match=r"config.data.holdout must be in 0..59, got 60"):
        imagenet2012.build(str(tree), holdout=60)


def test_arrays_are_mapped_and_never_copied_whole_not_even_to_another_process(tmp_path):
    write_arrays(tmp_path, "ImageNetSketch", [3, 999, 5])
    records = imagenet_sketch.build(str(tmp_path)).split("test")
    assert labels_of(records) == [3, 999, 5]
    assert isinstance(records._images, np.memmap)
    sent = pickle.dumps(records)
    assert len(sent) < 20_000
    assert labels_of(pickle.loads(sent)) == [3, 999, 5]
    assert isinstance(pickle.loads(sent)._images, np.memmap)


def test_arrays_are_taken_as_they_are_and_must_have_the_networks_size(tmp_path):
    write_arrays(tmp_path, "ImageNetSketch", [3, 999, 5])
    source = imagenet_sketch.build(str(tmp_path), pipeline="tf")
    assert source.pipeline("test") == "stored"
    with pytest.raises(Refusal, match=r"its images are \(224, 224\), the network's 32"):
        imagenet_sketch.build(str(tmp_path), image_size=32)


ARRAYS = {
    "test_labels.npy must be 3 integers": (np.zeros((3, 4, 4, 3), np.uint8), np.zeros(4, int)),
    "test_labels.npy must be in 0..199, got 0..200": (np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 200])),
    "must be uint8": (np.zeros((3, 4, 4, 3), np.float32), np.zeros(3, int)),
    "must be uint8 ": (np.zeros((3, 4, 4), np.uint8), np.zeros(3, int)),
}


@pytest.mark.parametrize("message", ARRAYS)
def test_arrays_that_are_no_images_with_labels_are_refused(tmp_path, message):
    images, labels = ARRAYS[message]
    folder = tmp_path / "ImageNetR_x224"
    folder.mkdir()
    np.save(folder / "test_images.npy", images)
    with pytest.raises(Refusal, match="only one of"):
        imagenet_r.build(str(tmp_path), image_size=4)
    np.save(folder / "test_labels.npy", labels)
    with pytest.raises(Refusal, match=message.strip()):
        imagenet_r.build(str(tmp_path), image_size=4)


def test_the_forms_are_tried_in_order_and_one_can_be_named(subset):
    root, module, _ = subset
    everything = root / "all"
    if not everything.exists():
        everything.mkdir()
        for form in ("folders", "tfds", "arrays"):
            for entry in (root / form).iterdir():
                (everything / entry.name).symlink_to(entry)
    about = {
        form: module.build(str(everything), image_size=8, form=form).about["test"]
        for form in ("auto", "tfds", "folders", "arrays")
    }
    assert about["auto"] == about["tfds"]
    assert "tfds imagenet_" in about["tfds"]
    assert "prepared at original size" in about["tfds"]
    assert "200 images (the whole set has " in about["folders"]
    assert f"arrays in {everything}" in about["arrays"]
    with pytest.raises(Refusal, match="known: arrays, auto, folders, tfds"):
        module.build(str(everything), form="tar")


def test_a_set_is_also_looked_for_where_tfds_keeps_its_data(subset, monkeypatch, tmp_path):
    root, module, classes = subset
    monkeypatch.setenv("TFDS_DATA_DIR", str(root / "tfds"))
    for data_root in (None, str(tmp_path)):
        assert len(module.build(data_root).split("test")) == len(classes)


def test_what_is_missing_is_said_with_the_places_and_the_command_that_makes_it(tmp_path):
    with pytest.raises(Refusal, match="needs --data_root=DIR, or "):
        imagenet_r.build()
    with pytest.raises(Refusal) as error:
        imagenet_r.build(str(tmp_path))
    for part in (
        str(tmp_path),
        "imagenet_r/VERSION",
        "imagenet-r/",
        "ImageNetR_x224",
        "scripts/prepare.py",
    ):
        assert part in str(error.value)


def test_arrays_alone_serve_to_test_on_and_training_on_them_says_what_is_missing(tmp_path):
    write_arrays(tmp_path, "ImageNet", [5, 6])
    assert labels_of(imagenet2012.build(str(tmp_path), splits=("test",)).split("test")) == [5, 6]
    with pytest.raises(Refusal, match="no train split of imagenet2012"):
        imagenet2012.build(str(tmp_path))


def test_a_set_that_was_prepared_in_part_serves_for_what_is_there(tree, tmp_path):
    places = [str(tree / "val")]
    preparation.prepare("imagenet2012", places, tmp_path, allow_incomplete=True, say=lambda line: None)
    assert len(imagenet2012.build(str(tmp_path), splits=("test",)).split("test")) == 80
    with pytest.raises(Refusal, match="no train split of imagenet2012"):
        imagenet2012.build(str(tmp_path))


def test_corrupted_images_are_found_by_variant_and_taken_as_they_are(tmp_path):
    for severity in (1, 2):
        small_imagenet.write(tmp_path / f"imagenet-c/fog/{severity}", [1, severity + 5], 1)
    there = [v for v in imagenet_c.VARIANTS if _imagenet.is_there(imagenet_c.wanted(v), str(tmp_path))]
    assert there == ["fog_1", "fog_2"]
    source = imagenet_c.build(str(tmp_path), variant="fog_2")
    assert sorted(labels_of(source.split("test"))) == [1, 7]
    assert source.pipeline("test") == "stored"
    with pytest.raises(Refusal, match="did you mean 'fog_1'"):
        imagenet_c.build(str(tmp_path), variant="fog1")
    with pytest.raises(Refusal, match="needs a variant, as in imagenet_c/gaussian_noise_1"):
        imagenet_c.build(str(tmp_path))


def test_the_forms_of_a_set_hold_the_same_images_under_the_same_identities(subset):
    from giung2_ext.data.streaming import identity

    root, module, _ = subset
    ids = [
        {tuple(identity(records[i])) for i in range(200)}
        for records in (module.build(str(root / form)).split("test") for form in ("folders", "tfds"))
    ]
    assert ids[0] == ids[1]


STREAMED = [n for n in discovery.names(giung2_ext.data.sources) if n.startswith("imagenet")]


@pytest.mark.parametrize("name", STREAMED)
def test_every_source_of_the_family_is_streamed_and_names_what_prepares_it(name, tmp_path):
    module = __import__(f"giung2_ext.data.sources.{name}", fromlist=["build"])
    assert module.STREAMED
    options = {"variant": "fog_1"} if name == "imagenet_c" else {}
    with pytest.raises(Refusal, match="Prepare it with: "):
        module.build(str(tmp_path), **options)
