"""Another suite's arrays under the names and in the layouts of a network of this one.

What is left over on either side, or of another shape, is refused.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments.building import count_uses, model_of
from giung2_ext.models import _torch_names
from giung2_ext.storage.importers._parts import Arrays, Parts

FEW = 5  # names in a message
KERNELS = ("conv", "dense", "kernel")  # kinds of entries that have masks
RULES = ("conv", "body", "inner", "blocks", "kernels")  # the first that has all masked leaves


def _names(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f", … ({len(listed)} in all)" if len(listed) > FEW else ""
    return ", ".join(listed[:FEW]) + more


class Network(NamedTuple):
    """What a file must fit."""

    entries: list[_torch_names.Entry]
    leaves: dict[str, tuple[int, ...]]  # of parameters
    statistics: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "Network":
        """`about` is a ticket's meta, or the part of it that says what network it is."""
        found = count_uses(model_of(about), about["image_shape"])[:2]
        trees_of = (found[0], found[1].get("batch_stats", {}))
        leaves, statistics = (
            {name: tuple(leaf.shape) for name, leaf in trees.named_leaves(tree).items()}
            for tree in trees_of
        )
        named = _torch_names.entries(about["model"], leaves, statistics, about["image_shape"])
        return cls(named, leaves, statistics)

    def shape(self, entry: _torch_names.Entry) -> tuple[int, ...]:
        return (self.statistics if entry.kind == "statistic" else self.leaves)[entry.ours]


def rename(tensors: Arrays, network: Network, name: str) -> tuple[Arrays, Arrays]:
    """Parameters and statistics in our names and layouts.

    Where a suite has no bias at all, or no parameter in its normalisations, they are those that do nothing.
    """
    left, missing = dict(tensors), []
    found: tuple[Arrays, Arrays] = ({}, {})
    there = {entry.kind for entry in network.entries if entry.theirs in tensors}
    for entry in network.entries:
        shape, group = network.shape(entry), found[entry.kind == "statistic"]
        tensor = left.pop(entry.theirs, None)
        if tensor is None and entry.kind in ("norm", "bias") and entry.kind not in there:
            group[entry.ours] = np.full(shape, entry.ours.endswith("scale"), np.float32)
        elif tensor is None:
            missing.append(entry.theirs)
        else:
            group[entry.ours] = _fitting(entry, tensor, shape, name).astype(np.float32)
    if missing or left:
        told = [f"it lacks {_names(missing)}"] if missing else []
        told += [f"it has {_names(left)}, which the network has not"] if left else []
        raise Refusal(f"{name}: {'; '.join(told)}")
    return found


def _fitting(
    entry: _torch_names.Entry, tensor: np.ndarray, shape: tuple[int, ...], name: str
) -> np.ndarray:
    leaf = _torch_names.from_torch(entry, tensor)
    if leaf.shape != shape:
        raise Refusal(
            f"{name}: {entry.theirs} has shape {tensor.shape}, the network's has "
            f"{_torch_names.to_torch(entry, np.empty(shape, bool)).shape}"
        )
    return np.ascontiguousarray(leaf)


def place_masks(parts: Parts, network: Network, name: str) -> Arrays:
    """The masks in our names and layouts."""
    weights = {entry.theirs: entry for entry in network.entries if entry.kind in KERNELS}
    given = parts.masks
    if not isinstance(given, Mapping):
        if len(given) != len(weights):
            raise Refusal(f"{name} has {len(given)} masks of weights, the network {len(weights)} weights")
        given = {key: mask for key, mask in zip(weights, given, strict=True) if mask is not None}
    foreign = given.keys() - weights.keys()
    if foreign:
        raise Refusal(f"{name} has masks of {_names(foreign)}, which the network has not")
    return {
        weights[key].ours: _fitting(weights[key], mask, network.shape(weights[key]), name)
        for key, mask in given.items()
    }


def choose_rule(params: trees.Tree, masked: Iterable[str], wanted: str | None, name: str) -> str:
    """The named rule of prunable leaves, as narrow as the masks allow."""
    masked = set(masked)
    for rule in [wanted] if wanted else RULES:
        prunable = {n for n, m in trees.named_leaves(masking.dense(params, rule)).items() if m is not None}
        if prunable and masked <= prunable:
            return rule
    raise Refusal(
        f"{name}: no rule of prunable leaves ({wanted or ', '.join(RULES)}) has all of {_names(masked)}"
    )


def assemble(
    params: Arrays, given: Arrays, wanted: str | None, name: str
) -> tuple[trees.Tree, trees.Tree, str]:
    """Parameters, 0 where pruned, and masks as trees, with the rule of what is prunable."""
    rule = choose_rule(trees.nest(params), given, wanted, name)
    dense = trees.named_leaves(masking.dense(trees.nest(params), rule))
    masks = {n: None if mask is None else given.get(n, np.asarray(mask)) for n, mask in dense.items()}
    return masking.apply_on_host(*map(trees.nest, (masks, params))), trees.nest(masks), rule
