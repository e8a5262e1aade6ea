"""TFRecord shards read in place, record by record in any order, without TensorFlow.

A record is its length (uint64, little endian), the masked CRC-32C of those 8 bytes, the data, and the
masked CRC-32C of the data. An index of all records is built once by reading the lengths, and kept beside
the shards or, if that cannot be written, in `${XDG_CACHE_HOME:-~/.cache}/giung2_ext`. Lengths are checked
by their sums, shards by their sizes. Data is not checked by its sum, which would take longer than decoding
it: a decoder sees a truncated image.
"""

import hashlib
import os
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from etils import epath

from giung2_ext.core.errors import Refusal

HEADER, FOOTER = 12, 4  # bytes around the data
THREADS = 16
HEADER_READ = HEADER
REMOTE_READ = 16 << 20  # bytes; a store answers one large read faster than many small ones


def _crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    return table


TABLE = _crc_table()


def masked_crc(rows: np.ndarray) -> np.ndarray:
    """The masked CRC-32C of each row of bytes."""
    crc = np.full(len(rows), 0xFFFFFFFF, np.uint32)
    for column in rows.T:
        crc = TABLE[(crc ^ column) & 0xFF] ^ (crc >> 8)
    crc = ~crc
    return ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)


class RawRecords:
    """The records of the shards, in order. A file is open only while it is read from."""

    def __init__(self, shards: Sequence[epath.Path], counts: np.ndarray, lengths: np.ndarray):
        self.shards = tuple(shards)
        self.firsts = np.concatenate([[0], np.cumsum(counts)])  # of each shard; at last, of all records
        self.lengths = lengths
        ends = np.concatenate([[0], np.cumsum(lengths + HEADER + FOOTER)])
        self.offsets = ends[:-1] - np.repeat(ends[self.firsts[:-1]], counts)  # of records in their shards

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> bytes:
        index = range(len(self))[index]
        shard = self.shards[np.searchsorted(self.firsts, index, side="right") - 1]
        offset, length = int(self.offsets[index]), int(self.lengths[index])
        with shard.open("rb") as file:
            file.seek(offset)
            header = file.read(HEADER)
            data = file.read(length)
        if int.from_bytes(header[:8], "little") != length or len(data) != length:
            raise Refusal(
                f"{shard}: expected a record of {length} bytes at byte {offset}, found another; "
                "the file has changed since it was indexed: start again, or fetch it again"
            )
        return data


def read(
    shards: Sequence[epath.Path],
    split: str,
    counts: Sequence[int] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> RawRecords:
    """The records of a split's shards, all in one folder; `counts` are those expected of each shard."""
    if not shards:
        raise Refusal(f"expected shards of {split}, found none: fetch them, or name another split")
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = np.array(list(pool.map(_size, shards)), np.int64)
    places = _places(shards[0].parent, split)
    index = next((index for place in places if (index := _load(place, shards, sizes)) is not None), None)
    if index is None:
        say(f"indexing {len(shards)} shards of {split} in {shards[0].parent}; this happens once")
        with ThreadPoolExecutor(THREADS) as pool:
            lengths = list(pool.map(_lengths, shards, sizes.tolist()))
        index = Index(np.array([len(each) for each in lengths]), np.concatenate(lengths))
        _keep(index, places, shards, sizes, say)
    for shard, found, expected in zip(
        shards, index.counts, index.counts if counts is None else counts, strict=True
    ):
        if found != expected:
            raise Refusal(f"{shard}: expected {expected} records, found {found}: fetch the file again")
    return RawRecords(shards, *index)


class Index(NamedTuple):
    counts: np.ndarray  # of each shard's records
    lengths: np.ndarray  # of each record's data, in bytes


def _size(shard: epath.Path) -> int:
    try:
        return shard.stat().length
    except FileNotFoundError:
        raise Refusal(f"{shard}: expected a shard, found no file: fetch what is missing") from None


def _lengths(shard: epath.Path, size: int) -> np.ndarray:
    """The lengths of a shard's records, checked."""
    headers = np.frombuffer(b"".join(_headers(shard, size)), np.uint8)
    whole = len(headers) // HEADER
    rows = headers[: whole * HEADER].reshape(-1, HEADER)
    lengths = np.ascontiguousarray(rows[:, :8]).view("<u8")[:, 0].astype(np.int64)
    starts = np.cumsum(np.concatenate([[0], lengths + HEADER + FOOTER]))
    bad = np.flatnonzero(np.ascontiguousarray(rows[:, 8:]).view("<u4")[:, 0] != masked_crc(rows[:, :8]))
    if bad.size:
        raise Refusal(
            f"{shard}: expected a record at byte {starts[bad[0]]}, found none: fetch the file again"
        )
    if starts[-1] != size:
        last = starts[-1] if starts[-1] < size else starts[-2]
        raise Refusal(
            f"{shard}: the record at byte {last} is cut off by the end of the file at byte {size}: "
            "fetch the file again"
        )
    return lengths


def _headers(shard: epath.Path, size: int) -> Iterator[bytes]:
    span = REMOTE_READ if "://" in os.fspath(shard) else HEADER_READ
    with shard.open("rb") as file:
        offset, start, block = 0, 0, b""
        while offset < size:
            if offset + HEADER > start + len(block):
                file.seek(offset)
                start, block = offset, file.read(span)
            header = block[offset - start : offset - start + HEADER]
            yield header
            offset += HEADER + int.from_bytes(header[:8], "little") + FOOTER


def _places(folder: epath.Path, split: str) -> tuple[epath.Path, epath.Path]:
    """Where the index may lie: beside the shards, and in the user's cache."""
    path = os.fspath(folder)
    path = path if "://" in path else os.path.abspath(path)
    cache = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "giung2_ext"
    digest = hashlib.sha256(path.encode()).hexdigest()[:16]
    return folder / f".index-{split}.npz", cache / f"index-{folder.name}-{digest}-{split}.npz"


def _load(place: epath.Path, shards: Sequence[epath.Path], sizes: np.ndarray) -> Index | None:
    """The index at that place if it is of these very shards."""
    try:
        with place.open("rb") as file, np.load(file) as stored:
            names, index = stored["names"], Index(stored["counts"], stored["lengths"])
            same = names.tolist() == [shard.name for shard in shards] and np.array_equal(
                stored["sizes"], sizes
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if not same or len(index.counts) != len(sizes) or index.counts.sum() != len(index.lengths):
        return None
    ends = np.concatenate([[0], np.cumsum(index.lengths + HEADER + FOOTER)])[np.cumsum(index.counts)]
    return index if np.array_equal(ends, np.cumsum(sizes)) else None


def _keep(
    index: Index,
    places: Sequence[epath.Path],
    shards: Sequence[epath.Path],
    sizes: np.ndarray,
    say: Callable[[str], None],
) -> None:
    for place in places:
        new = place.parent / f"{place.name}.{uuid.uuid4().hex}"
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with new.open("wb") as file:
                np.savez(file, names=[shard.name for shard in shards], sizes=sizes, **index._asdict())
            new.replace(place)
        except Exception as error:  # remote stores have errors of their own, and the index is a convenience
            say(f"cannot keep the index as {place}: {error}")
            if new.exists():
                new.unlink()
        else:
            return
