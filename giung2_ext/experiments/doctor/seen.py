"""What is remembered of a ticket that was looked at, and how its leaves are walked."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.storage import tickets
from giung2_ext.storage.tickets import Ticket

Tree = Any


class Seen(NamedTuple):
    """A name of a ticket, and of its arrays what other tickets are compared with."""

    where: str
    name: epath.Path
    digest: str  # the start of it where ticket.json cannot be read
    meta: dict[str, Any] | None = None  # None: damaged
    shapes: Mapping[str, tuple[int, ...]] = {}  # of the leaves with a mask
    packed: Mapping[str, np.ndarray] = {}  # their masks, eight weights to a byte
    layers: Mapping[str, int] = {}  # what they keep
    mask: str = ""  # digest of the masks

    @property
    def key(self) -> str:
        return key_of(self.digest)

    def masks(self) -> dict[str, np.ndarray]:
        return {leaf: masking.unpack(packed, self.shapes[leaf]) for leaf, packed in self.packed.items()}


def key_of(digest: str) -> str:
    """What a ticket's folder is called, by which its parents are found."""
    return tickets.place_of(epath.Path("."), digest).name


def look(where: str, name: epath.Path, ticket: Ticket) -> Seen:
    """What is remembered of a ticket."""
    found = {leaf: mask for leaf, mask in trees.named_leaves(ticket.masks).items() if mask is not None}
    return Seen(
        where,
        name,
        ticket.digest,
        ticket.meta,
        {leaf: mask.shape for leaf, mask in found.items()},
        {leaf: masking.pack(mask) for leaf, mask in found.items()},
        {leaf: int(mask.sum()) for leaf, mask in found.items()},
        masking.digest(ticket.masks),
    )


def masked(params: Tree, masks: Tree) -> Iterator[tuple[str, Any, Any]]:
    """(leaf, weights, mask) of every leaf that has a mask."""
    weights = trees.named_leaves(params)
    for leaf, mask in trees.named_leaves(masks).items():
        if mask is not None:
            yield leaf, weights[leaf], mask


def revived(weight: Any, mask: Any, least: float = 0.0) -> int:
    """How many values outside the mask are not 0; one that is not a number is not."""
    return int(np.count_nonzero(~mask & ~(np.abs(weight) <= np.float32(least))))
