"""TFRecord and Example, as TensorFlow writes them, are read as it reads them."""

import concurrent.futures
import os
import pathlib
import pickle
import random
import re
import struct

import numpy as np
import pytest
from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.data.formats import tfrecord
from giung2_ext.data.formats.example import make_example, parse_example

# Written by TensorFlow 2.21: a tf.io.TFRecordWriter wrote example(i).SerializeToString(deterministic=True)
# for i in range(7), where example(i) is the tf.train.Example of golden_example(i): Int64List for label and
# labels, FloatList for scores, BytesList for image and words, Feature() for nothing.
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tensorflow.tfrecord"


def golden_example(i):
    return {
        "image": [bytes([i, 255, 0]) * 100 * i],
        "label": [300 * i - 300],
        "labels": [-(2**63), -1, 0, 127, 128, 2**63 - 1][:i],
        "nothing": [],
        "scores": struct.unpack("<3f", struct.pack("<3f", 0.5, -2.0, 1e30))[:i],
        "words": [b"", "é".encode(), b"n01440764"][:i],
    }


def framed(data):
    length = struct.pack("<Q", len(data))
    return length + checksum(length) + data + checksum(data)


def checksum(data):
    return struct.pack("<I", tfrecord.masked_crc(np.frombuffer(data, np.uint8)[None])[0])


def write_shards(folder, counts, seed=0):
    """Shards of random records, and those records."""
    draw = random.Random(seed)
    records = [[draw.randbytes(draw.randrange(20, 400)) for _ in range(count)] for count in counts]
    shards = [
        epath.Path(folder) / f"x-train.tfrecord-{i:05}-of-{len(counts):05}" for i in range(len(counts))
    ]
    for shard, data in zip(shards, records, strict=True):
        shard.write_bytes(b"".join(map(framed, data)))
    return shards, [record for data in records for record in data]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "giung2_ext"


@pytest.fixture
def folder(tmp_path, cache):
    (tmp_path / "shards").mkdir()
    return tmp_path / "shards"


def test_what_tensorflow_wrote_is_read(folder):
    shard = epath.Path(folder / "golden.tfrecord")
    shard.write_bytes(GOLDEN.read_bytes())
    records = tfrecord.read([shard], "train")
    assert len(records) == 7
    for i, record in enumerate(records):
        read = parse_example(record)
        assert {key: list(values) for key, values in golden_example(i).items()} == read


def test_sums_are_those_of_tensorflow():
    data = GOLDEN.read_bytes()
    starts = [0]
    while starts[-1] < len(data):
        start = starts[-1]
        end = start + 16 + struct.unpack_from("<Q", data, start)[0]
        assert framed(data[start + 12 : end - 4]) == data[start:end]
        starts.append(end)
    assert starts[-1] == len(data)
    # RFC 3720, B.4: the CRC-32C of 32 zeros, masked as TensorFlow does
    crc = 0x8A9136AA
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFF_FFFF
    assert checksum(bytes(32)) == struct.pack("<I", masked)


def test_tensorflow_reads_the_same_records(folder):
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed (2026-11-21)")
    draw = random.Random(1)
    expected = [[draw.randbytes(draw.randrange(9000)) for _ in range(50)] for _ in range(3)]
    shards = [epath.Path(folder) / f"s{i}" for i in range(3)]
    for shard, data in zip(shards, expected, strict=True):
        with tf.io.TFRecordWriter(str(shard)) as writer:
            for record in data:
                writer.write(record)
    theirs = [record.numpy() for record in tf.data.TFRecordDataset([str(shard) for shard in shards])]
    assert (
        list(tfrecord.read(shards, "train", [50] * 3))
        == theirs
        == [*expected[0], *expected[1], *expected[2]]
    )


