"""Lottery Jackpots' checkpoints (Zhang et al. 2021), of both generations of their code.

The second stores the mask (`b_mask`) beside the scores (`mask`); the first scores alone, whose smallest
int(rate * n) are pruned, with the rate of every layer in `cfg`. The published files are of the first, which
the code of the second does not load.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from giung2_ext.core.errors import Refusal
from giung2_ext.storage.importers import _parts

PIXELS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def build(content: _parts.Content) -> _parts.Parts | None:
    tensors = content.tensors
    scores = [key for key in tensors if key.endswith(".mask")]
    if not scores:
        return None
    found = {key: tensors.pop(key) for key in scores}
    kept = {key: tensors.pop(key) for key in list(tensors) if key.endswith(".b_mask")}
    if kept:
        if {key.replace(".b_mask", ".mask") for key in kept} != set(found):
            raise Refusal(f"{content.name}: not every layer with scores has a b_mask")
        masks = {
            key.replace(".b_mask", ".weight"): _parts.bits(f"{key} of {content.name}", mask)
            for key, mask in kept.items()
        }
        note = "Lottery Jackpots' checkpoint, its masks"
    else:
        masks = _of_scores(found, content)
        note = "Lottery Jackpots' first checkpoint, masks of its scores"
    for key, mask in masks.items():
        if key in tensors and tensors[key].shape == mask.shape:
            tensors[key] = np.where(mask, tensors[key], 0)
    return _parts.Parts(tensors, masks, {}, *_parts.pixels(tensors, PIXELS), note)


def _of_scores(scores: Mapping[str, np.ndarray], content: _parts.Content) -> dict[str, np.ndarray]:
    rates: Any = content.top.get("cfg")
    if rates is None or len(rates) != len(scores):
        raise Refusal(
            f"{content.name}: scores of {len(scores)} layers without b_mask need as many rates in cfg, "
            f"which has {0 if rates is None else len(rates)}"
        )
    masks = {}
    for (key, score), rate in zip(scores.items(), rates, strict=True):
        order = np.argsort(np.abs(score).reshape(-1), kind="stable")
        mask = np.ones(score.size, bool)
        mask[order[: int(float(rate) * score.size)]] = False
        masks[key.replace(".mask", ".weight")] = mask.reshape(score.shape)
    return masks
