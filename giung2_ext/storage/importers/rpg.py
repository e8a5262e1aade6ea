"""RPG's checkpoints (Tian et al. 2023): a state_dict and, in `pruner`, the masks of all its layers.

`backward_masks` are in the order of the convolutions and the classifier. They are the last update's: a
weight that a mask keeps may be 0, one that it does not is.
"""

from giung2_ext.core.errors import Refusal
from giung2_ext.storage.importers import _parts


def build(content: _parts.Content) -> _parts.Parts | None:
    if not content.has("state_dict", "pruner"):
        return None
    pruner, tensors = content.top["pruner"], content.tensors
    masks = pruner.get("backward_masks") if isinstance(pruner, dict) else None
    if not masks:
        raise Refusal(f"{content.name}: its pruner has no backward_masks")
    masks = [
        None if mask is None else _parts.bits(f"{i} of {content.name}", mask)
        for i, mask in enumerate(masks)
    ]
    note = f"RPG's checkpoint, {len(masks)} masks of its pruner"
    step = pruner.get("step") if type(pruner.get("step")) is int else None
    return _parts.Parts(tensors, masks, {}, *_parts.IMAGENET, note, step=step)
