"""Pickles that cannot run code: a name in one is looked up in a table, or the file is refused."""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy._core import multiarray

Names = Mapping[tuple[str, str], Any]


def _latin(text: str, encoding: str) -> bytes:
    """What Python 2's strings and Python 3's bytes are stored by."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes as {encoding}")
    return text.encode("latin1")


ARRAYS: Names = {
    **{(f"numpy.{core}.multiarray", name): getattr(multiarray, name)
       for core in ("core", "_core") for name in ("_reconstruct", "scalar")},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin,
    ("collections", "OrderedDict"): OrderedDict,
}  # fmt: skip


class Unpickler(pickle.Unpickler):
    """Resolves the names of a table and nothing else."""

    def __init__(
        self, file: Any, names: Names = ARRAYS, load: Callable[[Any], Any] | None = None, **how: Any
    ) -> None:
        super().__init__(file, **how)
        self._names, self._load = names, load

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not loaded from a file")
        return self._names[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if self._load is None:
            raise pickle.UnpicklingError("it refers to something outside of it")
        return self._load(pid)
