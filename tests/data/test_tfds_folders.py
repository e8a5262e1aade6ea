"""Folders that TFDS prepared are found, and read as TFDS and TensorFlow read them."""

import concurrent.futures
import importlib.util
import io
import json
import pickle
import shutil
import struct

import numpy as np
import pytest
from etils import epath
from PIL import Image

from giung2_ext.core.errors import Refusal
from giung2_ext.data.formats import tfds_folders, tfrecord

tfds = pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed (2026-11-21)")
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed (2026-11-21)"
)
DECODERS = {"image": tfds.decode.SkipDecoding()}
COUNTS = {"train": 23, "validation": 7}


def jpeg(i):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 9, 3), i * 9, np.uint8)).save(file, "JPEG")
    return file.getvalue()


class Small(tfds.core.GeneratorBasedBuilder):
    """As imagenet2012_real is: two kinds of labels, of which the second may be none."""

    VERSION = tfds.core.Version("2.0.0")

    def _info(self):
        labels = tfds.features.ClassLabel(num_classes=1000)
        features = dict(image=tfds.features.Image(encoding_format="jpeg"), original_label=labels)
        features |= dict(real_label=tfds.features.Sequence(labels), file_name=tfds.features.Text())
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for i in range(COUNTS[split]):
            real = list(range(980, 980 + i % 4))
            example = dict(image=io.BytesIO(jpeg(i)), original_label=500 + i, real_label=real)
            yield i, example | dict(file_name=f"{split}_é{i}.JPEG")


