"""A plain state_dict, as torchvision publishes it, or one that this suite exported.

Masks are those of `torch.nn.utils.prune` (`weight_orig`, `weight_mask`) where they are there; a file of
ours says more in an entry that PyTorch does not look at, and without its masks what is 0 is pruned.
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
    masks = {
        key.removesuffix("_mask"): tensors.pop(key).astype(bool)
        for key in list(tensors)
        if key.endswith("_mask") and f"{key.removesuffix('_mask')}_orig" in tensors
    }
    for key, mask in masks.items():
        tensors[key] = np.where(mask, tensors.pop(f"{key}_orig"), 0)
    if meta is None:
        model = _parts.architecture(tensors, content.name)
        mean, std = _parts.pixels(tensors, _parts.IMAGENET)
        note = "a state_dict" + (", masks of torch.nn.utils.prune" if masks else ", no masks")
        return _parts.Parts(tensors, masks, model, mean, std, note)
    if not masks:
        masks = {key: value != 0 for key, value in tensors.items() if key in meta["exported"]["masked"]}
    pixels = meta["exported"]["mean"], meta["exported"]["std"]
    return _parts.Parts(tensors, masks, meta["model"], *pixels, "a ticket that this suite exported", meta)