def test_tensorflow_makes_and_reads_the_same_examples():
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed (2026-11-21)")
    draw, train = random.Random(2), tf.train

    def theirs(value):
        if isinstance(value, bytes):
            return train.Feature(bytes_list=train.BytesList(value=[value]))
        return train.Feature(
            int64_list=train.Int64List(value=value if isinstance(value, list) else [value])
        )

    for _ in range(200):
        features = random_features(draw)
        entries = {key: theirs(value) for key, value in features.items()}
        example, made = (
            train.Example(features=train.Features(feature=entries)),
            make_example(features),
        )
        assert train.Example.FromString(made) == example
        assert len(made) == len(example.SerializeToString())
        assert parse_example(example.SerializeToString()) == parse_example(made)


def random_features(draw):
    def integer():
        return draw.randrange(-(2**63), 2**63) >> draw.randrange(64)

    makers = [
        lambda: draw.randbytes(draw.choice([0, 1, 127, 128, 20_000])),
        integer,
        lambda: [integer() for _ in range(draw.choice([0, 1, 2, 200]))],
    ]
    keys = ["".join(draw.choices("abé/_ü日", k=draw.randrange(1, 9))) for _ in range(draw.randrange(6))]
    return {key: draw.choice(makers)() for key in keys}


def test_examples_come_back_as_they_were_made():
    draw = random.Random(0)
    for _ in range(300):
        features = random_features(draw)
        read = parse_example(make_example(features))
        assert list(read) == sorted(features)
        assert read == {key: list(v) if isinstance(v, list) else [v] for key, v in features.items()}


def test_the_order_of_keys_does_not_change_an_example():
    made = [make_example(dict(pairs)) for pairs in ([("a", 1), ("b", b"x")], [("b", b"x"), ("a", 1)])]
    assert made[0] == made[1]
    assert make_example({"a": np.int32(5)}) == make_example({"a": np.array([5])})


@pytest.mark.parametrize(
    ("value", "error"), [("text", TypeError), (1.5, TypeError), ([0.5], TypeError), (2**63, ValueError)]
)
def test_only_bytes_and_integers_are_made(value, error):
    with pytest.raises(error):
        make_example({"a": value})


def chunk(number, content):
    length = len(content)  # always as two bytes, which is allowed
    return bytes([number << 3 | 2, length & 0x7F | 0x80, length >> 7]) + content


def example_of(feature):
    return chunk(1, chunk(1, chunk(1, b"k") + chunk(2, feature)))


def test_numbers_are_read_packed_and_one_by_one():
    minus_two = b"\xfe" + b"\xff" * 8 + b"\x01"
    single = b"\x08\x05\x08\xac\x02\x08" + minus_two
    packed = chunk(1, b"\x05\xac\x02" + minus_two)
    for ints in (single, packed):
        assert parse_example(example_of(chunk(3, ints))) == {"k": [5, 300, -2]}
    assert parse_example(example_of(chunk(3, single + packed))) == {"k": [5, 300, -2] * 2}
    halves = struct.pack("<2f", 0.5, -1.5)
    for floats in (chunk(1, halves), b"\x0d" + halves[:4] + b"\x0d" + halves[4:]):
        assert parse_example(example_of(chunk(2, floats))) == {"k": [0.5, -1.5]}


def test_lists_of_one_feature_are_joined_and_the_last_kind_counts():
    ints, words = chunk(3, chunk(1, b"\x07")), chunk(1, chunk(1, b"seven"))
    assert parse_example(example_of(ints + ints)) == {"k": [7, 7]}
    assert parse_example(example_of(words + ints)) == {"k": [7]}
    assert parse_example(example_of(ints + words + words)) == {"k": [b"seven"] * 2}


def test_unknown_fields_are_skipped():
    unknown = b"\x78\x96\x01" + b"\x79" + bytes(8) + chunk(15, b"new") + b"\x7d" + bytes(4)
    ints = chunk(3, unknown + chunk(1, b"\x07") + unknown)
    entry = unknown + chunk(1, b"k") + chunk(2, unknown + ints) + unknown
    data = unknown + chunk(1, unknown + chunk(1, entry) + unknown) + unknown
    assert parse_example(data) == {"k": [7]}
    number = b"\x08\x05"  # field 1, but not of the type that field 1 has
    entry = chunk(1, b"k") + number + chunk(2, ints + b"\x18\x05")
    assert parse_example(chunk(1, chunk(1, entry) + number) + number) == {"k": [7]}


