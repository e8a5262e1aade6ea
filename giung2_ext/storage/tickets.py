"""Tickets: masks, the weights they keep, normalisation statistics and where they came from.

A ticket is an immutable directory of two files that need nothing of this suite to be read:
`arrays.npz` (params/..., statistics/..., and masks/... packed eight to a byte, highest bit first) and
`ticket.json` (lineage, counts, digest). The digest is SHA-256 over every array's name, type, shape and
bytes and over the lineage; parents are named by theirs.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from flax import traverse_util

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.storage import buckets, paths, single_files

Tree = Any
FORMAT = 1
ARRAYS, META = "arrays.npz", paths.META


class Ticket(NamedTuple):
    params: Tree  # 0 where pruned
    masks: Tree  # `None` where not prunable
    statistics: Tree
    meta: dict[str, Any]  # lineage; JSON values that the recipe determines: no clock, no host

    @property
    def digest(self) -> str:
        return self.meta["digest"]


def _flat(tree: Tree, group: str) -> dict[str, np.ndarray]:
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {f"{group}/{k}": np.asarray(v) for k, v in flat.items() if v is not None}


def _digest(arrays: dict[str, np.ndarray], lineage: dict[str, Any]) -> str:
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha.update(array.data)
    sha.update(json.dumps(lineage, sort_keys=True).encode())
    return sha.hexdigest()


def write_ticket(
    folder: epath.Path, params: Tree, masks: Tree, statistics: Tree, lineage: dict[str, Any]
) -> tuple[epath.Path, dict[str, Any]]:
    """Writes the ticket below `folder` and returns its directory and its meta."""
    arrays, meta = _described(params, masks, statistics, lineage)
    path = place_of(folder, meta["digest"])
    if not all((path / name).exists() for name in (ARRAYS, META)):
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        text = json.dumps(meta, indent=1)
        paths.write_directory(path, {ARRAYS: buffer.getvalue(), META: text.encode()})
    return path, meta


def _described(
    params: Tree, masks: Tree, statistics: Tree, lineage: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What a ticket stores: its arrays, and its lineage with counts and digest."""
    flat_masks = _flat(masks, "masks")
    arrays = _flat(params, "params") | _flat(statistics, "statistics")
    total = sum(v.size for k, v in arrays.items() if k.startswith("params/"))
    prunable = sum(v.size for v in flat_masks.values())
    layers = {k[len("masks/") :]: [int(v.sum()), v.size] for k, v in flat_masks.items()}
    kept = sum(count for count, _ in layers.values())
    lineage = lineage | {
        "format": FORMAT,
        "kept": kept,
        "prunable": prunable,
        "parameters": total,
        "mask_digest": masking.digest(masks),
        "layers": layers,  # [kept, of] for every prunable leaf
    }
    lineage.pop("digest", None)  # of a ticket that is written again
    arrays |= {name: masking.pack(mask) for name, mask in flat_masks.items()}
    return arrays, {"digest": _digest(arrays, lineage)} | lineage


def make_ticket(params: Tree, masks: Tree, statistics: Tree, lineage: dict[str, Any]) -> Ticket:
    """A ticket in memory, with the digest that it would have on disk."""
    return Ticket(params, masks, statistics, _described(params, masks, statistics, lineage)[1])


def read_meta(name: epath.Path | str) -> dict[str, Any]:
    """Lineage and counts alone, without the arrays."""
    if paths.is_single(epath.Path(name)):
        return read_ticket(name).meta
    return _read_meta(paths.resolve(epath.Path(name)), name)


def _read_meta(directory: epath.Path, name: epath.Path | str) -> dict[str, Any]:
    if not (directory / META).exists():
        raise Refusal(f"{name} is not a ticket: cannot read its {META}; name a .ckpt of a run")
    try:
        meta = json.loads((directory / META).read_text())
    except (OSError, ValueError) as error:
        raise Refusal(f"{name} is damaged: cannot read its {META} ({error})") from error
    if not isinstance(meta, dict) or "digest" not in meta:
        raise Refusal(f"{name} is damaged: its {META} names no digest")
    if meta.get("format") != FORMAT:
        raise Refusal(f"{name} has ticket format {meta.get('format')}, this suite reads {FORMAT}")
    return meta


def read_ticket(name: epath.Path | str) -> Ticket:
    """Reads and verifies a ticket; one whose content has changed is refused."""
    if paths.is_single(epath.Path(name)):
        return ticket_of_file(epath.Path(name).read_bytes(), os.fspath(name))
    directory = paths.resolve(epath.Path(name))  # once: the name may be moved meanwhile
    meta = _read_meta(directory, name)
    try:
        with np.load(io.BytesIO((directory / ARRAYS).read_bytes()), allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except Exception as error:  # a damaged zip raises a dozen kinds
        raise Refusal(f"{name} is damaged: cannot read its {ARRAYS} ({error})") from error
    lineage = {k: v for k, v in meta.items() if k != "digest"}
    if _digest(arrays, lineage) != meta["digest"]:
        raise Refusal(f"{name} is damaged: its content does not match its digest {meta['digest'][:16]}")
    groups: dict[str, dict[str, Any]] = {"params": {}, "masks": {}, "statistics": {}}
    for key, array in arrays.items():
        group, _, path = key.partition("/")
        groups[group][path] = array
    params, packed = groups["params"], groups["masks"]
    masks = {k: masking.unpack(packed[k], v.shape) if k in packed else None for k, v in params.items()}
    return Ticket(trees.nest(params), trees.nest(masks), trees.nest(groups["statistics"]), meta)


def ticket_of_file(content: bytes, name: str) -> Ticket:
    """A ticket that is one file; `name` is for messages."""
    parts = single_files.read(content, name)
    ticket, recorded = make_ticket(*parts), parts.lineage.get("digest")
    if recorded not in (None, ticket.digest):
        raise Refusal(f"{name} is damaged: its content does not match its digest {recorded[:16]}")
    return ticket


def name_ticket(folder: epath.Path, name: str, ticket: epath.Path) -> None:
    paths.point(folder / name, ticket)


def refuse_inside(folder: epath.Path) -> None:
    """Refuses to write a run into a ticket, which is immutable."""
    buckets.check(folder)
    for place in paths.parents_of(folder):
        if (place / META).exists():
            raise Refusal(f"{folder} is inside the ticket {place}; choose another --save")


def place_of(folder: epath.Path, digest: str) -> epath.Path:
    return folder / paths.TICKETS / digest[:16]


def drop_unnamed(folder: epath.Path, keep: Iterable[str] = ()) -> None:
    """Removes this folder's tickets that no name points at, but for the digests in `keep`."""
    named = {paths.target(name) for name in folder.glob("*.ckpt") if not paths.is_single(name)}
    named |= {place_of(folder, digest).name for digest in keep}
    for ticket in (folder / paths.TICKETS).glob("*"):
        if ticket.name not in named and not ticket.name.startswith("."):
            paths.remove_directory(ticket, first=[META])
