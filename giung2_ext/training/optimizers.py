"""Optimizers of rate 1: decay, then clipping, then the rule. The step multiplies by lr(step).

A schedule inside optax would keep its own count and lag behind whenever a step is replaced. Decay is
coupled (added to the gradient), as in the original ImageNet suite, but for those that decouple it by
definition (`DECOUPLED`). RULES act on every weight by itself and their slots start at 0 (adagrad's and
yogi's too, unlike in optax): a pruned weight, whose gradient and slots are 0, stays exactly 0, and one that
grows starts afresh. The others are REFUSED, with the reason. `momentum` is that of sgd, rmsprop and signum,
adadelta's rho, and beta 1 of the others; adagrad and sign_sgd have none.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from optax import contrib

from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal, unknown

Tree = Any
Rule = Callable[[float], optax.GradientTransformation]


def _sgd(momentum: float, nesterov: bool = False) -> optax.GradientTransformation:
    return optax.trace(momentum, nesterov) if momentum else optax.identity()


RULES: dict[str, Rule] = {
    "adabelief": lambda b1: optax.scale_by_belief(b1, eps_root=0.0),  # which would enter its slot
    "adadelta": lambda rho: optax.scale_by_adadelta(rho),
    "adagrad": lambda _: optax.scale_by_rss(initial_accumulator_value=0.0),
    "adam": lambda b1: optax.scale_by_adam(b1),
    "adamax": lambda b1: optax.scale_by_adamax(b1),  # whose slot is its epsilon where a weight is pruned
    "adamaxw": lambda b1: optax.scale_by_adamax(b1),
    "adamw": lambda b1: optax.scale_by_adam(b1),
    "adan": lambda b1: optax.scale_by_adan(b1, eps_root=1e-8),
    "ademamix": lambda b1: contrib.scale_by_ademamix(b1, alpha=5.0),
    "adopt": lambda b1: contrib.scale_by_adopt(b1),
    "amsgrad": lambda b1: optax.scale_by_amsgrad(b1),
    "lion": lambda b1: optax.scale_by_lion(b1),
    "nadam": lambda b1: optax.scale_by_adam(b1, nesterov=True),
    "nadamw": lambda b1: optax.scale_by_adam(b1, nesterov=True),
    "radam": lambda b1: optax.scale_by_radam(b1),
    "rmsprop": lambda momentum: optax.chain(optax.scale_by_rms(), _sgd(momentum)),
    "sgd": _sgd,
    "sign_sgd": lambda _: optax.scale_by_sign(),
    "signum": lambda beta: optax.chain(optax.ema(beta, debias=False), optax.scale_by_sign()),
    "simplified_ademamix": lambda b1: contrib.scale_by_simplified_ademamix(b1),
    "yogi": lambda b1: optax.scale_by_yogi(b1, initial_accumulator_value=0.0),
}
DECAY_ON = ("all", "kernels")
DECOUPLED = ("adamaxw", "adamw", "adan", "ademamix", "lion", "nadamw", "simplified_ademamix")

LAYERS, FACTORS = "it scales by the norm of a whole layer", "it keeps factored statistics"
LOSS, RATE = "it needs the value of the loss", "it finds its own rate, and the rate is the step's"
REFUSED: dict[str, str] = {
    **dict.fromkeys(("fromage", "lamb", "lars", "novograd"), LAYERS),
    **dict.fromkeys(("adafactor", "sm3"), FACTORS),
    **dict.fromkeys(("lbfgs", "momo", "momo_adam", "polyak_sgd"), LOSS),
    **dict.fromkeys(("cocob", "dadapt_adamw", "dog", "dowg", "prodigy"), RATE),
    **dict.fromkeys(("noisy_sgd", "dpsgd"), "it adds noise to pruned weights"),
    **dict.fromkeys(("muon", "galore"), "it works on whole matrices"),
    **dict.fromkeys(
        ("madgrad", "schedule_free_adamw", "schedule_free_sgd"), "it keeps weights in its slots"
    ),
    **dict.fromkeys(("mechanize", "schedule_free"), "it wraps another optimizer"),
    "acprop": "it divides by a slot before it fills it, which is 0 where a weight has just grown",
    **dict.fromkeys(
        ("optimistic_adam", "optimistic_adam_v2", "optimistic_gradient_descent"),
        "its state does not begin with zeros alone, to which methods set it back",
    ),
    "rprop": "its step sizes do not start at 0",
    "sam": "it takes steps of its own between gradients",
    "sophia": "it needs second derivatives",
}


def check_optimizer(name: str, momentum: float, nesterov: bool = False) -> None:
    if name in REFUSED:
        raise Refusal(
            f"optimizer {name!r} is not for sparse training: {REFUSED[name]}; choose one that acts on "
            f"every weight by itself: {', '.join(sorted(RULES))}"
        )
    if name not in RULES:
        raise unknown("optimizer", name, RULES)
    if nesterov and name != "sgd":
        raise Refusal(
            f"config.optim.nesterov is for sgd, got {name} (nadam is Adam with Nesterov's momentum)"
        )
    if nesterov and not momentum:
        raise Refusal("config.optim.nesterov needs a momentum, got config.optim.momentum=0")


def is_kernel(params: Tree) -> Tree:
    """True at leaves called `kernel`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: trees.path_name(path).rpartition("/")[2] == "kernel", params
    )


def make_optimizer(
    name: str,
    momentum: float,
    weight_decay: float = 0.0,
    clipping: float | None = None,
    *,
    nesterov: bool = False,
    decay_on: str = "all",
) -> optax.GradientTransformation:
    """`decay_on` is all, or kernels: leaves called so, never biases or normalisation."""
    check_optimizer(name, momentum, nesterov)
    decay = []
    if weight_decay:
        decay = [optax.add_decayed_weights(weight_decay, is_kernel if decay_on == "kernels" else None)]
    clip = [optax.clip_by_global_norm(clipping)] if clipping is not None else []
    rule = _sgd(momentum, nesterov) if name == "sgd" else RULES[name](momentum)
    if name in DECOUPLED:
        return optax.chain(*clip, rule, *decay, optax.scale(-1.0))
    return optax.chain(*decay, *clip, rule, optax.scale(-1.0))


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