def test_cut_examples_are_errors_or_lack_something():
    whole = make_example({"image": bytes(300), "label": -3, "labels": [1, 300]})
    for end in range(1, len(whole)):
        with pytest.raises(ValueError, match="not an Example"):
            parse_example(whole[:end])


@pytest.mark.parametrize(
    "data",
    [
        b"\x0b",  # a group
        b"\x02\x00",  # field 0
        b"\x0a" + b"\xff" * 11,  # a number without end
        example_of(chunk(2, chunk(1, b"123"))),  # three bytes of float32
        chunk(1, chunk(1, chunk(1, b"\xff") + chunk(2, b""))),  # a key that is not UTF-8
    ],
)
def test_damaged_examples_are_errors(data):
    with pytest.raises(ValueError, match=r"not an Example|codec can't decode"):
        parse_example(data)


def test_noise_is_an_example_or_a_value_error():
    draw = random.Random(3)
    whole = bytearray(make_example({"image": b"x" * 50, "label": 3, "labels": [1, -1]}))
    errors = 0
    for _ in range(2000):
        data = bytearray(whole)
        data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            parse_example(bytes(data))
        except ValueError:
            errors += 1
    assert 100 < errors < 2000


def test_records_of_all_shards_are_in_order_and_sliced_nowhere(folder):
    shards, expected = write_shards(folder, [5, 0, 17, 1])
    records = tfrecord.read(shards, "train", [5, 0, 17, 1])
    assert len(records) == 23
    assert list(records) == expected
    assert records[-1] == expected[-1]
    with pytest.raises(IndexError):
        records[23]


def test_large_blocks_give_the_index_that_small_reads_give(folder, monkeypatch):
    shards, _ = write_shards(folder, [40])
    size = os.path.getsize(shards[0])
    small = b"".join(tfrecord._headers(shards[0], size))
    for block in (13, 1000, 1 << 20):
        monkeypatch.setattr(tfrecord, "HEADER_READ", block)
        assert b"".join(tfrecord._headers(shards[0], size)) == small
    assert len(small) == 40 * 12


def test_the_index_is_built_once_and_said(folder, cache):
    shards, expected = write_shards(folder, [5, 6])
    said = []
    tfrecord.read(shards, "train", say=said.append)
    assert [line.split(" in ")[0] for line in said] == ["indexing 2 shards of train"]
    assert [path.name for path in folder.iterdir() if "index" in path.name] == [".index-train.npz"]
    assert list(tfrecord.read(shards, "train", say=said.append)) == expected
    assert len(said) == 1
    assert not cache.exists()


def test_the_index_is_rebuilt_when_a_shard_changes(folder):
    shards, _ = write_shards(folder, [5, 6])
    tfrecord.read(shards, "train")
    shards, expected = write_shards(folder, [6, 5], seed=1)
    said = []
    assert list(tfrecord.read(shards, "train", say=said.append)) == expected
    renamed = [shards[0], shards[1].rename(folder / "other")]
    assert list(tfrecord.read(renamed, "train", say=said.append)) == expected
    assert len(said) == 2
    assert list(tfrecord.read(renamed[:1], "train", say=said.append)) == expected[:6]
    assert len(said) == 3


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-30], lambda data: b"", lambda data: b"x" * len(data)]
)
def test_a_damaged_index_is_rebuilt(folder, damage):
    shards, expected = write_shards(folder, [5, 6])
    tfrecord.read(shards, "train")
    index = folder / ".index-train.npz"
    index.write_bytes(damage(index.read_bytes()))
    said = []
    assert list(tfrecord.read(shards, "train", say=said.append)) == expected
    assert len(said) == 1


def test_an_index_that_does_not_fill_its_shards_is_rebuilt(folder):
    shards, expected = write_shards(folder, [5, 6])
    tfrecord.read(shards, "train")
    with np.load(folder / ".index-train.npz") as stored:
        fields = dict(stored)
    for wrong in ({"lengths": fields["lengths"][::-1] + 1}, {"counts": fields["counts"] + 1}):
        np.savez(folder / ".index-train.npz", **fields | wrong)
        assert list(tfrecord.read(shards, "train")) == expected


