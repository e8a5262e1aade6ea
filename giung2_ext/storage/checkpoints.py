"""Resumable training states, through orbax, with a retention policy.

A tree is stored as a flat dictionary {path: array}. That avoids two traps of restoring into a
structure: a `None` in the target silently drops what was saved there, and without a target named
tuples come back as lists. Key sets are compared before anything is read.
"""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from jax.sharding import SingleDeviceSharding

from giung2_ext.core.errors import Refusal

Tree = Any


@contextlib.contextmanager
def _quiet(level: int = logging.INFO) -> Iterator[None]:
    """Orbax reports its routine through the root logger; warnings still pass."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)


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


class StateStore:
    """The states of one run: the newest `keep` are retained."""

    def __init__(self, folder: epath.Path, keep: int):
        self.folder, self.keep = folder, keep
        self._manager: Any = None

    def _open(self) -> Any:
        if self._manager is None:
            import orbax.checkpoint as ocp

            with _quiet():
                options = ocp.CheckpointManagerOptions(
                    max_to_keep=self.keep, enable_async_checkpointing=False, create=True
                )
                handlers = {
                    "state": ocp.StandardCheckpointHandler(),
                    "notes": ocp.JsonCheckpointHandler(),
                }
                self._manager = ocp.CheckpointManager(
                    self.folder.resolve(), options=options, item_handlers=handlers
                )
        return self._manager

    def save(self, step: int, tree: Tree, notes: dict[str, Any]) -> None:
        import orbax.checkpoint as ocp

        manager = self._open()
        if manager.latest_step() == step:
            return  # the same state, asked for by two clocks
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_flatten(tree)), notes=ocp.args.JsonSave(notes)
        )
        with _quiet(logging.ERROR):  # what its threads would log is what it raises
            try:
                manager.save(step, args=items, force=True)
            except Exception as error:
                if os.strerror(errno.ENOSPC) not in str(error):
                    raise
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder)) from error

    def steps(self) -> list[int]:
        """The steps of the states that are there, newest first."""
        if not self.folder.exists():
            return []
        with _quiet():
            return sorted(self._open().all_steps(), reverse=True)

    def notes(self, step: int) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        with _quiet():
            items = ocp.args.Composite(notes=ocp.args.JsonRestore())
            return self._open().restore(step, args=items)["notes"]

    def restore(self, step: int, target: Tree) -> Tree:
        """The state of `step` in the structure, types and shardings of `target` (else one device)."""
        import orbax.checkpoint as ocp

        wanted = _flatten(target)
        with _quiet():
            problem = _misfit(self._open().item_metadata(step)["state"], wanted)
            if problem:
                raise Refusal(f"the state in {self.folder} does not fit this run: {problem}")
            one_device = SingleDeviceSharding(jax.local_devices()[0])
            abstract = {
                name: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or one_device
                )
                for name, leaf in wanted.items()
            }
            found = self._open().restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )["state"]
        leaves = [found[key] for key in wanted]
        return jax.tree.unflatten(jax.tree.structure(target), leaves)

    def clear(self) -> None:
        self.close()
        self.folder.rmtree(missing_ok=True)

    def close(self) -> None:
        if self._manager is not None:
            self._manager.close()
            self._manager = None
