"""Resumable training states, through orbax, with a retention policy.

A tree is stored as a flat dictionary {path: array}. That avoids two traps of restoring into a
structure: a `None` in the target silently drops what was saved there, and without a target named
tuples come back as lists. Key sets are compared before anything is read, and a checksum of every array
is kept with it: a state that is not what was saved is not gone on from.
"""

import contextlib
import copy
import errno
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import SingleDeviceSharding

from giung2_ext.core import select
from giung2_ext.core.errors import Refusal
from giung2_ext.storage import paths

Tree = Any
CHECKSUMS = "checksums"
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)


@contextlib.contextmanager
def _quiet(level: int = logging.INFO) -> Iterator[None]:
    """Orbax reports its routine through the root logger; warnings still pass."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)


def _not_raised_elsewhere(record: logging.LogRecord) -> bool:
    """Of what orbax's threads log, all but the errors that are raised too."""
    return "raised an exception" not in record.getMessage()


def _flatten(tree: Tree) -> dict[str, Any]:
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in pairs}
    if len(flat) != len(pairs):
        raise ValueError("two leaves of a state have the same dotted name")
    return flat


def _misfit(stored: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """The first difference in names, types or shapes between what is on disk and what is needed."""
    for name in sorted(stored.keys() | wanted.keys()):
        if name not in wanted:
            return f"{name!r} was saved but is not expected"
        if name not in stored:
            return f"{name!r} is missing"
        if jax.dtypes.issubdtype(wanted[name].dtype, jax.dtypes.prng_key):
            continue  # stored as its key data
        have, need = (f"{x.dtype}{tuple(x.shape)}" for x in (stored[name], wanted[name]))
        if have != need:
            return f"{name!r} is {have}, this run has {need}"
    return None


@jax.jit
def _checksums(flat: dict[str, Any]) -> dict[str, jax.Array]:
    """A uint32 for every array: the sum of its elements' bits, each times an odd number of its own place.

    Exact integers, so the same on every topology; no single change can leave it as it was.
    """

    def one(leaf: Any) -> jax.Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if leaf.dtype != bool:
            leaf = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
        place = select.flat_index(leaf.shape).astype(jnp.uint32)
        return jnp.sum(leaf.astype(jnp.uint32) * (place * jnp.uint32(2654435769) * 2 + 1), dtype=jnp.uint32)

    return {name: one(leaf) for name, leaf in flat.items()}


def checksums(tree: Tree) -> dict[str, int]:
    """By which a restored state is known to be the one that was saved."""
    return {name: int(n) for name, n in jax.device_get(_checksums(_flatten(tree))).items()}


class Damaged(Exception):
    """A state that cannot be read, or is not what was saved."""


class StateStore:
    """The states of one run: the newest `keep` are retained. All processes of a job save and restore.

    Saving goes on in the background; the next save, or `close`, waits for it and raises what went wrong.
    """

    def __init__(self, folder: epath.Path, keep: int):
        self.folder, self.keep = folder, keep
        self._manager: Any = None
        self._reader: Any = None

    def _make(self, **options: Any) -> Any:
        import orbax.checkpoint as ocp

        return ocp.CheckpointManager(
            self.folder.resolve() if paths.is_local(self.folder) else self.folder,
            options=ocp.CheckpointManagerOptions(**options),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "notes": ocp.JsonCheckpointHandler()},
        )

    def _writer(self) -> Any:
        if self._manager is None:
            logging.getLogger("absl").addFilter(_not_raised_elsewhere)
            with _quiet():
                self._manager = self._make(max_to_keep=self.keep, create=True)
        return self._manager

    def _open(self) -> Any:
        """To read with: by itself, so that no process waits for another one that cannot read."""
        if self._reader is None:
            import orbax.checkpoint as ocp

            me = jax.process_index()
            alone = ocp.options.MultiprocessingOptions(
                primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"reader{me}"
            )
            with _quiet(logging.WARNING):  # it warns that it only reads
                self._reader = self._make(read_only=True, create=False, multiprocessing_options=alone)
        return self._reader

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with _quiet(logging.ERROR):  # what its threads would log is what it raises
            try:
                yield
            except Exception as error:
                number = next((n for n in CANNOT_WRITE if os.strerror(n) in str(error)), None)
                if number is None:
                    raise
                raise OSError(number, os.strerror(number), str(self.folder)) from error

    def save(self, step: int, tree: Tree, notes: dict[str, Any]) -> None:
        import orbax.checkpoint as ocp

        manager = self._writer()
        if manager.latest_step() == step:
            return  # the same state, asked for by two clocks
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_flatten(tree)),
            notes=ocp.args.JsonSave(copy.deepcopy(notes) | {CHECKSUMS: checksums(tree)}),
        )
        with self._writing():
            self._check_room(tree)
            manager.save(step, args=items, force=True)

    def _check_room(self, tree: Tree) -> None:
        """Before writing, for twice the state: one that fails midway is a page of errors."""
        needed = 2 * sum(x.nbytes for x in jax.tree.leaves(tree))
        mine = jax.process_index() == 0 and paths.is_local(self.folder)
        if mine and shutil.disk_usage(self.folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))

    def steps(self) -> list[int]:
        """The steps of the states that are there, newest first."""
        self.close()  # what is being saved is whole, what was read before is forgotten
        if not self.folder.exists():
            return []
        with _quiet():
            return sorted(self._open().all_steps(), reverse=True)

    def _notes(self, step: int) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        with _quiet(), _damage():
            items = ocp.args.Composite(notes=ocp.args.JsonRestore())
            return self._open().restore(step, args=items)["notes"]

    def notes(self, step: int) -> dict[str, Any]:
        return {key: value for key, value in self._notes(step).items() if key != CHECKSUMS}

    def restore(self, step: int, target: Tree) -> Tree:
        """The state of `step` in the structure, types and shardings of `target` (else one device).

        It is the caller's to compare its `checksums` with those that were saved.
        """
        import orbax.checkpoint as ocp

        wanted = _flatten(target)
        with _quiet():
            with _damage():
                stored = self._open().item_metadata(step)["state"]
            problem = _misfit(stored, wanted)
            if problem:
                raise Refusal(f"the state in {self.folder} does not fit this run: {problem}")
            one_device = SingleDeviceSharding(jax.local_devices()[0])
            abstract = {
                name: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or one_device
                )
                for name, leaf in wanted.items()
            }
            with _damage():
                items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
                found = self._open().restore(step, args=items)["state"]
        leaves = [found[key] for key in wanted]
        return jax.tree.unflatten(jax.tree.structure(target), leaves)

    def checksums(self, step: int) -> dict[str, int]:
        """Those of the state when it was saved."""
        return self._notes(step).get(CHECKSUMS, {})  # none of a state that was saved before there were any

    def set_aside(self, steps: Iterable[int]) -> None:
        """Moves damaged states away, where they are no more in the way of the next of their step."""
        self.close()
        aside = self.folder.parent / paths.DAMAGED
        for step in steps:
            place = aside / f"{self.folder.name}_{step}_{uuid.uuid4().hex[:8]}"
            paths.move_directory(self.folder / str(step), place)

    def clear(self) -> None:
        self.close()
        if jax.process_index() == 0:
            self.folder.rmtree(missing_ok=True)

    def close(self) -> None:
        """Waits until what was saved is whole."""
        manager, reader, self._manager, self._reader = self._manager, self._reader, None, None
        if reader is not None:
            reader.close()
        if manager is not None:
            with self._writing():
                manager.close()


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """What orbax and tensorstore raise on a damaged file is of many kinds."""
    try:
        yield
    except Exception as error:
        raise Damaged((str(error).splitlines() or [type(error).__name__])[0][:100]) from error
