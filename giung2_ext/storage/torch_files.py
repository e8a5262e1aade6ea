"""PyTorch's files without PyTorch: tensors are NumPy arrays, and no file can run code.

Read are the form that `torch.save` writes since 1.6 (a zip archive), the one before it, and plain pickles
of arrays. Only the names that tensors, arrays and dictionaries need are resolved; a tensor that reaches
beyond its storage is refused. Written is the zip form, the same bytes for the same tensors; `extra` are
more entries of the archive, which PyTorch leaves alone.
"""

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from giung2_ext.core import pickles
from giung2_ext.core.errors import Refusal

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the older form
EXTRA = "extra/"
DTYPES: dict[str, Any] = {
    **dict(Float="<f4", Double="<f8", Half="<f2", Long="<i8", Int="<i4", Short="<i2", Char="i1"),
    **dict(Byte="u1", Bool="?", BFloat16=ml_dtypes.bfloat16),
}
STORAGES = {np.dtype(dtype): f"{name}Storage" for name, dtype in DTYPES.items()}


class _Storage(NamedTuple):
    """What tensors are cut from; of the older form filled after they are."""

    array: np.ndarray


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    plain = type(storage) is _Storage and type(size) is type(stride) is tuple and len(size) == len(stride)
    if not plain or not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)):
        raise pickle.UnpicklingError("a tensor whose place in its storage is no place")
    array, count = storage.array, math.prod(size)
    end = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count and (end > array.size or count > array.size):
        raise pickle.UnpicklingError(f"a tensor of size {size} reaches beyond its storage")
    steps = [step * array.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(array[offset:], size, steps, writeable=False)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _plain(*_: Any) -> dict[str, Any]:
    """A set of options, whose fields come later."""
    return {}


NAMES: pickles.Names = {
    **pickles.ARRAYS,
    **{("torch", f"{name}Storage"): name for name in DTYPES},
    **{("torch", name): name for name in ("float32", "float64", "float16", "bfloat16", "int64", "bool")},
    ("torch._utils", "_rebuild_tensor_v2"): pickles.Call(_tensor),
    ("torch._utils", "_rebuild_tensor"): pickles.Call(_tensor),
    ("torch._utils", "_rebuild_parameter"): pickles.Call(_parameter),
    ("torch", "Size"): pickles.Call(tuple),
    ("torch", "device"): pickles.Call(_plain),
}


def _size_of(kind: Any, key: Any, count: Any) -> int:
    if type(kind) is not str or type(key) is not str or type(count) is not int or count < 0:
        raise pickle.UnpicklingError("a storage that is none")
    return count * np.dtype(DTYPES[kind]).itemsize


def _from_zip(content: bytes) -> tuple[Any, dict[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > len(content):
            raise pickle.UnpicklingError("an archive that is packed, which torch.save does not do")
        names = [entry.filename for entry in entries]
        found = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(found) != 1:
            raise pickle.UnpicklingError(f"an archive of {', '.join(names[:3])}, … without one data.pkl")
        prefix = found[0].removesuffix("data.pkl")
        if any(name.startswith(f"{prefix}code/") for name in names):
            raise pickle.UnpicklingError("a TorchScript program: save its state_dict()")
        if f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder") != b"little":
            raise pickle.UnpicklingError("it was written on a big-endian machine")
        kept: dict[str, _Storage] = {}

        def place(pid: Any) -> _Storage:
            _, kind, key, _, count = pid
            _size_of(kind, key, count)
            if key not in kept:
                raw = archive.read(f"{prefix}data/{key}")
                kept[key] = _Storage(np.frombuffer(raw, DTYPES[kind], count))
            return kept[key]

        file = io.BytesIO(archive.read(found[0]))
        whole = pickles.load(file, NAMES, place, encoding="utf-8")
        start = prefix + EXTRA
        extra = {name.removeprefix(start): archive.read(name) for name in names if name.startswith(start)}
        return whole, extra


def _older(content: bytes) -> Any:
    """Pickles of magic, protocol, system, content and keys; then the storages of those keys."""
    file, kept, left = io.BytesIO(content), {}, len(content)

    def place(pid: Any) -> _Storage:
        nonlocal left
        _, kind, key, _, count, view = pid
        if view is not None:
            raise pickle.UnpicklingError("storages that are views: save it again with a newer PyTorch")
        size = _size_of(kind, key, count)
        if key not in kept:
            left -= size
            if left < 0:
                raise pickle.UnpicklingError("storages that are larger than the file")
            kept[key] = _Storage(np.zeros(count, DTYPES[kind]))
        return kept[key]

    def one() -> Any:
        return pickles.load(file, NAMES, place, encoding="utf-8")

    if one() != MAGIC or one() != PROTOCOL or not one()["little_endian"]:
        raise pickle.UnpicklingError("of another protocol or byte order")
    found, keys = one(), one()
    if sorted(keys) != sorted(kept):
        raise pickle.UnpicklingError("its tensors are not those that it lists")
    for key in keys:
        array = kept[key].array
        (count,) = struct.unpack("<q", file.read(8))
        raw = file.read(array.nbytes)
        if count != array.size or len(raw) != array.nbytes:
            raise pickle.UnpicklingError("it ends within its tensors")
        array[:] = np.frombuffer(raw, array.dtype)
    return found


def read(content: bytes, name: str) -> tuple[Any, dict[str, bytes]]:
    """What a file holds, tensors as arrays, and its extra entries. `name` is for messages."""
    try:
        if content[:2] == b"PK":
            return _from_zip(content)
        first = pickles.load(io.BytesIO(content), NAMES, encoding="latin1")
        return (_older(content) if type(first) is int and first == MAGIC else first), {}
    except Exception as error:  # a damaged file raises a dozen kinds
        raise Refusal(
            f"{name} cannot be read as a file of PyTorch or a pickle of arrays, and nothing in it was run: "
            f"{type(error).__name__}: {error}{_hint(content, error)}"
        ) from error


def _hint(content: bytes, error: Exception) -> str:
    if not content:
        return " (it is empty)"
    if isinstance(error, zipfile.BadZipFile | EOFError):
        return " (is it whole?)"
    return " (of a whole model, save its state_dict())" * ("__main__" in str(error))


def write(tensors: Mapping[str, np.ndarray], extra: Mapping[str, bytes]) -> bytes:
    """The file of a state_dict, as `torch.load(weights_only=True)` takes it."""
    for name, array in tensors.items():
        if array.dtype.newbyteorder("=") not in STORAGES:
            raise Refusal(f"{name} is of type {array.dtype}, which PyTorch's files do not hold")
    tensors = {
        name: array.astype(array.dtype.newbyteorder("="), copy=False) for name, array in tensors.items()
    }
    entries = {"data.pkl": _pickled(tensors), "byteorder": b"little", "version": b"3\n"}
    for key, array in enumerate(tensors.values()):
        entries[f"data/{key}"] = np.ascontiguousarray(array).tobytes()
    entries |= {EXTRA + name: content for name, content in extra.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0)), content)
    return buffer.getvalue()


def _pickled(tensors: Mapping[str, np.ndarray]) -> bytes:
    """An OrderedDict of tensors, written out: PyTorch's names without PyTorch."""
    ordered = b"ccollections\nOrderedDict\n)R"
    out = [b"\x80\x02", ordered, b"("]
    for key, (name, array) in enumerate(tensors.items()):
        kind = STORAGES[array.dtype]
        steps = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
        out += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n", b"("]
        out += [b"(", _text("storage"), f"ctorch\n{kind}\n".encode(), _text(str(key)), _text("cpu")]
        out += [_number(array.size), b"tQ", _number(0), _numbers(array.shape), _numbers(steps)]
        out += [b"\x89", ordered, b"tR"]
    return b"".join([*out, b"u."])


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _numbers(values: Any) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"