class Pixels(tfds.core.GeneratorBasedBuilder):
    """Images that are not files, and no names."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = dict(image=tfds.features.Tensor(shape=(4, None, 3), dtype=np.uint8))
        features |= dict(label=tfds.features.ClassLabel(num_classes=10))
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        draw = np.random.default_rng(0)
        for i in range(5):
            yield i, dict(image=draw.integers(0, 256, (4, 5 + i, 3), np.uint8), label=i)


def prepare(builder, folder, file_format):
    tfds.disable_progress_bar()
    made = builder(data_dir=folder, file_format=file_format)
    made.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    return folder


@pytest.fixture(scope="module")
def array_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("array_record")
    return prepare(Pixels, prepare(Small, root, "array_record"), "array_record")


@pytest.fixture(scope="module")
def record_root(array_root, tmp_path_factory):
    """The records of `array_root` in TFRecord shards, which TFDS describes."""
    root = tmp_path_factory.mktemp("tfrecord")
    folder = root / "small" / "2.0.0"
    folder.mkdir(parents=True)
    builder = tfds.builder_from_directory(array_root / "small" / "2.0.0")
    infos = []
    for split, info in builder.info.splits.items():
        for shard, records in zip(info.filenames, raw_shards(builder, split), strict=True):
            name = shard.replace("array_record", "tfrecord")
            (folder / name).write_bytes(b"".join(map(framed, records)))
        template = tfds.core.ShardedFileTemplate(folder, dataset_name="small", filetype_suffix="tfrecord")
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=info.shard_lengths, num_bytes=0, filename_template=template
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=builder.info.features,
        split_infos=infos,
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        check_data=False,
    )
    return root


def raw_shards(builder, split):
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    records = list(builder.as_data_source(split, deserialize_method=raw))
    ends = np.cumsum(builder.info.splits[split].shard_lengths)
    return [records[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def framed(data):
    length = struct.pack("<Q", len(data))
    sums = [tfrecord.masked_crc(np.frombuffer(each, np.uint8)[None])[0] for each in (length, data)]
    return length + struct.pack("<I", sums[0]) + data + struct.pack("<I", sums[1])


@pytest.fixture(params=["array_record", "tfrecord"])
def root(request, array_root, record_root):
    return {"array_record": array_root, "tfrecord": record_root}[request.param]


@pytest.fixture
def folder(root, tmp_path):
    """A copy to spoil."""
    return epath.Path(shutil.copytree(root / "small" / "2.0.0", tmp_path / "small" / "2.0.0"))


def read_small(folder, split="train"):
    return tfds_folders.read(folder, split, label_key="original_label", extra="real_label")


def test_a_directory_in_a_bucket_is_read_as_on_a_disk(root, object_store, bucket):
    place = object_store.put(root, bucket / "data")
    here, there = (read_small(tfds_folders.find(each, "small")) for each in (epath.Path(root), place))
    assert [there[i] for i in range(len(there))] == [here[i] for i in range(len(here))]
    assert len(here) == COUNTS["train"]


def edit(folder, **changes):
    file = folder / "dataset_info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("split", COUNTS)
def test_records_are_those_of_tfds(root, array_root, split):
    records = read_small(tfds_folders.find(root, "small"), split)
    builder = tfds.builder_from_directory(array_root / "small" / "2.0.0")
    theirs = builder.as_data_source(split, decoders=DECODERS)
    assert len(records) == len(theirs) == COUNTS[split]
    for i, their in enumerate(theirs):
        expected = their["image"], their["original_label"], their["file_name"].decode()
        assert records[i] == expected
        assert records.labels(i) == tuple(their["real_label"])
        assert (type(records[i].image), type(records[i].label)) == (bytes, int)
    seen = sorted(records[i].label - 500 for i in range(len(records)))
    assert seen == list(range(COUNTS[split]))
    assert {records[i].image for i in range(len(records))} == {jpeg(i) for i in seen}
    assert {len(records.labels(i)) for i in range(len(records))} == {0, 1, 2, 3}


@needs_tensorflow
def test_records_are_those_of_tensorflow(tmp_path):
    prepare(Small, tmp_path, "tfrecord")
    builder = tfds.builder_from_directory(tmp_path / "small" / "2.0.0")
    options = tfds.ReadConfig(interleave_cycle_length=1)
    theirs = list(builder.as_dataset("train", decoders=DECODERS, read_config=options).as_numpy_iterator())
    records = read_small(tfds_folders.find(tmp_path, "small"))
    assert len(records) == len(theirs) == 23
    for i, their in enumerate(theirs):
        assert records[i] == (their["image"], their["original_label"], their["file_name"].decode())
        assert records.labels(i) == tuple(their["real_label"])


def test_pixels_are_arrays_and_named_by_their_place(array_root):
    records = tfds_folders.read(tfds_folders.find(array_root, "pixels"), "test")
    theirs = tfds.builder_from_directory(array_root / "pixels" / "1.0.0").as_data_source("test")
    assert len(records) == 5
    for i, their in enumerate(theirs):
        image, label, name = records[i]
        assert np.array_equal(image, their["image"])
        assert (image.dtype, label, name) == (np.uint8, their["label"], f"test/{i}")


def test_a_folder_is_described(root):
    folder = tfds_folders.find(root, "small")
    file_format = "array_record" if "array_record" in str(root) else "tfrecord"
    assert tfds_folders.describe(folder) == f"tfds small/2.0.0 ({file_format})"
    assert tfds_folders.sizes(folder) == COUNTS


def test_an_old_folder_that_tells_no_format_is_tfrecord(record_root, tmp_path):
    folder = epath.Path(shutil.copytree(record_root / "small" / "2.0.0", tmp_path / "old"))
    info = json.loads((folder / "dataset_info.json").read_text())
    del info["fileFormat"]
    for split in info["splits"]:
        del split["filepathTemplate"]
    (folder / "dataset_info.json").write_text(json.dumps(info | {"configName": "plain"}))
    (folder / "features.json").unlink()
    assert tfds_folders.describe(folder) == "tfds small/plain/2.0.0 (tfrecord)"
    assert len(read_small(folder)) == 23
    assert read_small(folder)[0].image == read_small(record_root / "small" / "2.0.0")[0].image
    records = tfds_folders.read(folder, "train", extra="nonsense")
    with pytest.raises(
        Refusal, match=r"train, record 3: expected label, found file_name, image, original_label"
    ):
        records[3]
    with pytest.raises(Refusal, match=r"train, record 3: expected nonsense, found file_name"):
        records.labels(3)


def make_version(folder, name="some", variant=None, finished=True):
    folder.mkdir(parents=True)
    (folder / f"{name}-train.tfrecord-00000-of-00001").touch()
    if finished:
        info = dict(name=name, version=folder.name) | ({"configName": variant} if variant else {})
        (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def test_the_highest_finished_version_is_found(tmp_path):
    for version in ("2.0.0", "10.0.1", "9.12.3"):
        make_version(tmp_path / "some" / version)
    make_version(tmp_path / "some" / "11.0.0", finished=False)
    make_version(tmp_path / "some" / "12.0.0.incompleteABC")
    expected = tmp_path / "some" / "10.0.1"
    for root in (tmp_path, str(tmp_path), tmp_path / "some", expected):
        assert tfds_folders.find(root, "some") == expected
    for root in (tmp_path, tmp_path / "some", expected, tmp_path / "nowhere", tmp_path / "some" / "11.0.0"):
        assert tfds_folders.find(root, "other") is None
        assert tfds_folders.find(root, "some", "variant") is None
    assert tfds_folders.find(tmp_path / "some" / "11.0.0", "some") is None


def test_a_variant_is_found(tmp_path):
    folder = make_version(tmp_path / "v2" / "threshold-0.7" / "3.0.0", "v2", "threshold-0.7")
    make_version(tmp_path / "v2" / "topimages" / "3.1.0", "v2", "topimages")
    for root in (tmp_path, tmp_path / "v2", folder.parent, folder):
        assert tfds_folders.find(root, "v2", "threshold-0.7") == folder
    for root in (tmp_path, tmp_path / "v2", folder.parent, folder):
        assert tfds_folders.find(root, "v2", "matched-frequency") is None
        assert tfds_folders.find(root, "v2") is None


def test_an_unknown_split_is_refused_with_those_there_are(root):
    with pytest.raises(
        Refusal, match=r"unknown split 'valid'; known: train, validation; did you mean 'validation'"
    ):
        read_small(root / "small" / "2.0.0", "valid")


def test_unknown_features_are_refused_with_those_there_are(root):
    with pytest.raises(Refusal, match=r"'label'; known: file_name, image, original_label, real_label"):
        tfds_folders.read(root / "small" / "2.0.0", "train")
    with pytest.raises(Refusal, match=r"'real'; known: file_name.*did you mean 'real_label'"):
        tfds_folders.read(root / "small" / "2.0.0", "train", label_key="original_label", extra="real")
    records = tfds_folders.read(root / "small" / "2.0.0", "train", label_key="original_label")
    with pytest.raises(Refusal, match="extra=NAME"):
        records.labels(0)


@pytest.mark.parametrize("file_format", ["parquet", "riegeli"])
def test_other_formats_are_refused_with_those_that_are_read(folder, file_format):
    edit(folder, fileFormat=file_format)
    with pytest.raises(Refusal, match=f"stored as {file_format}, and array_record and tfrecord are read"):
        read_small(folder)


def test_a_folder_without_its_description_is_refused(folder):
    (folder / "dataset_info.json").write_text('{"name": "sm')
    with pytest.raises(Refusal, match=r"dataset_info.json is damaged"):
        read_small(folder)
    (folder / "dataset_info.json").unlink()
    with pytest.raises(Refusal, match=r"expected dataset_info.json in .*, found none"):
        read_small(folder)


def test_missing_and_spoilt_shards_are_refused(folder):
    (shard,) = folder.glob("small-train*-00001-of-00003")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-50])
    with pytest.raises(Refusal, match=r"00001-of-00003: .*fetch the file again"):
        [read_small(folder)[i] for i in range(23)]
    shard.unlink()
    with pytest.raises(Refusal, match="00001-of-00003: expected a shard, found no file"):
        read_small(folder)


def test_other_lengths_than_described_are_refused(folder):
    splits = json.loads((folder / "dataset_info.json").read_text())["splits"]
    splits[0]["shardLengths"][0] = "2"
    edit(folder, splits=splits)
    with pytest.raises(Refusal, match=r"00000-of-00003: expected 2 records, found [78]"):
        read_small(folder, splits[0]["name"])[0]


def test_spoilt_contents_of_array_record_are_refused(array_root, tmp_path):
    folder = epath.Path(shutil.copytree(array_root / "small" / "2.0.0", tmp_path / "spoilt"))
    (shard,) = folder.glob("small-train*-00000-of-00003")
    data = bytearray(shard.read_bytes())
    data[64:200] = bytes(136)
    shard.write_bytes(data)
    with pytest.raises(Refusal, match=r"00000-of-00003: .*fetch the file again"):
        read_small(folder)[0]


def test_threads_and_copies_read_what_one_reader_reads(root):
    records = read_small(root / "small" / "2.0.0")
    expected = [records[i] for i in range(len(records))]
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(23), 40)).tolist()
    copy = pickle.loads(pickle.dumps(records))
    for each in (copy, records):
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            assert list(pool.map(each.__getitem__, order)) == [expected[i] for i in order]


def test_few_files_stay_open(array_root, monkeypatch):
    records = read_small(array_root / "small" / "2.0.0")
    expected = [records[i] for i in range(23)]
    assert tfds_folders._reader.cache_info().maxsize == tfds_folders.OPEN_READERS < 1000
    tfds_folders._reader.cache_clear()
    assert [records[i] for i in range(23)] == expected
    assert tfds_folders._reader.cache_info().currsize == 3


def test_indices_beyond_the_ends_are_errors(root):
    records = read_small(root / "small" / "2.0.0")
    assert records[-1] == records[22]
    for index in (23, -24):
        with pytest.raises(IndexError):
            records[index]
