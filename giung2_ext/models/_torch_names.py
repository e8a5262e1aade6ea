"""What public PyTorch code calls the layers of our networks, in our order.

ResNets are named as in torchvision (those for small images with `shortcut` for `downsample`), VGGs as in
torchvision and Lottery Jackpots, Conv-2 to 8 and LeNet as in Multi-Prize tickets. There a kernel is
transposed from HWIO to OIHW, and the first dense layer after a flattened map also has its rows reordered,
because PyTorch flattens channels first. Other networks keep our names and layouts.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from giung2_ext.models import resnet, vgg

Options = Mapping[str, Any]


class Layer(NamedTuple):
    ours: str
    theirs: str
    kind: str  # conv | norm | dense
    channels: int = 0  # of the map that a dense layer takes flattened, 0: a vector


class Entry(NamedTuple):
    """A leaf of a network."""

    ours: str
    theirs: str
    kind: str
    """conv or dense: a kernel, kernel: one that stays as it is; bias: of one; norm: a parameter of a
    normalisation, statistic: of one; plain: anything else"""
    channels: int = 0


LEAVES = dict(kernel="weight", scale="weight", bias="bias", mean="running_mean", var="running_var")
Shape = tuple[int, ...]


def _resnet(options: Options, stages: Sequence[int], bottleneck: bool, cut: str) -> Iterator[Layer]:
    """`cut` is what the projection of a shortcut is called; the first stage has one if it changes shape."""
    count = 0

    def pair(conv: str, norm: str) -> Iterator[Layer]:
        nonlocal count
        yield Layer(f"Conv_{count}", conv, "conv")
        yield Layer(f"BatchNorm_{count}", norm, "norm")
        count += 1

    yield from pair("conv1", "bn1")
    for stage, blocks in enumerate(stages):
        for block in range(blocks):
            place = f"layer{stage + 1}.{block}"
            for index in range(1, 4 if bottleneck else 3):
                yield from pair(f"{place}.conv{index}", f"{place}.bn{index}")
            changes = stage > 0 or bottleneck or options.get("width", 1) > 1
            if block == 0 and changes and options.get("shortcut", "projection") == "projection":
                yield from pair(f"{place}.{cut}.0", f"{place}.{cut}.1")
    yield Layer("cls", "fc", "dense")


def _vgg(options: Options, leaves: Mapping[str, Shape]) -> Iterator[Layer]:
    stages, norm = vgg.PLANS[options.get("plan", "19")], options.get("norm", True)
    index = count = 0
    for stage in stages:
        for _ in stage:
            yield Layer(f"Conv_{count}", f"features.{index}", "conv")
            if norm:
                yield Layer(f"BatchNorm_{count}", f"features.{index + 1}", "norm")
            index, count = index + 2 + norm, count + 1
        index += 1  # the pooling
    channels = leaves[f"Conv_{count - 1}/kernel"][-1]
    head = options.get("head", "mean")
    if head == "dense":
        yield Layer("Dense_0", "classifier.0", "dense", channels)
        yield Layer("Dense_1", "classifier.3", "dense")
        yield Layer("cls", "classifier.6", "dense")
    else:
        yield Layer("cls", "classifier", "dense", channels if head == "flat" else 0)


def _conv(options: Options, leaves: Mapping[str, Shape]) -> Iterator[Layer]:
    depth = options.get("depth", 2)
    for index in range(depth):
        yield Layer(f"Conv_{index}", f"convs.{2 * index + index // 2}", "conv")
    yield Layer("Dense_0", "linear.0", "dense", leaves[f"Conv_{depth - 1}/kernel"][-1])
    yield Layer("Dense_1", "linear.2", "dense")
    yield Layer("cls", "linear.4", "dense")


def _lenet(options: Options, image_shape: Sequence[int]) -> Iterator[Layer]:
    hidden = len(options.get("hidden", (300, 100)))
    for index in range(hidden + 1):
        ours = f"Dense_{index}" if index < hidden else "cls"
        yield Layer(ours, f"linear.{2 * index}", "dense", 0 if index else image_shape[-1])


def _named(
    model: Options, leaves: Mapping[str, Shape], image_shape: Sequence[int]
) -> Iterator[Layer] | None:
    name = model["name"]
    if name == "resnet":
        depth = model.get("depth", 50)
        return _resnet(model, resnet.BLOCKS[depth], depth >= 50, "downsample")
    if name == "resnet_cifar":
        return _resnet(model, ((model.get("depth", 20) - 2) // 6,) * 3, False, "shortcut")
    if name == "vgg":
        return _vgg(model, leaves)
    if name == "conv" and not model.get("norm", False):
        return _conv(model, leaves)
    return _lenet(model, image_shape) if name == "lenet" else None


def entries(
    model: Options, leaves: Mapping[str, Shape], statistics: Mapping[str, Shape], image_shape: Sequence[int]
) -> list[Entry]:
    """All leaves of a network in the order of PyTorch's layers.

    `model` are name and options, `leaves` and `statistics` the shapes of parameters and batch statistics.
    """
    layers = _named(model, leaves, image_shape)
    if layers is None:
        dotted = {ours: ours.replace("/", ".") for ours in (*leaves, *statistics)}
        kind = lambda ours: "kernel" if ours.endswith("kernel") else "plain"  # noqa: E731
        own = [Entry(ours, dotted[ours], kind(ours)) for ours in leaves]
        return own + [Entry(ours, dotted[ours], "statistic") for ours in statistics]
    found = []
    for layer in layers:
        for leaf, theirs in LEAVES.items():
            ours, name = f"{layer.ours}/{leaf}", f"{layer.theirs}.{theirs}"
            if leaf == "kernel" and ours in leaves:
                found.append(Entry(ours, name, layer.kind, layer.channels))
            elif ours in leaves:
                found.append(Entry(ours, name, "norm" if layer.kind == "norm" else "bias"))
            elif ours in statistics:
                found.append(Entry(ours, name, "statistic"))
    return found


def _flat_order(rows: int, channels: int) -> np.ndarray:
    """Of a flattened square map: where each of PyTorch's rows (C, H, W) is among ours (H, W, C)."""
    return np.arange(rows).reshape(-1, channels).T.reshape(-1)


def to_torch(entry: Entry, leaf: np.ndarray) -> np.ndarray:
    """Our leaf, or a mask of its shape, as PyTorch has it."""
    if entry.kind == "conv":
        return leaf.transpose(3, 2, 0, 1)
    if entry.kind != "dense":
        return leaf
    if entry.channels > 1:
        leaf = leaf[_flat_order(len(leaf), entry.channels)]
    return leaf.T


def from_torch(entry: Entry, tensor: np.ndarray) -> np.ndarray:
    """PyTorch's tensor as our leaf; a dense layer may be a convolution of 1x1 there."""
    if entry.kind == "conv" and tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    if entry.kind != "dense" or tensor.ndim not in (2, 4) or tensor.shape[2:] not in ((), (1, 1)):
        return tensor
    leaf = tensor.reshape(tensor.shape[:2]).T
    if entry.channels > 1 and len(leaf) % entry.channels == 0:
        leaf = leaf[np.argsort(_flat_order(len(leaf), entry.channels))]
    return leaf
