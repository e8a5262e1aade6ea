"""Optimizers of rate 1: decay, then clipping, then the rule. The step multiplies by lr(step).

A schedule inside optax would keep its own count and lag behind whenever a step is replaced. Decay is
coupled (added to the gradient) and acts on every leaf, as in the original ImageNet suite.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from giung2_ext.core import trees
from giung2_ext.core.errors import unknown

Tree = Any

RULES: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": lambda momentum: optax.trace(momentum) if momentum else optax.identity(),
    "adam": lambda momentum: optax.scale_by_adam(b1=momentum, b2=0.999, eps=1e-8),
}


def make_optimizer(
    name: str, momentum: float, weight_decay: float = 0.0, clipping: float | None = None
) -> optax.GradientTransformation:
    """`momentum` is SGD's momentum or Adam's beta 1."""
    if name not in RULES:
        raise unknown("optimizer", name, RULES)
    parts = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    parts += [optax.clip_by_global_norm(clipping)] if clipping is not None else []
    return optax.chain(*parts, RULES[name](momentum), optax.scale(-1.0))


def edit_slots(opt_state: Tree, fn: Callable[..., Any], *companions: Tree) -> Tree:
    """Applies `fn(slot, *leaves)` to every slot that belongs to a leaf of the companion trees.

    A slot belongs to the leaf whose path ends its own path and whose shape is its own (the longest
    such path); scalars, factored statistics and leaves that are `None` are left alone. Paths are
    compared, not structure: `optax.tree_utils.tree_map_params` stumbles over partial trees.
    """
    named = [trees.named_leaves(tree) for tree in companions]
    by_length = sorted((n for n, leaf in named[0].items() if leaf is not None), key=len, reverse=True)

    def edit(path: Any, slot: Any) -> Any:
        name = f"/{trees.path_name(path)}"
        owner = next((n for n in by_length if name.endswith(f"/{n}")), None)
        if owner is None or slot.shape != named[0][owner].shape:
            return slot
        return fn(slot, *(leaves[owner] for leaves in named))

    return jax.tree_util.tree_map_with_path(edit, opt_state)
