"""Which of our networks a file of PyTorch's names and shapes is of, and with which options."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from giung2_ext.core.errors import Refusal


def options_of(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
    """The model and its options that names and shapes tell."""
    if "conv1.weight" in tensors and "layer1.0.conv1.weight" in tensors:
        return _resnet(tensors)
    if "features.0.weight" in tensors:
        return _vgg(tensors, name)
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
    width = inner[0] // planes if bottleneck else 1
    stages_of = tuple(n // width for n in inner)
    if stages_of != (64, 128, 256, 512):
        found["planes"] = stages_of
    stem = "large" if tensors["conv1.weight"].shape[-1] == 7 else "small"
    return {"name": "resnet", "depth": depth, "width": width, "stem": stem} | found


def _vgg(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
    convolutions = sorted(
        (int(key.split(".")[1]), len(value))
        for key, value in tensors.items()
        if re.fullmatch(r"features\.\d+\.weight", key) and value.ndim == 4
    )
    plan = {16: "19", 13: "16", 6: "small"}.get(len(convolutions))
    if plan is None:
        raise Refusal(f"{name} is a VGG of {len(convolutions)} convolutions; known are 16, 13 and 6")
    first = 128 if plan == "small" else 64
    head = "dense" if "classifier.6.weight" in tensors else "mean"
    if head == "mean":
        last = tensors.get("classifier.weight")
        if last is None:
            raise Refusal(f"{name} is a VGG without classifier.weight or classifier.6.weight")
        head = "mean" if last.shape[1] == convolutions[-1][1] else "flat"
    norm = any(key.endswith("running_mean") for key in tensors)
    return {"name": "vgg", "plan": plan, "width": convolutions[0][1] / first, "norm": norm, "head": head}
