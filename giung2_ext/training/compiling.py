"""Compiled programs are kept on disk, so that the next process of a chain need not compile them again.

JAX's own cache: its key is the program, the versions and the devices, so that nothing wrong is found. In a
job only the first process writes; the others find what it wrote where all see the same folder.
"""

import hashlib
import os
import platform
from collections import Counter

import jax
from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.storage import buckets, paths

LEAST = 0.5  # seconds: what takes less is compiled again
VARIABLE = "JAX_COMPILATION_CACHE_DIR"
HIT, WRITTEN = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"
_seen: Counter[str] = Counter()
_folder: list[str] = []  # where they are kept


def default_folder() -> str:
    """The user's, apart for every kind of CPU: programs for one may be none for another."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(root, "giung2_ext", "programs", _machine())


def _machine() -> str:
    told = platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            told += next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:  # no Linux
        told += platform.processor()
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def check(where: str) -> None:
    """Refuses what cannot be a folder."""
    if where not in ("auto", "off"):
        try:
            paths.check_folder(epath.Path(where))
        except Refusal as error:
            raise Refusal(f"--compilation_cache: {error}; name a folder, auto or off") from error


def keep(where: str) -> None:
    """`where` is a folder or bucket, `off`, or `auto`: what the environment says, or the user's cache."""
    if where == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    folder = where if where != "auto" else os.environ.get(VARIABLE) or default_folder()
    if buckets.is_local(folder):
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:  # JAX would warn of every program
            if folder == default_folder():  # a home that cannot be written to: nothing is kept
                return
            asked = VARIABLE if where == "auto" else "--compilation_cache"
            raise Refusal(f"{asked}={folder}: {error}; name a folder, auto or off") from error
    jax.config.update("jax_compilation_cache_dir", folder)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST)
    if not _folder:
        jax.monitoring.register_event_listener(lambda event, **_: _seen.update([event]))
    _folder[:] = [folder]


def describe() -> str:
    """What this process has compiled, of programs that took long enough to be kept."""
    if not _folder:
        return ""
    return f"programs: {_seen[WRITTEN]} compiled, {_seen[HIT]} taken from {_folder[0]}"
