"""A ticket's arrays one leaf at a time, for what must not hold a whole network: overlaps, histograms.

The weights' digest is not recomputed: every array has the checksum of its archive, and every mask must keep
as many weights as the ticket says.
"""

from types import TracebackType
from typing import Self

import numpy as np
from etils import epath

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.storage import paths, tickets


class Leaves:
    """An open ticket: `with Leaves(name) as leaves`."""

    def __init__(self, name: epath.Path):
        self.name, self.meta = name, tickets.read_meta(name)
        self.layers: dict[str, list[int]] = self.meta["layers"]  # [kept, of] of every prunable leaf
        self.whole = tickets.read_ticket(name) if paths.is_single(name) else None
        if self.whole is None:
            self.file = (paths.resolve(name) / tickets.ARRAYS).open("rb")
            try:
                self.stored = np.load(self.file, allow_pickle=False)
            except Exception as error:
                self.file.close()
                raise self._damaged(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.whole is None:
            self.stored.close()
            self.file.close()

    def packed(self, leaf: str) -> np.ndarray:
        """A mask, eight weights a byte."""
        if self.whole is not None:
            return masking.pack(trees.named_leaves(self.whole.masks)[leaf])
        found = self._read(f"masks/{leaf}")
        if int(np.bitwise_count(found).sum()) != self.layers[leaf][0]:
            raise self._damaged(f"the mask of {leaf} does not keep {self.layers[leaf][0]:,} weights")
        return found

    def weights(self, leaf: str) -> np.ndarray:
        """A leaf's weights, flat; 0 where they are pruned."""
        if self.whole is not None:
            return np.asarray(trees.named_leaves(self.whole.params)[leaf]).ravel()
        return self._read(f"params/{leaf}").ravel()

    def _read(self, key: str) -> np.ndarray:
        try:
            return self.stored[key]
        except Exception as error:  # a damaged zip raises a dozen kinds
            raise self._damaged(error) from error

    def _damaged(self, why: object) -> Refusal:
        return Refusal(f"{self.name} is damaged: cannot read its {tickets.ARRAYS} ({why})")


def read_packed(name: epath.Path) -> dict[str, np.ndarray]:
    """All masks of a ticket, packed: a thirty-second of its weights."""
    with Leaves(name) as leaves:
        return {leaf: leaves.packed(leaf) for leaf in leaves.layers}
