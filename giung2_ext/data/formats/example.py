"""`tf.train.Example`, the protocol buffer that records of TFDS are, read and written without TensorFlow."""

import operator
import struct
from collections.abc import Iterator, Mapping, Sequence

VARINT, FIXED64, CHUNK, FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers
BYTES, FLOATS, INTS = 1, 2, 3  # fields of a Feature


def parse_example(data: bytes) -> dict[str, list[bytes] | list[int] | list[float]]:
    """The features of a serialised `tf.train.Example`; a ValueError if it is not one."""
    maps = [span for number, *span in _chunks(data, 0, len(data)) if number == 1]
    entries = [span for each in maps for number, *span in _chunks(data, *each) if number == 1]
    return dict(_entry(data, *span) for span in entries)


def _entry(data: bytes, start: int, end: int) -> tuple[str, list]:
    key, values = "", []
    for number, first, last in _chunks(data, start, end):
        if number == 1:
            key = data[first:last].decode()
        elif number == 2:
            values = _feature(data, first, last)
    return key, values


def _feature(data: bytes, start: int, end: int) -> list:
    kind, values = 0, []
    for number, first, last in _chunks(data, start, end):
        if number in READERS:
            found = READERS[number](data, first, last)
            kind, values = number, values + found if number == kind else found
    return values


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Field number, wire type, and where the content starts and ends."""
    while start < end:
        tag, start = _varint(data, start, end)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            stop = _varint(data, start, end)[1]
        elif wire == CHUNK:
            length, start = _varint(data, start, end)
            stop = start + length
        elif wire in (FIXED64, FIXED32):
            stop = start + (8 if wire == FIXED64 else 4)
        else:
            raise ValueError(f"not an Example: wire type {wire} before byte {start}")
        if number == 0 or stop > end:
            raise ValueError(f"not an Example: field {number} runs from byte {start} to {stop} of {end}")
        yield number, wire, start, stop
        start = stop


def _chunks(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    return ((n, first, last) for n, wire, first, last in _fields(data, start, end) if wire == CHUNK)


def _varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    value = 0
    for i in range(min(10, end - start)):
        byte = data[start + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, start + i + 1
    raise ValueError(f"not an Example: a number at byte {start} does not end")


def _bytes(data: bytes, start: int, end: int) -> list[bytes]:
    return [data[first:last] for number, first, last in _chunks(data, start, end) if number == 1]


def _floats(data: bytes, start: int, end: int) -> list[float]:
    values = []
    for number, wire, first, last in _fields(data, start, end):
        if number == 1 and wire in (CHUNK, FIXED32):
            if (last - first) % 4:
                raise ValueError(f"not an Example: {last - first} bytes of float32 at byte {first}")
            values += struct.unpack(f"<{(last - first) // 4}f", data[first:last])
    return values


def _ints(data: bytes, start: int, end: int) -> list[int]:
    values = []
    for number, wire, first, last in _fields(data, start, end):
        while number == 1 and wire in (CHUNK, VARINT) and first < last:
            value, first = _varint(data, first, last)
            values.append(value - (1 << 64) if value >> 63 else value)
    return values


READERS = {BYTES: _bytes, FLOATS: _floats, INTS: _ints}


def make_example(features: Mapping[str, bytes | int | Sequence[int]]) -> bytes:
    """A serialised `tf.train.Example`, its keys in order."""
    entries = b"".join(
        _chunk(1, _chunk(1, key.encode()) + _chunk(2, _make_feature(features[key])))
        for key in sorted(features)
    )
    return _chunk(1, entries)


def _make_feature(value: bytes | int | Sequence[int]) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return _chunk(BYTES, _chunk(1, bytes(value)))
    values = [operator.index(each) for each in (value if hasattr(value, "__len__") else [value])]
    if any(not -(1 << 63) <= each < 1 << 63 for each in values):
        raise ValueError("an Example holds integers of 64 bits")
    packed = b"".join(_make_varint(each & 0xFFFF_FFFF_FFFF_FFFF) for each in values)
    return _chunk(INTS, _chunk(1, packed) if packed else b"")


def _chunk(number: int, content: bytes) -> bytes:
    return _make_varint(number << 3 | CHUNK) + _make_varint(len(content)) + content


def _make_varint(value: int) -> bytes:
    groups = bytearray()
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
