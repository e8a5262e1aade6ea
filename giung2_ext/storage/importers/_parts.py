"""What importers take and give."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from giung2_ext.core.errors import Refusal

Arrays = dict[str, np.ndarray]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
COUNTED = re.compile(r"num_batches_tracked$")  # by PyTorch, and used by nobody


class Content(NamedTuple):
    """A file as it was read."""

    name: str
    top: Any
    extra: dict[str, bytes]

    @property
    def tensors(self) -> Arrays:
        """Its state_dict, without the prefix of a network that trained on several devices."""
        found = self.top
        if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
            found = found["state_dict"]
        if not isinstance(found, Mapping) or not all(isinstance(k, str) for k in found):
            return {}
        bare = {name.removeprefix("module."): value for name, value in found.items()}
        if "layer1.0.conv1.weight" in bare:  # of a ResNet whose classifier is called otherwise
            bare = {re.sub(r"^linear\.", "fc.", name): value for name, value in bare.items()}
        ours, theirs = ".downsample.", ".shortcut."  # two names of a projection
        if not any(name.startswith("layer4.") for name in bare):
            ours, theirs = theirs, ours
        return {
            name.replace(theirs, ours): np.asarray(value)
            for name, value in bare.items()
            if isinstance(value, np.ndarray | np.generic) and not COUNTED.search(name)
        }

    def has(self, *keys: str) -> bool:
        return isinstance(self.top, Mapping) and all(key in self.top for key in keys)


class Parts(NamedTuple):
    """A network in PyTorch's names and layouts."""

    tensors: Arrays
    masks: Mapping[str, np.ndarray] | Sequence[np.ndarray | None]
    """By the names of weights, or of all weights of convolutions and dense layers in their order"""
    model: dict[str, Any]  # options of the network that names and shapes do not tell
    mean: Sequence[float]  # of the pixels; empty: the data's own
    std: Sequence[float]
    note: str
    meta: dict[str, Any] | None = None  # of a ticket that this suite exported
    step: int | None = None


def bits(name: str, mask: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """A mask of 0 and 1, of its weight's shape, as booleans."""
    found = np.asarray(mask)
    if not np.isin(found, (0, 1)).all():
        raise Refusal(f"the mask {name} is not 0 or 1 everywhere")
    if weight is not None and weight.shape != found.shape:
        raise Refusal(f"the mask {name} has shape {found.shape}, its weight {weight.shape}")
    return found.astype(bool)


def pixels(tensors: Mapping[str, np.ndarray], small: tuple[Any, Any]) -> tuple[Any, Any]:
    """Mean and std of the images: of ImageNet's for a network with a stem for large ones."""
    stem = tensors.get("conv1.weight")
    large = "classifier.6.weight" in tensors or (stem is not None and stem.shape[-1] == 7)
    return IMAGENET if large else small
