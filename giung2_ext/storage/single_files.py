"""Tickets that are one file, to be named wherever a checkpoint is: the original suite's, and compact ones.

The original's are flax's msgpack of params, params_mask (float 0 or 1 for every leaf; dense networks have
none), batch_stats and image_stats, of a ResNet for ImageNet. A compact ticket is an .npz: `masks/…` eight
weights a byte, `kept/…` the weights that they keep, in row-major order, `params/…` and `statistics/…` the
rest, and the ticket's lineage and digest in `ticket.json`.
"""

import hashlib
import io
import json
import zipfile
from typing import Any, NamedTuple

import numpy as np
from flax import serialization, traverse_util

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.storage import paths

Tree = Any
META = paths.META
DEPTHS = {20: 18, 36: 34, 53: 50, 104: 101, 155: 152}  # by the number of convolutions
DEPTHS |= {21: 18, 37: 34}  # of a width above 1, whose first stage has a projection


class Parts(NamedTuple):
    params: Tree
    masks: Tree
    statistics: Tree
    lineage: dict[str, Any]


def arrays_in(content: bytes) -> list[str]:
    """Names of the arrays of an .npz; none of a damaged one."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except zipfile.BadZipFile:
        return []


def recognises(content: bytes) -> bool:
    """Whether a file looks like one of these, and not like one of PyTorch's."""
    if content[:2] == b"PK":
        return META in arrays_in(content)
    return content[:1] in (b"\x81", b"\x82", b"\x83", b"\x84", b"\x85", b"\xde", b"\xdf")  # a map


def read(content: bytes, name: str) -> Parts:
    """The parts of a ticket that is one file; `name` is for messages."""
    if content[:2] == b"PK":
        return _compact(content, name)
    try:
        found = serialization.msgpack_restore(content)
    except Exception as error:  # a damaged file raises a dozen kinds
        raise Refusal(
            f"{name} is neither a ticket nor a whole checkpoint of the original suite ({error}); files of "
            "PyTorch are imported with python scripts/convert.py FILE --to=DIR"
        ) from error
    return _original(found, name, hashlib.sha256(content).hexdigest())


def _original(found: Any, name: str, digest: str) -> Parts:
    wanted = ("params", "batch_stats", "image_stats")
    keys = set(found) if isinstance(found, dict) else set()
    if not set(wanted) <= keys <= {*wanted, "params_mask"}:
        raise Refusal(
            f"{name}: a checkpoint of the original suite has {', '.join(wanted)} and maybe params_mask; "
            f"this one has {', '.join(map(str, sorted(keys))) or 'nothing'}"
        )
    params = _joined(found["params"], name, "params")
    dense = traverse_util.unflatten_dict({path: np.ones(w.shape, bool) for path, w in _leaves(params)})
    given = _joined(found["params_mask"], name, "params_mask") if "params_mask" in found else dense
    if sorted((p, m.shape) for p, m in _leaves(given)) != sorted((p, w.shape) for p, w in _leaves(params)):
        raise Refusal(f"{name}: params_mask has other leaves or shapes than params")
    flat, masks = dict(_leaves(params)), {}
    for path, mask in _leaves(given):
        if not np.isin(mask, (0, 1)).all():
            raise Refusal(f"{name}: params_mask of {'/'.join(path)} is not 0 or 1 everywhere")
        pruned = path[0].startswith("Conv_")
        if not pruned and not np.all(mask):
            raise Refusal(f"{name}: params_mask prunes {'/'.join(path)}, which is no convolution")
        masks[path] = np.asarray(mask, bool) if pruned else None
        flat[path] = np.where(np.asarray(mask, bool), flat[path], np.float32(0))
    statistics = {key: found[key] for key in ("batch_stats", "image_stats")}
    nested = (traverse_util.unflatten_dict(each) for each in (flat, masks))
    return Parts(*nested, statistics, _lineage(params, name, digest))


def _leaves(tree: Tree) -> list[tuple[tuple[str, ...], Any]]:
    return list(traverse_util.flatten_dict(tree).items())


def _joined(tree: Any, name: str, what: str) -> Tree:
    """`ext` and `cls` of the original as one network."""
    if not isinstance(tree, dict) or set(tree) != {"ext", "cls"}:
        raise Refusal(f"{name}: its {what} are not those of a network: ext and cls")
    return {**tree["ext"], "cls": {"kernel": tree["cls"]}}


def _lineage(params: Tree, name: str, digest: str) -> dict[str, Any]:
    convolutions = sum(key.startswith("Conv_") for key in params)
    stem = params.get("Conv_0", {}).get("kernel", np.zeros(0)).shape
    if convolutions not in DEPTHS or stem[:3] != (7, 7, 3):
        raise Refusal(
            f"{name}: {convolutions} convolutions, the first of shape {stem}: not a ResNet-"
            f"{', '.join(map(str, DEPTHS.values()))} for ImageNet"
        )
    depth = DEPTHS[convolutions]
    width = params["Conv_1"]["kernel"].shape[-1] // 64
    return {
        "seed": None,
        "step": None,
        "parents": {},
        "imported": {"format": "original", "sha256": digest},
        "prunable_rule": "conv",
        "model": {"name": "resnet", "depth": depth, "width": width, "group_size": 256},
        "data": {"name": "imagenet2012", "image_size": 224},
        "precision": "float32",
        "num_classes": int(params["cls"]["kernel"].shape[1]),
        "image_shape": [224, 224, 3],
    }


def _compact(content: bytes, name: str) -> Parts:
    groups: dict[str, dict[str, Any]] = {"masks": {}, "kept": {}, "params": {}, "statistics": {}}
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            if META not in stored.files:
                raise Refusal(
                    f"{name} is no compact ticket; files of PyTorch are imported with "
                    "python scripts/convert.py FILE --to=DIR"
                )
            lineage = json.loads(stored[META].tobytes())
            for key in stored.files:
                group, _, path = key.partition("/")
                if path:
                    groups[group][path] = stored[key]
        params, masks = groups["params"], dict.fromkeys(groups["params"])
        for path, packed in groups["masks"].items():
            masks[path] = masking.unpack(packed, tuple(lineage["shapes"][path]))
            params[path] = np.zeros(masks[path].shape, groups["kept"][path].dtype)
            params[path][masks[path]] = groups["kept"][path]
    except Refusal:
        raise
    except Exception as error:  # a damaged zip raises a dozen kinds
        raise Refusal(f"{name} is damaged: it cannot be read as a compact ticket ({error})") from error
    del lineage["shapes"]
    return Parts(*map(trees.nest, (params, masks, groups["statistics"])), lineage)


def to_compact(params: Tree, masks: Tree, statistics: Tree, lineage: dict[str, Any]) -> bytes:
    """The same bytes for the same ticket."""
    flat, of = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, masks))
    pruned = {path: mask for path, mask in sorted(of.items()) if mask is not None}
    arrays = {f"params/{path}": flat[path] for path in sorted(flat) if path not in pruned}
    for path, mask in pruned.items():
        arrays[f"masks/{path}"] = masking.pack(mask)
        arrays[f"kept/{path}"] = np.asarray(flat[path])[np.asarray(mask)]
    values = traverse_util.flatten_dict(statistics, sep="/")
    arrays |= {f"statistics/{path}": values[path] for path in sorted(values)}
    shapes = {path: list(mask.shape) for path, mask in pruned.items()}
    text = json.dumps(lineage | {"shapes": shapes}, sort_keys=True)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays, **{META: np.frombuffer(text.encode(), np.uint8)})  # type: ignore[arg-type]
    return buffer.getvalue()
