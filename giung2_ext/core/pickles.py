"""Pickles that cannot run code: a name in one is looked up in a table, or the file is refused.

What the table gives can be called and not changed: a pickle may set the state of anything that it has
made, so arrays and their types are made by classes of our own that take no state but plain numbers.
"""

import math
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

Names = Mapping[tuple[str, str], Any]
CODE = re.compile(r"[<>|=]?(b1|[iuf][1248]|\?)")  # of numbers and booleans, nothing that points anywhere


class Call:
    """A function that a pickle may call and not change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes what it is read with")


class Table(dict[Any, Any]):
    """A dictionary whose attributes, which PyTorch's have, are not kept."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _DType:
    """The type of an array: its code and byte order."""

    __slots__ = ("_code",)

    def __init__(self, code: Any, *_: Any):
        code = code.decode("ascii") if type(code) is bytes else code
        if type(code) is not str or not CODE.fullmatch(code):
            raise pickle.UnpicklingError("an array of something else than numbers")
        self._code = code

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("ascii") if type(state[1]) is bytes else state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("an array of something else than numbers")
        self._code = order + self._code.lstrip("<>|=")

    @property
    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self._code)


def _checked(dtype: Any, raw: Any, shape: Any) -> tuple[np.dtype[Any], bytes, tuple[int, ...]]:
    raw = raw.encode("latin1") if type(raw) is str else bytes(raw) if type(raw) is bytearray else raw
    plain = type(shape) is tuple and all(type(n) is int and n >= 0 for n in shape)
    if type(dtype) is not _DType or type(raw) is not bytes or not plain:
        raise pickle.UnpicklingError("an array of something else than numbers")
    if math.prod(shape) * dtype.numpy.itemsize != len(raw):
        raise pickle.UnpicklingError("an array that has not as many numbers as its shape")
    return dtype.numpy, raw, shape


class _Array(np.ndarray[Any, Any]):
    """An array that takes its numbers once."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        kind, raw, shape = _checked(dtype, raw, shape)
        if self.size:
            raise pickle.UnpicklingError("an array that is filled twice")
        super().__setstate__((1, shape, kind, bool(fortran), raw))  # type: ignore[arg-type]


def _empty(*_: Any) -> _Array:
    return _Array((0,), np.uint8)


def _scalar(dtype: Any, raw: Any) -> Any:
    kind, raw, _ = _checked(dtype, raw, (1,))
    return np.frombuffer(raw, kind)[0]


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    kind, raw, shape = _checked(dtype, raw, shape)
    return np.frombuffer(raw, kind).reshape(shape, order="F" if order == "F" else "C")


def _latin(text: Any, encoding: Any) -> bytes:
    """What Python 2's strings and Python 3's bytes are stored by."""
    if type(text) is not str or encoding != "latin1":
        raise pickle.UnpicklingError("it encodes something else than bytes")
    return text.encode("latin1")


ARRAYS: Names = {
    **{(f"numpy.{core}.multiarray", name): Call(make)
       for core in ("core", "_core") for name, make in (("_reconstruct", _empty), ("scalar", _scalar))},
    **{(f"numpy.{core}.numeric", "_frombuffer"): Call(_from_buffer) for core in ("core", "_core")},
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): Call(_DType),
    ("_codecs", "encode"): Call(_latin),
    ("collections", "OrderedDict"): Call(Table),
    ("__builtin__", "set"): Call(set),
    ("builtins", "set"): Call(set),
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, names: Names, persistent: Callable[[Any], Any] | None, encoding: str):
        super().__init__(file, encoding=encoding)
        self._names, self._persistent = names, persistent

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not loaded from a file")
        return self._names[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise pickle.UnpicklingError("it refers to something outside of it")
        return self._persistent(pid)


def load(
    file: IO[bytes],
    names: Names = ARRAYS,
    persistent: Callable[[Any], Any] | None = None,
    encoding: str = "latin1",
) -> Any:
    """The next pickle of a file, made of what `names` has."""
    start = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if "PUT" in opcode.name and argument is not None and int(argument) > count:
            raise pickle.UnpicklingError("it numbers its parts as no pickler does")
    file.seek(start)
    return _Unpickler(file, names, persistent, encoding).load()
