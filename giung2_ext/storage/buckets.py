"""Objects of an object store, `gs://bucket/…`: written whole, on a condition where it matters.

An object has a generation, which every write changes; a write can ask that it still be a certain one.
Such writes go through tensorstore, which saves states there too and tries again where a store is busy;
epath reads and lists, through gcsfs. There are no directories, no links, no renaming and no appending.
"""

import contextlib
import errno
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

from etils import epath
from fsspec.config import conf

from giung2_ext.core.errors import Refusal

for _name in ("gs", "gcs"):  # what others write is seen at once
    conf.setdefault(_name, {}).setdefault("use_listings_cache", False)
if importlib.util.find_spec("gcsfs") is not None:
    os.environ.setdefault("EPATH_USE_TF", "false")  # one way, whether TensorFlow is there or not

Generation = bytes
CODES = {
    "PERMISSION_DENIED": errno.EACCES,
    "UNAUTHENTICATED": errno.EACCES,
    "RESOURCE_EXHAUSTED": errno.EDQUOT,
}
_stores: dict[str, Any] = {}


def is_local(path: Any) -> bool:
    return "://" not in os.fspath(path)


def check(path: Any) -> None:
    """Refuses a place that nothing here can read or write."""
    scheme, _, rest = os.fspath(path).partition("://")
    if is_local(path):
        return
    if scheme != "gs" or not rest.strip("/"):
        raise Refusal(f"{path}: expected a directory or gs://BUCKET/FOLDER, got {scheme}://{rest}")
    if importlib.util.find_spec("gcsfs") is None:
        raise Refusal(f"{path} is in an object store, which needs gcsfs: pip install -e '.[gcs]'")


def _opened(path: epath.Path) -> tuple[Any, str]:
    """The store of a path's bucket, and its key there."""
    import tensorstore

    check(path)
    bucket, _, key = os.fspath(path).partition("://")[2].partition("/")
    if bucket not in _stores:
        _stores[bucket] = tensorstore.KvStore.open({"driver": "gcs", "bucket": bucket}).result()
    return _stores[bucket], key


@contextlib.contextmanager
def _errors(path: epath.Path) -> Iterator[None]:
    """What tensorstore raises, as what an operating system would."""
    try:
        yield
    except (TimeoutError, Refusal):
        raise
    except Exception as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        if "NOT_FOUND" in text:  # an object that is not there is no error
            raise Refusal(f"{path}: there is no such bucket; make it, or choose another place") from error
        number = next((n for name, n in CODES.items() if name in text), errno.EIO)
        raise OSError(number, f"{os.strerror(number)}; {text[:300]}", os.fspath(path)) from error


def read(path: epath.Path, timeout: float | None = None) -> tuple[bytes | None, Generation]:
    """An object's content, None where there is none, and its generation, which absence has too."""
    with _errors(path):
        store, key = _opened(path)
        found = store.read(key).result(timeout)
        return (bytes(found.value) if found.state == "value" else None), found.stamp.generation


def write(
    path: epath.Path,
    content: bytes | None,
    only_if: Generation | None = None,
    timeout: float | None = None,
) -> Generation | None:
    """Writes (of None: removes) an object whole and returns its generation.

    None, and nothing is changed, where the object is no more the one of generation `only_if`. A write that
    was tried again after a lost answer may say None of itself: look at what is there.
    """
    with _errors(path):
        store, key = _opened(path)
        made = store.write(key, content, if_equal=only_if).result(timeout).generation
        return made or None


def _filesystem() -> Any:
    import fsspec

    return fsspec.filesystem("gcs", finalize_on_close=True)  # epath's own


def move(source: epath.Path, target: epath.Path) -> None:
    """Copies all objects below `source`, then removes them: after a kill in between both are there."""
    _filesystem().copy(os.fspath(source) + "/", os.fspath(target) + "/", recursive=True)
    source.rmtree()
