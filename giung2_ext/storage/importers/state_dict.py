"""A plain state_dict, as torchvision publishes it, or one that this suite exported.

Masks are those of `torch.nn.utils.prune` (`weight_orig`, `weight_mask`) where they are there; a file of
ours says more in an entry that PyTorch does not look at. Without masks what is 0 is pruned.
"""

import json
from typing import Any

import numpy as np

from giung2_ext.storage.importers import _parts

ABOUT = "giung2_ext.json"
SUFFIXES = (".mask", ".b_mask", ".scores")  # of other formats


def build(content: _parts.Content) -> _parts.Parts | None:
    tensors = content.tensors
    if not tensors or content.has("pruner") or any(key.endswith(SUFFIXES) for key in tensors):
        return None
    meta: dict[str, Any] | None = None
    if ABOUT in content.extra:
        meta = json.loads(content.extra[ABOUT])
    masks = {}
    for key in [key.removesuffix("_mask") for key in tensors if key.endswith("_mask")]:
        if f"{key}_orig" in tensors:
            weight = tensors.pop(f"{key}_orig")
            masks[key] = _parts.bits(f"{key}_mask of {content.name}", tensors.pop(f"{key}_mask"), weight)
            tensors[key] = np.where(masks[key], weight, 0)
    if meta is not None:
        exported = meta["exported"]
        if not masks:
            masks = {key: value != 0 for key, value in tensors.items() if key in exported["masked"]}
        note, pixels = "a ticket that this suite exported", (exported["mean"], exported["std"])
        return _parts.Parts(tensors, masks, meta["model"], *pixels, note, meta)
    note = "a state_dict, masks of torch.nn.utils.prune"
    if not masks:
        zeros = {key: int((value == 0).sum()) for key, value in tensors.items() if value.ndim in (2, 4)}
        masks = {key: tensors[key] != 0 for key, count in zeros.items() if count}
        note = f"a state_dict; {sum(zeros.values()):,} weights are 0 and count as pruned"
    return _parts.Parts(tensors, masks, {}, *_parts.pixels(tensors, ((), ())), note)
