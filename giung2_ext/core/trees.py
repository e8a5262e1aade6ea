"""Walking parameter trees whose companions (masks, counts) hold `None` where they do not apply.

JAX reads `None` as an empty subtree; here it is a leaf that says "not prunable".
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def is_none(leaf: Any) -> bool:
    return leaf is None


def path_name(path: Iterable[Any]) -> str:
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def named_leaves(tree: Tree) -> dict[str, Any]:
    """{path: leaf} in flattening order, `None` leaves included."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_none)
    return {path_name(path): leaf for path, leaf in pairs}


def nest(flat: Mapping[str, Any]) -> Tree:
    """The tree of dictionaries whose `named_leaves` these are."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *outer, last = name.split("/")
        place = tree
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = leaf
    return tree


def map_present(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Maps over the leaves that `tree` has; where it holds `None` the result does too."""
    return jax.tree.map(
        lambda leaf, *others: None if leaf is None else fn(leaf, *others),
        tree,
        *rest,
        is_leaf=is_none,
    )


def map_stacked(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """`map_present` by `vmap` over stacks of the leaves that have one shape."""
    leaves, treedef = jax.tree.flatten(tree)
    columns = [leaves, *(present(map_present(lambda _, own: own, tree, other)) for other in rest)]
    found = [None] * len(leaves)
    for shape in dict.fromkeys(leaf.shape for leaf in leaves):
        places = [i for i, leaf in enumerate(leaves) if leaf.shape == shape]
        stacks = [jnp.stack([column[i] for i in places]) for column in columns]
        for i, one in zip(places, jax.vmap(fn)(*stacks), strict=True):
            found[i] = one
    return jax.tree.unflatten(treedef, found)


def present(tree: Tree) -> list[Any]:
    """The leaves that are there, in flattening order."""
    return jax.tree.leaves(tree)


def first_mismatch(expected: Tree, found: Tree) -> str | None:
    """One line on the first leaf whose name or shape differs between two trees, or `None`."""
    want, have = named_leaves(expected), named_leaves(found)
    for name, leaf in want.items():
        if name not in have:
            extra = next((other for other in have if other not in want), None)
            return f"{name!r} is missing" + (f" (it has {extra!r})" if extra else "")
        if leaf.shape != have[name].shape:
            return f"{name!r} has shape {tuple(have[name].shape)}, expected {tuple(leaf.shape)}"
    for name in have:
        if name not in want:
            return f"{name!r} is not expected"
    return None
