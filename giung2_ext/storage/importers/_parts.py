"""What importers take and give, and what kind of network a file's names and shapes are of."""

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
    model: dict[str, Any]
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


def architecture(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
    """The model and its options that names and shapes tell."""
    if "conv1.weight" in tensors and "layer1.0.conv1.weight" in tensors:
        return _resnet(tensors)
    if "features.0.weight" in tensors:
        return _vgg(tensors)
    convolutions = sum(bool(re.fullmatch(r"convs\.\d+\.weight", key)) for key in tensors)
    dense = sorted(int(key.split(".")[1]) for key in tensors if re.fullmatch(r"linear\.\d+\.weight", key))
    if convolutions and dense:
        return {"name": "conv", "depth": convolutions}
    if dense:
        widths = (len(tensors[f"linear.{index}.weight"]) for index in dense[:-1])
        return {"name": "lenet", "hidden": tuple(widths)}
    few = ", ".join(list(tensors)[:4])
    raise Refusal(
        f"{name}: no network of this suite has layers called {few or '(no tensors)'}, …; known are the "
        "names of torchvision's ResNets and VGGs, of ResNets for small images, and of Multi-Prize tickets' "
        "Conv-2 to 8"
    )


def _resnet(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    places = {m.groups() for key in tensors if (m := re.match(r"layer(\d+)\.(\d+)\.", key))}
    stages = sorted({int(stage) for stage, _ in places})
    bottleneck = "layer1.0.conv3.weight" in tensors
    blocks, planes = len(places), len(tensors["conv1.weight"])
    found: dict[str, Any] = {"padding": "torch", "head": "biased" if "fc.bias" in tensors else "zero"}
    if len(stages) == 3:
        projected = any(".shortcut." in key or ".downsample." in key for key in tensors)
        shortcut = "projection" if projected else "pad"
        width = len(tensors["layer1.0.conv1.weight"]) // planes
        size = {"depth": 2 * blocks + 2, "planes": planes, "width": width, "shortcut": shortcut}
        return {"name": "resnet_cifar"} | size | found
    inner = [len(tensors[f"layer{stage}.0.conv1.weight"]) for stage in stages]
    depth = (3 if bottleneck else 2) * blocks + 2
    size = {"depth": depth, "width": inner[0] // planes if bottleneck else 1}
    stages_of = tuple(n // size["width"] for n in inner)
    if stages_of != (64, 128, 256, 512):
        size["planes"] = stages_of
    stem = "large" if tensors["conv1.weight"].shape[-1] == 7 else "small"
    return {"name": "resnet"} | size | found | {"stem": stem}


def _vgg(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    convolutions = sorted(
        (int(key.split(".")[1]), len(value))
        for key, value in tensors.items()
        if re.fullmatch(r"features\.\d+\.weight", key) and value.ndim == 4
    )
    plan = {16: "19", 13: "16", 6: "small"}.get(len(convolutions))
    if plan is None:
        raise Refusal(f"a VGG of {len(convolutions)} convolutions; known are 16, 13 and 6")
    first = 128 if plan == "small" else 64
    head = "dense" if "classifier.6.weight" in tensors else "mean"
    if head == "mean":
        last = tensors.get("classifier.weight")
        if last is None:
            raise Refusal("a VGG without classifier.weight or classifier.6.weight")
        head = "mean" if last.shape[1] == convolutions[-1][1] else "flat"
    norm = any(key.endswith("running_mean") for key in tensors)
    return {"name": "vgg", "plan": plan, "width": convolutions[0][1] / first, "norm": norm, "head": head}


def pixels(tensors: Mapping[str, np.ndarray], small: tuple[Any, Any]) -> tuple[Any, Any]:
    """Mean and std of the images: of ImageNet's for a network with a stem for large ones."""
    stem = tensors.get("conv1.weight")
    large = "classifier.6.weight" in tensors or (stem is not None and stem.shape[-1] == 7)
    return IMAGENET if large else small
