"""The package from Python: tickets as objects, for a notebook or another program.

`import giung2_ext` makes these available as `giung2_ext.load_ticket` and so on. They are kept stable.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import flax.errors
import jax
import numpy as np
from etils import epath
from jax import Array

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import importing
from giung2_ext.experiments.building import model_of
from giung2_ext.storage import paths, survival, tickets
from giung2_ext.training.step import network

Tree = Any
Path = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True, eq=False)
class Ticket:
    """A mask, the weights that it keeps, and where they came from."""

    params: Tree  # NumPy arrays by layer, 0 where pruned
    masks: Tree  # bool, `None` where a leaf is not prunable
    statistics: Tree  # batch_stats, and image_stats: mean and std of the pixels
    lineage: Mapping[str, Any]  # model, data, seed, step, parents by digest, counts; JSON values

    def __repr__(self) -> str:
        model, data = (self.lineage[key]["name"] for key in ("model", "data"))
        kept = f"{self.lineage['kept']:,} of {self.lineage['prunable']:,} weights"
        return f"Ticket({model} on {data}, {kept}, density {self.density():.4f}, {self.digest[:16]})"

    @property
    def digest(self) -> str:
        """SHA-256 of everything that is in it."""
        return self.lineage["digest"]

    def density(self, of: str = "prunable") -> float:
        """The kept fraction of the prunable weights, or of `all` parameters (biases and scales too)."""
        kept, prunable, whole = (self.lineage[k] for k in ("kept", "prunable", "parameters"))
        if of not in ("prunable", "all"):
            raise Refusal(f"density of 'prunable' or 'all', got {of!r}")
        return kept / prunable if of == "prunable" else (whole - prunable + kept) / whole

    def layers(self) -> dict[str, tuple[int, int]]:
        """{leaf: (weights kept, weights)} of the prunable leaves."""
        return {name: (kept, size) for name, (kept, size) in self.lineage["layers"].items()}

    def overlap(self, other: "Ticket") -> float:
        """Of what one of the two keeps, the part that both keep (Jaccard index)."""
        if not isinstance(other, Ticket):
            raise Refusal(f"overlap is with a ticket, of load_ticket; got {type(other).__name__}")
        if not masking.same_layers(self.masks, other.masks):
            raise Refusal("the masks of these tickets are of other layers: they have no overlap")
        return masking.overlap(self.masks, other.masks)

    @functools.cached_property
    def apply(self) -> Callable[..., Array]:
        """`apply(images)`: logits of NHWC images, uint8 in 0..255 or floats in 0..1, by `params` if given.

        Compiled once for every shape; differentiable by `params`.
        """
        model, shape = model_of(self.lineage), self.lineage["image_shape"]

        @jax.jit
        def logits(images: Array, params: Tree) -> Array:
            return network(model, params, self.statistics, images, train=False)

        def apply(images: Array, params: Tree | None = None) -> Array:
            try:
                return logits(images, self.params if params is None else params)
            except flax.errors.ScopeParamShapeError as error:
                raise Refusal(
                    f"images are {tuple(images.shape)}, the network was trained on {tuple(shape)}"
                ) from error

        return apply


def load_ticket(path: Path, *, like: Path | None = None, data_name: str | None = None) -> Ticket:
    """Any checkpoint of a run, a compact ticket or a checkpoint of the original suite, verified; a file of
    PyTorch or safetensors that `scripts/convert.py` can import too.

    Of such a file `like` names a ticket of the same network, or `data_name` the set that it is of, where
    the file does not tell.
    """
    wishes = importing.Wishes(None if like is None else os.fspath(like), data_name)
    ticket, _ = importing.open_any(epath.Path(path), wishes)
    return Ticket(ticket.params, ticket.masks, ticket.statistics, ticket.meta)


def save_ticket(
    folder: Path, params: Tree, masks: Tree, like: Ticket, statistics: Tree | None = None
) -> Ticket:
    """Writes a ticket of the network of another one, as `folder/last.ckpt`; `like` is named its parent.

    Weights are 0 where the mask is: a mask of other leaves or shapes than the weights is refused.
    """
    if not isinstance(like, Ticket):
        raise Refusal(f"like is a ticket, of load_ticket; got {type(like).__name__}")
    soft = [
        n for n, m in trees.named_leaves(masks).items() if m is not None and not np.isin(m, (0, 1)).all()
    ]
    if soft:
        raise Refusal(f"masks are True or False; that of {soft[0]} has other values")
    statistics = {**like.statistics, **(statistics or {})}
    problem = trees.first_mismatch(like.params, params) or trees.first_mismatch(like.statistics, statistics)
    stored, wanted = trees.named_leaves(masks), trees.named_leaves(like.masks)
    for name, mask in wanted.items():
        if (mask is None) != (stored.get(name) is None) or (
            mask is not None and mask.shape != stored[name].shape
        ):
            problem = problem or f"the mask of {name!r}"
    if problem or stored.keys() != wanted.keys():
        raise Refusal(f"not of the network of {like.digest[:16]}: {problem or 'the names of its masks'}")
    if any(leaf.dtype != np.float32 for leaf in jax.tree.leaves(params)):
        raise Refusal("parameters of a ticket are float32: convert them")
    host: Callable[[Tree], Tree] = lambda tree: jax.tree.map(np.asarray, tree)  # noqa: E731
    bits = trees.map_present(lambda mask: np.asarray(mask, bool), masks)
    params = masking.apply_on_host(bits, params)
    lineage = {**like.lineage, "parents": {"like": like.digest}}
    kept = host(statistics)
    made = tickets.make_ticket(params, bits, kept, lineage)
    importing.write(epath.Path(folder), made)
    return Ticket(made.params, made.masks, made.statistics, made.meta)


def load_chain_masks(path: Path) -> list[Tree]:
    """The masks of every cycle of a chain: its folder, or its map (`convert.py CHAIN --to=MAP.npz`)."""
    place = epath.Path(path)
    if place.is_dir():
        return [tickets.read_ticket(cycle / paths.LAST).masks for cycle in paths.finished_cycles(place)]
    found = survival.from_bytes(place.read_bytes(), os.fspath(path))
    return [found.masks(cycle) for cycle in range(found.cycles)]
