"""Multi-Prize tickets' checkpoints (Diffenderfer & Kailkhura 2021): random weights and their scores.

`prune_rate` is the fraction that is kept, of every layer, or with `Global` in `conv_type` of all. What the
network sees, and what the ticket holds, is alpha * sign(W) where the mask keeps, with alpha = sum |W| /
int(k * n) as in their code; of a global threshold the mean |W| of what is kept. With a global one their
code raises `prune_rate` over its first epochs: a checkpoint of those has what was kept by then.
"""

import re

import numpy as np

from giung2_ext.core.errors import Refusal
from giung2_ext.storage.importers import _parts

PIXELS = ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
OTHERS = re.compile(r"_v2|cResNet(20|32|44|56|110)")  # blocks of their own; four answers an image


def build(content: _parts.Content) -> _parts.Parts | None:
    tensors = content.tensors
    scores = {key: tensors.pop(key) for key in list(tensors) if key.endswith(".scores")}
    if not scores:
        return None
    kept, kind, arch = (content.top.get(key) for key in ("prune_rate", "conv_type", "arch"))
    together = type(kind) is str and "Global" in kind
    arch = arch if type(arch) is str else ""
    if type(kept) not in (float, int, np.float64) or not 0 < kept <= 1:
        raise Refusal(f"{content.name}: scores need a prune_rate in (0, 1], the fraction that is kept")
    if OTHERS.search(arch):
        raise Refusal(f"{content.name} is a {arch[:40]}, a network that this suite has not")
    sizes = {key: np.abs(score) for key, score in scores.items()}
    cut = -np.inf
    if together:
        everything = np.sort(np.concatenate([size.reshape(-1) for size in sizes.values()]))
        pruned = int((1 - kept) * everything.size)
        cut = everything[pruned - 1] if pruned else -np.inf
    masks = {}
    for key, size in sizes.items():
        name = re.sub(r"scores$", "weight", key)
        weight = tensors.get(name)
        if weight is None or weight.shape != size.shape:
            raise Refusal(f"{content.name}: {key} has no {name} of its shape")
        mask = size > cut if together else _largest(size, kept)
        count = int(mask.sum()) if together else int(kept * size.size)
        if not count:
            raise Refusal(f"{content.name}: {name} keeps no weight at prune_rate {kept:g}")
        alpha = np.float32(np.abs(weight)[mask].sum(dtype=np.float64) / count)
        tensors[name] = np.where(mask, alpha * np.sign(weight), 0).astype(np.float32)
        masks[name] = mask
    binary = "BinAct" in arch
    if binary and "layer1.0.conv1.weight" not in tensors:
        raise Refusal(f"{content.name}: of networks with binary activations ResNets alone are imported")
    model = {"activation": "binary"} if binary else {}
    note = f"a Multi-Prize ticket, binarised, {100 * kept:g}% kept{' in all' if together else ''}"
    return _parts.Parts(tensors, masks, model, *_parts.pixels(tensors, PIXELS), note)


def _largest(size: np.ndarray, kept: float) -> np.ndarray:
    order = np.argsort(size.reshape(-1), kind="stable")
    mask = np.ones(size.size, bool)
    mask[order[: int((1 - kept) * size.size)]] = False
    return mask.reshape(size.shape)
