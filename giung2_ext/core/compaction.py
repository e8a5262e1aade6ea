"""Takes out of a network the channels that its mask has killed: smaller leaves, the same logits.

A channel is dead if every product that sums over it adds 0 for it: its weights there are 0 (no fan-out),
or its value is, whatever the image (no fan-in, and a ReLU stops what biases, BatchNorm and residual sums
make of that). That no image changes a value is proved from the weights, and then the value is read off one
pass. Dead channels are set to 0 everywhere, which may kill others, until there are no more. Channels that
have one value each, not 0, and are read by one product only become one: exact at padded borders, where a
bias in their place would not be, and up to rounding, as all of this is. Constants that several layers
read stay, and every layer keeps a channel, of zeros if all are dead.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from giung2_ext.core import channels as tracing
from giung2_ext.core import influence, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.channels import Labelling, Product
from giung2_ext.core.influence import Seen

Tree = Any
Leaves = dict[str, np.ndarray]


class Compacted(NamedTuple):
    params: Tree
    statistics: Tree
    masks: Tree
    layers: dict[str, tuple[int, int]]
    """(channels left, channels before) of every kernel's outputs, in the order in which they are made"""

    @property
    def removed(self) -> int:
        return sum(before - left for left, before in self.layers.values())


def compact(
    forward: Callable[[Tree, Tree, Any], Any], params: Tree, statistics: Tree, masks: Tree, image: Any
) -> Compacted:
    """Of the network `forward(params, statistics, image)`, where `image` is a batch of one, any one."""
    whole = (masking.apply_on_host(masks, params), statistics)
    program = jax.make_jaxpr(lambda leaves, image: forward(leaves[0], leaves[1], image))(whole, image)
    network = tracing.trace(program, whole)
    look = influence.observer(program, network, image)

    leaves = {name: np.array(leaf) for name, leaf in trees.named_leaves(whole).items()}
    named = trees.named_leaves((masks,)).items()
    kept = {name: np.array(mask) for name, mask in named if mask is not None}
    gone = np.zeros(network.size, bool)
    while True:
        seen = look(leaves)
        dead = _dead(network, seen)
        if not (dead & ~gone).any() and not _fold(network, seen, leaves, kept):
            break
        gone |= dead
        for group in (leaves, kept):
            _clear(network, group, gone)
    cut = _spare(network.products, gone)
    layers = {
        p.leaf.partition("/")[2]: (int((~cut[p.columns]).sum()), len(p.columns))
        for p in network.products
        if p.leaf
    }
    if all(left == before for left, before in layers.values()):
        return Compacted(*whole, masks, layers)
    params, statistics = _rebuilt(whole, _cut(network, leaves, cut))
    (masks,) = _rebuilt((masks,), _cut(network, kept, cut))
    return Compacted(params, statistics, masks, layers)


def _dead(network: Labelling, seen: list[Seen]) -> np.ndarray:
    """The channels that products make and none needs."""
    made, needed = np.zeros((2, network.size), bool)
    needed[0] = True
    for product, found in zip(network.products, seen, strict=True):
        silent = found.unused | (~found.varies & (found.low == 0) & (found.high == 0))
        needed[product.rows[~silent]] = True
        made[product.columns] = True
    return made & ~needed


def _fold(network: Labelling, seen: list[Seen], leaves: Leaves, kept: Leaves) -> bool:
    """Gives one of the constant channels of a product the weights of all; whether there was a second."""
    users = np.zeros(network.size, int)
    for product in network.products:
        users[np.unique(product.rows)] += 1
    folded = False
    for product, found in zip(network.products, seen, strict=True):
        steady = ~found.varies & (found.low == found.high) & np.isfinite(found.low) & (found.low != 0)
        other = np.zeros(network.size, bool)
        other[product.rows[~(steady | found.unused)]] = True
        alone = ~other[product.rows] & (users[product.rows] == 1) & (product.rows != 0)
        rows = np.flatnonzero(steady & ~found.unused & alone)
        if len(np.unique(product.rows[rows])) < 2:
            continue
        best = rows[np.abs(found.low[rows]).argmax()]
        kernel = np.moveaxis(leaves[product.leaf], product.row, 0)  # a view
        total = np.tensordot(found.low[rows].astype(np.float64), kernel[rows], 1)
        kernel[rows] = 0
        kernel[best] = total / found.low[best]
        if product.leaf in kept:
            mask = np.moveaxis(kept[product.leaf], product.row, 0)
            union = mask[rows].any(0)
            mask[rows] = False
            mask[best] = union
        folded = True
    return folded


def _spare(products: list[Product], gone: np.ndarray) -> np.ndarray:
    """All of them but one of every layer that would have none left."""
    cut = gone.copy()
    for product in products:
        if cut[product.columns].all():
            cut[product.columns[0]] = False
    return cut


def _clear(network: Labelling, leaves: Leaves, gone: np.ndarray) -> None:
    for name, leaf in leaves.items():
        for i, axis in enumerate(network.of[name]):
            np.moveaxis(leaf, i, 0)[gone[axis]] = 0


def _cut(network: Labelling, leaves: Leaves, cut: np.ndarray) -> Leaves:
    found = dict(leaves)
    for name in found:
        for i, axis in enumerate(network.of[name]):
            found[name] = np.compress(~cut[axis], found[name], i)
    return found


def _rebuilt(tree: Tree, leaves: Leaves) -> Tree:
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[trees.path_name(path)], tree)
