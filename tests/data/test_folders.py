"""Folders and archives give the same images, labels and order, whatever the disk lists first."""

import gzip
import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from giung2_ext.core.errors import Refusal
from giung2_ext.data import classes
from giung2_ext.data.formats import archives, folders

WNID_FILES = {
    f"{wnid}/{wnid}_{number}.JPEG": f"{wnid} {number}".encode() * number
    for wnid in (classes.WNIDS[0], classes.WNIDS[388], classes.WNIDS[999])
    for number in (1, 2, 10, 300)
}
NUMBER_FILES = {
    f"{label}/{label * 77:08x}.jpeg": b"v2" * (label + 1) for label in (0, 1, 2, 3, 10, 20, 100)
}
FLAT_FILES = {f"ILSVRC2012_val_{n:08d}.JPEG": b"%d" % n for n in (1, 2, 3, 4, 49_999, 50_000)}
CLUTTER = {"README.txt": b"read", ".DS_Store": b"x", "n01440764/._n01440764_1.JPEG": b"x"}


def write_folder(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def tar_of(files, top="", format=tarfile.GNU_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(top + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def nested_tar_of(files):
    wnids = {name.split("/")[0] for name in files}
    inner = {w: {n.split("/")[1]: data for n, data in files.items() if n.startswith(w)} for w in wnids}
    return tar_of({f"{wnid}.tar": tar_of(some) for wnid, some in inner.items()})


def zip_of(files, top="", method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.mkdir(top.rstrip("/") or "empty")
        for name, data in files.items():
            info = zipfile.ZipInfo(top + name)
            info.extra = b"\xfe\xca\x03\x00abc"  # a field of its own, as unzip's times are
            archive.writestr(info, data, method)
    return buffer.getvalue()


PACKINGS = {
    "tar": tar_of,
    "tar below a folder": lambda files: tar_of(files, "imagenet-r/"),
    "tar with long names": lambda files: tar_of(files, "very/" * 40),
    "pax tar with long names": lambda files: tar_of(files, "very/" * 40, tarfile.PAX_FORMAT),
    "tar of tars": nested_tar_of,
    "gzipped tar": lambda files: gzip.compress(tar_of(files, "./top/")),
    "deflated zip": lambda files: zip_of(files, "sketch/"),
    "stored zip": lambda files: zip_of(files, "sketch/", zipfile.ZIP_STORED),
}


def test_folders_in_a_bucket_are_read_as_on_a_disk(tmp_path, object_store, bucket):
    write_folder(tmp_path, WNID_FILES | CLUTTER)
    for place in (bucket / "val", bucket):
        there = folders.read(object_store.put(tmp_path, place), "wnid")
        assert rows(there) == rows(folders.read(tmp_path, "wnid"))


def rows(records):
    return [records[i] for i in range(len(records))]


def test_wnid_folders_give_every_image_with_its_label_and_name(tmp_path):
    records = folders.read(write_folder(tmp_path, WNID_FILES | CLUTTER), "wnid")
    assert {row.name: row.image for row in rows(records)} == WNID_FILES
    assert all(classes.WNIDS[row.label] == row.name.split("/")[0] for row in rows(records))
    assert len(records) == len(WNID_FILES)
    assert records.listing.others == len(CLUTTER)


def test_numbered_folders_are_labelled_by_value_not_by_place(tmp_path):
    records = folders.read(write_folder(tmp_path, NUMBER_FILES), "number")
    labels = {int(row.name.split("/")[0]): row.label for row in rows(records)}
    assert labels == {label: label for label in (0, 1, 2, 3, 10, 20, 100)}


@pytest.mark.parametrize("name", ["1000", "-1", "n01440764", "1.5", "٣", ""])
def test_a_folder_that_is_no_label_is_refused(name, tmp_path):
    write_folder(tmp_path, NUMBER_FILES | {f"{name}/a.jpeg".lstrip("/"): b"x"})
    with pytest.raises(Refusal, match=rf"folder '{name}' is no label: .*0 to 999 \(.*a.jpeg in "):
        folders.read(tmp_path, "number")
    (tmp_path / "a.tar").write_bytes(tar_of({f"{name}/a.jpeg".lstrip("/"): b"x"}))
    with pytest.raises(Refusal, match=rf"folder '{name}' is no label"):
        archives.read(tmp_path / "a.tar", "number")


def test_a_folder_of_another_class_is_refused_but_an_empty_one_is_passed_over(tmp_path):
    write_folder(tmp_path, WNID_FILES | {"logs/run.txt": b""})
    assert folders.read(tmp_path).listing.others == 1
    write_folder(tmp_path, {"n02084071/dog.JPEG": b""})
    with pytest.raises(Refusal, match=r"'n02084071' is none of the 1,000 .*n02084071/dog.JPEG in "):
        folders.read(tmp_path)


def test_extensions_count_in_any_case_and_other_files_do_not(tmp_path):
    names = ["a.JPEG", "b.jpg", "c.PNG", "d.Jpeg"]
    write_folder(
        tmp_path / "n01440764", dict.fromkeys([*names, "e.gif", "jpeg", ".f.jpg", "g.jpg.md5"], b"x")
    )
    records = folders.read(tmp_path)
    assert sorted(row.name for row in rows(records)) == [f"n01440764/{name}" for name in names]
    assert records.listing.others == 4


def test_the_flat_validation_folder_is_labelled_by_the_list(tmp_path):
    records = folders.read(write_folder(tmp_path, FLAT_FILES))
    labels = {row.name: classes.WNIDS[row.label] for row in rows(records)}
    assert set(labels) == set(FLAT_FILES)
    first = [labels[f"ILSVRC2012_val_{n:08d}.JPEG"] for n in (1, 2, 3)]
    assert first == ["n01751748", "n09193705", "n02105855"]  # sea snake, alp, Shetland sheepdog
    assert np.all(np.bincount(folders.validation_labels(), minlength=1000) == 50)
    with pytest.raises(Refusal, match="numbered 1 to 50000, got 50001"):
        folders.read(write_folder(tmp_path, {"ILSVRC2012_val_00050001.JPEG": b""}))


def test_the_flat_and_the_sorted_validation_set_have_one_order_and_the_same_labels(tmp_path):
    flat = folders.read(write_folder(tmp_path / "flat", FLAT_FILES))
    named = {f"{classes.WNIDS[row.label]}/{row.name}": row.image for row in rows(flat)}
    put = folders.read(write_folder(tmp_path / "sorted", named))
    assert [(row.image, row.label) for row in rows(put)] == [(row.image, row.label) for row in rows(flat)]
    (tmp_path / "val.tar").write_bytes(tar_of(FLAT_FILES))
    (tmp_path / "below.tar").write_bytes(tar_of(FLAT_FILES, "val/"))
    for name in ("val.tar", "below.tar"):
        assert rows(archives.read(tmp_path / name)) == rows(flat)


def test_the_order_is_fixed_for_all_time():
    names = [f"n{k:02d}/x_{k}.JPEG" for k in range(12)]
    order = folders.mixed_order(names, "here")
    assert order.tolist() == [9, 7, 1, 10, 3, 5, 6, 0, 4, 11, 2, 8]


def test_the_order_does_not_depend_on_what_is_listed_first(tmp_path, monkeypatch):
    write_folder(tmp_path, WNID_FILES)
    want = rows(folders.read(tmp_path))
    listed = os.listdir
    for seed in range(3):
        shuffle = np.random.default_rng(seed).permutation
        monkeypatch.setattr(os, "listdir", lambda path, shuffle=shuffle: shuffle(listed(path)).tolist())
        assert rows(folders.read(tmp_path)) == want


def test_the_order_ignores_folders_but_for_equal_names(tmp_path):
    names = [f"{label}/art_{n}.jpg" for n in range(30) for label in range(4)]
    listed = np.random.default_rng(0).permutation(names).tolist()
    mixed = [listed[i] for i in folders.mixed_order(listed, "here")]
    assert [name.split("/")[1] for name in mixed[::4]] == [name.split("/")[1] for name in mixed[3::4]]
    assert [name.split("/")[0] for name in mixed] == ["0", "1", "2", "3"] * 30
    moved = [f"other/{name.split('/')[1]}" for name in names[::4]]
    assert [moved[i].split("/")[1] for i in folders.mixed_order(moved, "here")] == [
        name.split("/")[1] for name in mixed[::4]
    ]


def test_any_stretch_of_the_order_is_a_fair_sample_of_the_classes():
    names = [f"{wnid}/{wnid}_{n}.JPEG" for wnid in classes.WNIDS[:50] for n in range(200)]
    last = folders.mixed_order(names, "here")[-2000:]
    counts = np.bincount(last // 200, minlength=50)
    assert 15 < counts.min() <= counts.max() < 70  # 40 are expected, with a deviation of 6


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_archive_gives_the_records_of_the_folder(packing, tmp_path):
    files = WNID_FILES if packing == "tar of tars" else WNID_FILES | CLUTTER
    want = folders.read(write_folder(tmp_path / "images", files))
    (tmp_path / "archive").write_bytes(PACKINGS[packing](files))
    found = archives.read(tmp_path / "archive")
    assert rows(found) == rows(want)
    assert found.listing.others == want.listing.others
    assert rows(pickle.loads(pickle.dumps(found))) == rows(want)


def test_numbered_archives_are_labelled_by_value(tmp_path):
    want = folders.read(write_folder(tmp_path / "images", NUMBER_FILES), "number")
    for name, packed in {
        "a.tar.gz": gzip.compress(tar_of(NUMBER_FILES, "top/")),
        "plain.tar.gz": tar_of(NUMBER_FILES),
    }.items():
        (tmp_path / name).write_bytes(packed)
        assert rows(archives.read(tmp_path / name, "number")) == rows(want)


def test_records_take_indices_as_lists_do_and_pickle_small(tmp_path):
    write_folder(tmp_path / "images", WNID_FILES)
    (tmp_path / "archive.tar").write_bytes(tar_of(WNID_FILES))
    for records in (folders.read(tmp_path / "images"), archives.read(tmp_path / "archive.tar")):
        assert records[-1] == records[len(records) - 1]
        assert [row.name for row in records] == [row.name for row in rows(records)]
        with pytest.raises(IndexError):
            records[len(records)]
    many = folders.pack(f"n01440764/n01440764_{n}.JPEG" for n in range(10_000))
    assert len(pickle.dumps(many)) < 45 * 10_000
    assert (many[0], many[9_999]) == ("n01440764/n01440764_0.JPEG", "n01440764/n01440764_9999.JPEG")


def test_names_survive_whatever_bytes_they_are_made_of(tmp_path):
    odd = ["café (1) _ ' .jpg", os.fsdecode(b"\xff\xfe.jpg"), "猫.jpg", "a  b.jpg"]
    write_folder(
        tmp_path / "images", {f"n01440764/{name}": name.encode("utf-8", "surrogateescape") for name in odd}
    )
    records = folders.read(tmp_path / "images")
    assert sorted(row.name for row in rows(records)) == sorted(f"n01440764/{name}" for name in odd)
    for row in records:
        assert row.name == "n01440764/" + row.image.decode("utf-8", "surrogateescape")
    files = {row.name: row.image for row in rows(records)}
    (tmp_path / "a.tar").write_bytes(tar_of(files))
    assert rows(archives.read(tmp_path / "a.tar")) == rows(records)


def test_the_one_folder_of_an_unpacked_archive_may_be_left_out(tmp_path):
    write_folder(tmp_path / "imagenet-r", WNID_FILES)
    write_folder(tmp_path / "__MACOSX", {"x": b""})
    assert rows(folders.read(tmp_path)) == rows(folders.read(tmp_path / "imagenet-r"))
    one = write_folder(tmp_path / "one", {"n01440764/a.jpg": b"a"})
    assert rows(folders.read(one))[0].label == 0


def test_nothing_is_refused_with_what_was_looked_for(tmp_path):
    write_folder(tmp_path, CLUTTER)
    with pytest.raises(
        Refusal, match=r"no images in .*\.jpeg, \.jpg, \.png .*\(n01440764\).* 3 other files"
    ):
        folders.read(tmp_path)
    with pytest.raises(Refusal, match=r"expected a folder of images, found none at .*nowhere"):
        folders.read(tmp_path / "nowhere")
    (tmp_path / "a.tar").write_bytes(tar_of(CLUTTER))
    with pytest.raises(Refusal, match=r"no images in .*a\.tar.*\(0 to 999\).* 3 other files"):
        archives.read(tmp_path / "a.tar", "number")
    with pytest.raises(Refusal, match=r"expected a folder or an archive .* found neither at .*b\.tar"):
        archives.read(tmp_path / "b.tar")
    with pytest.raises(Refusal, match="did you mean 'number'"):
        folders.read(tmp_path, "numbers")


def test_an_image_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of({"train/n01440764/a.jpg": b"1", "val/n01440764/a.jpg": b"2"}))
    with pytest.raises(Refusal, match=r"holds n01440764/a.jpg twice: give one split at a time"):
        archives.read(tmp_path / "a.tar")


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_archive_that_was_cut_short_is_refused(packing, tmp_path):
    whole = PACKINGS[packing]({name: bytes(5000) + os.urandom(5000) for name in WNID_FILES})
    (tmp_path / "archive").write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(Refusal, match=r"archive is no whole tar, tar.gz or zip \(.*\): download it again"):
        archives.read(tmp_path / "archive")
    (tmp_path / "archive").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(Refusal, match=r"no whole tar, tar.gz or zip .*: download it again"):
        archives.read(tmp_path / "archive")


@pytest.mark.parametrize("kept", [512 + 100, 2 * 512, 3 * 512])
def test_a_tar_within_a_tar_that_was_cut_short_does_not_run_into_the_next(kept, tmp_path):
    inner = {f"{wnid}.tar": tar_of({f"{wnid}_1.JPEG": bytes(900)})[:kept] for wnid in classes.WNIDS[:3]}
    (tmp_path / "a.tar").write_bytes(tar_of(inner))
    with pytest.raises(Refusal, match=r"no whole tar, tar.gz or zip \(n\d+\.tar in it is cut short\)"):
        archives.read(tmp_path / "a.tar")


def test_a_zip_that_changed_since_it_was_listed_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(zip_of(WNID_FILES))
    records = archives.read(path)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(Refusal, match="has changed or is damaged at n0"):
        rows(records)
    path.write_bytes(b"")
    with pytest.raises(Refusal, match="has changed or is damaged at n0"):
        rows(records)