def test_the_index_goes_to_the_cache_when_the_folder_cannot_be_written(folder, cache):
    shards, expected = write_shards(folder, [5, 6])
    (folder / ".index-train.npz").mkdir()  # binds root too, whom permissions do not
    said = []
    for _ in range(2):
        assert list(tfrecord.read(shards, "train", say=said.append)) == expected
    assert [line.split()[0] for line in said] == ["indexing", "cannot"]
    (kept,) = cache.iterdir()
    assert re.fullmatch(r"index-shards-[0-9a-f]{16}-train\.npz", kept.name)
    assert sorted(path.name for path in folder.iterdir()) == [".index-train.npz", *(s.name for s in shards)]


def test_records_are_read_where_no_index_can_be_kept(folder, cache):
    shards, expected = write_shards(folder, [5])
    (folder / ".index-train.npz").mkdir()
    cache.parent.write_text("in the way of the folder")
    said = []
    assert list(tfrecord.read(shards, "train", say=said.append)) == expected
    assert [line.split()[0] for line in said] == ["indexing", "cannot", "cannot"]


@pytest.mark.parametrize("cut", [1, 4, 100, 500])
def test_a_truncated_shard_is_refused_with_its_byte(folder, cut):
    shards, records = write_shards(folder, [3, 4])
    size = os.path.getsize(shards[1])
    os.truncate(shards[1], size - cut)
    ends = np.cumsum([16 + len(record) for record in records[3:]])
    start = max(end for end in [0, *ends] if end <= size - cut)
    said = re.escape(f"{shards[1]}: the record at byte {start} is cut off")
    with pytest.raises(Refusal, match=said):
        tfrecord.read(shards, "train")


def test_a_damaged_length_is_refused_with_its_byte(folder):
    shards, records = write_shards(folder, [3])
    data = bytearray(shards[0].read_bytes())
    second = 16 + len(records[0])
    data[second] ^= 1
    shards[0].write_bytes(data)
    with pytest.raises(Refusal, match=rf"expected a record at byte {second}, found none"):
        tfrecord.read(shards, "train")
    shards[0].write_bytes(b"not a record at all")
    with pytest.raises(Refusal, match=r"expected a record at byte 0, found none"):
        tfrecord.read(shards, "train")


def test_other_counts_and_missing_shards_are_refused(folder):
    shards, _ = write_shards(folder, [3, 4])
    for _ in range(2):  # also when the index is there
        with pytest.raises(Refusal, match=r"00001-of-00002: expected 5 records, found 4"):
            tfrecord.read(shards, "train", [3, 5])
    shards[1].unlink()
    with pytest.raises(Refusal, match=r"00001-of-00002: expected a shard, found no file"):
        tfrecord.read(shards, "train")
    with pytest.raises(Refusal, match=r"expected shards of train, found none"):
        tfrecord.read([], "train")


def test_a_shard_that_changes_under_its_reader_is_refused(folder):
    shards, expected = write_shards(folder, [3])
    records = tfrecord.read(shards, "train")
    whole = shards[0].read_bytes()
    os.truncate(shards[0], len(whole) - 10)
    assert records[0] == expected[0]
    with pytest.raises(Refusal, match="changed since it was indexed"):
        records[2]
    shards[0].write_bytes(bytes(len(whole)))
    with pytest.raises(Refusal, match="changed since it was indexed"):
        records[0]


def test_threads_and_copies_read_what_one_reader_reads(folder):
    shards, expected = write_shards(folder, [60] * 10)
    records = tfrecord.read(shards, "train")
    order = np.random.default_rng(0).permutation(600).tolist() * 3
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(records.__getitem__, order)) == [expected[i] for i in order]
    copy = pickle.loads(pickle.dumps(records))
    assert list(copy) == expected


def test_no_file_stays_open(folder):
    shards, _ = write_shards(folder, [2] * 20)
    before = len(os.listdir("/proc/self/fd"))
    records = tfrecord.read(shards, "train")
    assert len(list(records)) == 40
    assert len(os.listdir("/proc/self/fd")) <= before
