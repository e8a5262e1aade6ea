"""Masks: bool trees, True = kept, `None` where a leaf is not prunable."""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal, unknown

Tree = Any

# Which leaves are prunable differs by line of work, so it is a named rule. Only leaves called `kernel`
# are: never biases, normalisation, tokens or positions. A model's classifier is called `cls`; the layer
# that takes the image is the first of FIRST that the network has.
FIRST = ("patches", "Conv_0", "Dense_0", "cls")
PRUNABLE: dict[str, Callable[[list[str], Any, str], bool]] = {
    "conv": lambda path, kernel, first: kernel.ndim == 4,
    "kernels": lambda path, kernel, first: True,
    "body": lambda path, kernel, first: "cls" not in path,
    "inner": lambda path, kernel, first: path[0] != first,
    "blocks": lambda path, kernel, first: any(part.startswith("Block_") for part in path),
}


def dense(params: Tree, prunable: str) -> Tree:
    """All-True masks on the leaves that the rule names."""
    if prunable not in PRUNABLE:
        raise unknown("rule for prunable leaves", prunable, PRUNABLE)
    rule, first = PRUNABLE[prunable], next((name for name in FIRST if name in params), "")
    if prunable == "inner" and not first:
        raise Refusal(
            f"config.masks.prunable=inner knows the first layer as {', '.join(FIRST)}; none is here"
        )

    def mask(keys: Any, leaf: Any) -> np.ndarray | None:
        path = trees.path_name(keys).split("/")
        return np.ones(leaf.shape, bool) if path[-1] == "kernel" and rule(path, leaf, first) else None

    return jax.tree_util.tree_map_with_path(mask, params)


KINDS = ("conv", "dense", "cls")


def kinds(masks: Tree) -> Tree:
    """What sort of layer every prunable leaf is: the classifier, a convolution, or another matrix."""

    def kind(keys: Any, mask: Any) -> str:
        if "cls" in trees.path_name(keys).split("/"):
            return "cls"
        return "conv" if mask.ndim == 4 else "dense"

    return jax.tree_util.tree_map_with_path(kind, masks)


def apply(masks: Tree, params: Tree) -> Tree:
    """`where(mask, w, 0)`: never a product, so a pruned infinity does not become NaN."""
    return jax.tree.map(
        lambda m, w: w if m is None else jnp.where(m, w, jnp.zeros((), w.dtype)),
        masks,
        params,
        is_leaf=trees.is_none,
    )


def apply_on_host(masks: Tree, params: Tree) -> Tree:
    """The same in NumPy, where nothing is compiled."""
    return jax.tree.map(
        lambda m, w: np.asarray(w) if m is None else np.where(m, w, np.zeros((), w.dtype)),
        masks,
        params,
        is_leaf=trees.is_none,
    )


def counts(masks: Tree) -> Tree:
    """int32 kept count of every leaf."""
    return trees.map_present(lambda m: jnp.sum(m, dtype=jnp.int32), masks)


def kept(masks: Tree) -> Array:
    return sum(trees.present(counts(masks)), jnp.int32(0))


def size(masks: Tree) -> int:
    """How many weights are prunable: the denominator of density."""
    return sum(leaf.size for leaf in trees.present(masks))


def density(masks: Tree) -> Array:
    return kept(masks).astype(jnp.float32) / size(masks)


def same_layers(a: Tree, b: Tree) -> bool:
    """Whether two masks are of leaves of the same names and shapes."""
    ours, theirs = (
        {name: mask.shape for name, mask in trees.named_leaves(tree).items() if mask is not None}
        for tree in (a, b)
    )
    return ours == theirs


def overlap(a: Tree, b: Tree) -> float:
    """Jaccard index |a and b| / |a or b| of two masks, on the host."""
    pairs = list(zip(trees.present(a), trees.present(b), strict=True))
    both = sum(int(np.count_nonzero(np.logical_and(x, y))) for x, y in pairs)
    either = sum(int(np.count_nonzero(np.logical_or(x, y))) for x, y in pairs)
    return both / either if either else 1.0


def chance_overlap(a: Tree, b: Tree) -> float:
    """Expected |a and b| / |a or b| of masks with these per-layer densities, drawn independently."""
    pairs = list(zip(trees.present(a), trees.present(b), strict=True))
    both = sum(float(x.mean()) * float(y.mean()) * x.size for x, y in pairs)
    either = sum(float(x.sum()) + float(y.sum()) for x, y in pairs) - both
    return both / either if either else 1.0


def nested(inner: Tree, outer: Tree) -> Array:
    """Whether every weight that `inner` keeps is kept by `outer`."""
    inside = trees.map_present(lambda i, o: jnp.all(~i | o), inner, outer)
    return jnp.stack(trees.present(inside)).all()


def digest(masks: Tree) -> str:
    """SHA-256 over every mask's name, shape and bits: equal masks, equal digest, whatever the weights."""
    sha = hashlib.sha256()
    for name, mask in sorted(trees.named_leaves(masks).items()):
        if mask is not None:
            sha.update(f"{name} {tuple(mask.shape)}\n".encode() + pack(mask).tobytes())
    return sha.hexdigest()


def pack(mask: np.ndarray) -> np.ndarray:
    """Eight weights a byte, row-major, first weight in the highest bit."""
    return np.packbits(np.asarray(mask, bool).reshape(-1))


def unpack(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape))
    if packed.dtype != np.uint8 or packed.shape != (-(-size // 8),):
        raise ValueError(f"packed mask {packed.dtype}{packed.shape} does not fit shape {shape}")
    return np.unpackbits(packed, count=size).astype(bool).reshape(shape)
