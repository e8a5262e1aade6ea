"""From a config, or a ticket's meta, to its parts: network, method, optimizer; what a network costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import giung2_ext.methods
import giung2_ext.models
from giung2_ext.core import accounting, discovery, schedules
from giung2_ext.core.errors import Refusal
from giung2_ext.core.method import Method
from giung2_ext.experiments.bounds import PRECISIONS
from giung2_ext.experiments.config import Config, group_of, options_of
from giung2_ext.training import step as steps
from giung2_ext.training.optimizers import make_optimizer
from giung2_ext.training.state import init_variables, seed_key

Tree = Any


def build_model(name: str, num_classes: int, precision: str, options: dict[str, Any]) -> nn.Module:
    dtype = PRECISIONS[precision]
    return discovery.build(
        giung2_ext.models, "model", name, num_classes=num_classes, dtype=dtype, **options
    )


def model_of(meta: Mapping[str, Any], precision: str = "float32") -> nn.Module:
    """The network of a ticket, by its meta."""
    options = dict(meta["model"])
    return build_model(options.pop("name"), meta["num_classes"], precision, options)


def build_method(config: Config) -> Method:
    name, options = config.method.name, options_of(config, "method")
    if "ni" in discovery.options(giung2_ext.methods, "method", name):
        options["ni"] = config.optim.ni
    return discovery.build(giung2_ext.methods, "method", name, **options)


def check_groups(config: Config, method: Method) -> None:
    """The groups that |gradient| is averaged over are whole, and made of whole groups of BatchNorm."""
    size, batch, norm = method.abs_over, config.feed.batch_size, group_of(config)
    if size and (size < 0 or batch % size or (norm is not None and size % (norm or batch))):
        whole = (
            ""
            if norm is None
            else f", in whole BatchNorm groups of {norm or batch} (config.model.group_size)"
        )
        raise Refusal(f"config.method.group={size} does not divide a batch of {batch}{whole}; 0: the batch")


def judged_in(precision: str) -> str:
    """What a network trained in `precision` is evaluated in: nothing scales float16's activations there."""
    return "float32" if precision == "float16" else precision


def mixed_precision() -> str:
    """What `mixed_precision=true` means on this machine."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return "float32"
    capability = str(getattr(device, "compute_capability", ""))  # of NVIDIA: "7.5", "9.0"
    old = capability.replace(".", "").isdigit() and float(capability) < 8
    return "float16" if old else "bfloat16"


def count_uses(model: nn.Module, image_shape: Sequence[int]) -> tuple[Tree, Tree, accounting.Uses]:
    """The shapes of a network's parameters and statistics, and how often an image uses each parameter."""
    shapes, statistics = jax.eval_shape(lambda key: init_variables(model, key, image_shape), seed_key(0))
    channels = jax.ShapeDtypeStruct((image_shape[-1],), jnp.float32)
    statistics = statistics | {"image_stats": {"m": channels, "s": channels}}
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def forward(weights: Tree, example: tuple[Tree, Any]) -> Any:
        return steps.network(model, weights, *example, train=False)

    return shapes, statistics, accounting.uses(forward, shapes, (statistics, image))


def totals_of(meta: Mapping[str, Any]) -> tuple[accounting.Totals, accounting.Totals]:
    """Weights and FLOPs of a ticket's network, dense and sparse."""
    shapes, _, uses = count_uses(model_of(meta), meta["image_shape"])
    layers = {name: count for name, (count, _) in meta["layers"].items()}
    return accounting.totals(accounting.layers(shapes, layers, uses), uses)


def rate_of(config: Config) -> schedules.Schedule:
    optim = config.optim
    if optim.constant_lr:
        return schedules.constant(optim.lr)
    if optim.milestones:
        how = (optim.warmup, optim.milestones, optim.decay_factor)
        return schedules.warmup_stairs(optim.lr, optim.ni, *how)
    return schedules.warmup_cosine(optim.lr, optim.ni, optim.warmup)


def optimizer_of(config: Config) -> optax.GradientTransformation:
    optim = config.optim
    kinds = {"nesterov": optim.nesterov, "decay_on": optim.decay_on}
    return make_optimizer(optim.name, optim.momentum, optim.weight_decay, optim.global_clipping, **kinds)


def kinds_of(config: Config) -> dict[str, bool]:
    """What else a state holds."""
    return {"scaled": config.precision == "float16", "averaged": config.optim.ema is not None}
