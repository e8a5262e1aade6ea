"""The contract of a sparse-training method: a few pure functions and an explicit state.

Only the first three are required. `trainable` is what the optimizer moves; `weights` is what the
network sees; `masks` says which of them are kept (`None` where a leaf is not prunable).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

Tree = Any


class Method(NamedTuple):
    init: Callable[..., tuple[Tree, Tree]]
    """(key, params, masks) -> trainable, method_state"""
    weights: Callable[[Tree, Tree], Tree]
    """(trainable, method_state) -> weights"""
    masks: Callable[[Tree, Tree], Tree]
    """(trainable, method_state) -> masks"""
    penalty: Callable[[Tree, Tree], Any] | None = None
    """(weights, method_state) -> scalar; its gradient joins the dense gradients before the pull"""
    penalty_on: Literal["all", "due"] = "all"
    follow: Callable[..., tuple[Tree, Tree]] | None = None
    """(trainable, method_state, dense_grads, step) -> trainable, method_state; every finite step"""
    due: Callable[[int], bool] | None = None
    """host function of the step: is this a mask-update step?"""
    update: Callable[..., tuple[Tree, Tree, Tree]] | None = None
    """(trainable, opt_state, method_state, dense_grads, step, key, edit_slots) -> the first three"""
    settled: Callable[[int], bool] | None = None
    """host function of the steps consumed: has the mask its final density by then? None: always"""
    replaces_step: bool = False
    """whether an update stands in for the optimizer's step or comes after it"""
    frozen: bool = False
    """whether prunable weights never change: scores of them are trained in their place"""
    averages: bool = True
    """whether a moving average of the trainables means something: they are weights, never set back"""
    pretrained: bool = False
    """whether it needs trained weights to start from"""
    given_density: bool = False
    """whether it keeps the density of its starting mask: a dense one would be trained dense"""
    latent: bool = False
    """whether trainables live on where the mask is off: they are scores, or dense weights"""
    dense_grads: Literal["no", "due", "all"] = "no"
    """in which steps the gradient of pruned weights is needed: what a sparse program would pay for"""
    abs_over: int = 0
    """examples to a group: update gets the pair (mean, mean over groups of |group gradient|); 0: the
    mean"""


EditSlots = Callable[..., Tree]
"""(opt_state, fn, *trees) -> opt_state: fn(slot, *leaves) on slots shaped and named like a leaf"""
