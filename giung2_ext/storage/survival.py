"""The masks of a whole chain in one small file: for every weight, how many cycles kept it.

Masks of a chain are nested, so one byte a weight holds them all: cycle c keeps what more than c cycles
kept. That they are nested is proved when the file is written; every mask's digest is in it and is checked
when the mask is taken out. An .npz of `lived/…` (uint8) and `survival.json`, compressed.
"""

import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.storage import single_files

Tree = Any
META = "survival.json"
MOST = 255  # cycles


class Survival(NamedTuple):
    lived: dict[str, np.ndarray | None]  # uint8 by a leaf's name, `None` where it is not prunable
    meta: dict[str, Any]

    @property
    def cycles(self) -> int:
        return len(self.meta["mask_digests"])

    def masks(self, cycle: int) -> Tree:
        """The masks of a cycle, the dense one 0."""
        if not 0 <= cycle < self.cycles:
            raise Refusal(f"cycle {cycle} of a chain of {self.cycles}: 0 to {self.cycles - 1}")
        flat = {name: None if n is None else n > cycle for name, n in self.lived.items()}
        found = trees.nest(flat)
        if masking.digest(found) != self.meta["mask_digests"][cycle]:
            raise Refusal(f"the mask of cycle {cycle} is not the one that was written: the file is damaged")
        return found


def gather(masks: Sequence[Tree], names: Sequence[str], tickets: Sequence[str] = ()) -> Survival:
    """The map of a chain's masks; `names` are what its cycles are called, in messages."""
    if not 1 <= len(masks) <= MOST:
        raise Refusal(f"a map holds 1 to {MOST} cycles, got {len(masks)}")
    flat = [traverse_util.flatten_dict(tree, sep="/") for tree in masks]
    for name, own in zip(names, flat, strict=True):
        if own.keys() != flat[0].keys():
            other = min(own.keys() ^ flat[0].keys())
            raise Refusal(f"{name} is of another network than {names[0]}: {other} is in one of them alone")
    lived: dict[str, np.ndarray | None] = {}
    for name, first in flat[0].items():
        column = [own[name] for own in flat]
        if first is None and not any(mask is not None for mask in column):
            lived[name] = None
            continue
        for before, after, outer, inner in zip(names, names[1:], column, column[1:], strict=False):
            if inner is None or outer is None or inner.shape != outer.shape:
                raise Refusal(f"{after} is of another network or rule than {before}: {name}")
            revived = int(np.count_nonzero(inner & ~outer))
            if revived:
                raise Refusal(f"{after} keeps {revived:,} weights of {name} that {before} had pruned")
        lived[name] = sum((mask.astype(np.uint8) for mask in column), np.zeros(first.shape, np.uint8))
    digests = [masking.digest(tree) for tree in masks]
    return Survival(lived, {"format": 1, "mask_digests": digests, "tickets": list(tickets)})


def to_bytes(survival: Survival) -> bytes:
    arrays = {f"lived/{name}": n for name, n in survival.lived.items() if n is not None}
    meta = survival.meta | {"unprunable": [name for name, n in survival.lived.items() if n is None]}
    text = np.frombuffer(json.dumps(meta, sort_keys=True).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays, **{META: text})  # type: ignore[arg-type]
    return buffer.getvalue()


def is_survival(content: bytes) -> bool:
    return META in single_files.arrays_in(content)


def from_bytes(content: bytes, name: str) -> Survival:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            meta = json.loads(stored[META].tobytes())
            lived = {key.partition("/")[2]: stored[key] for key in stored.files if key.startswith("lived/")}
            lived |= dict.fromkeys(meta.pop("unprunable"))
            digests = meta["mask_digests"]
            if not all(type(digest) is str for digest in digests) or len(digests) > MOST:
                raise ValueError("digests of masks that are none")
    except Exception as error:  # a damaged zip raises a dozen kinds
        raise Refusal(f"{name} cannot be read as the map of a chain ({error})") from error
    return Survival(lived, meta)
