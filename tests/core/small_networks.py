"""Networks that are small, and masks with dead channels in all of their layers."""

import functools

import jax
import numpy as np
from fakes import random_variables

from giung2_ext.core import masks as masking
from giung2_ext.core import trees

# Name, options and image: there are shortcuts, poolings and flattened maps.
MODELS = {
    "lenet": ("lenet", {}, (8, 8, 1)),
    "conv": ("conv", dict(channels=(7, 6), hidden=(9, 8)), (8, 8, 1)),
    "conv with norm": ("conv", dict(channels=(6, 7), hidden=(9, 8), norm=True, pool=3), (8, 8, 3)),
    "convnet": ("convnet", dict(widths=(6, 7)), (9, 8, 1)),
    "vgg, flat": ("vgg", dict(width=1 / 16), (16, 16, 1)),
    "vgg, dense": ("vgg", dict(width=1 / 16, head="dense", norm=False, hidden=(12, 10)), (8, 8, 1)),
    "resnet_cifar": ("resnet_cifar", dict(planes=6), (8, 8, 1)),
    "resnet_cifar, pad": ("resnet_cifar", dict(planes=6, shortcut="pad", padding="torch"), (8, 8, 1)),
    "wide_resnet": ("wide_resnet", dict(planes=6, head="zero"), (8, 8, 1)),
    "resnet, large": ("resnet", dict(planes=(6, 7, 8, 9)), (32, 32, 1)),
    "alexnet": ("alexnet", dict(channels=(6, 7, 8, 9, 7), hidden=(9, 8)), (24, 24, 1)),
    "lenet5": ("lenet5", dict(channels=(6, 7), hidden=(9, 8)), (28, 28, 1)),
    "conv, binary": ("conv", dict(channels=(7, 6), hidden=(9, 8), activation="binary"), (8, 8, 1)),
    "resnet_cifar, binary": ("resnet_cifar", dict(planes=6, activation="binary"), (8, 8, 1)),
}


def forward_of(model):
    def forward(params, statistics, images):
        with jax.numpy_dtype_promotion("standard"):
            return model.apply({"params": params, **statistics}, images)

    return forward


def drawn(model, image, seed=0):
    """(params, statistics) in NumPy, all random."""
    with jax.numpy_dtype_promotion("standard"):
        variables = jax.device_get(random_variables(model, image, seed))
    params = jax.tree.map(np.array, variables.pop("params"))
    return params, jax.tree.map(np.array, variables)


def images_of(image, size=6):
    return np.random.default_rng(5).normal(size=(size, *image)).astype(np.float32)


@functools.cache
def run_of(model):
    """Its forward pass, compiled once and quickly."""
    return jax.jit(forward_of(model), compiler_options={"xla_backend_optimization_level": 0})


def dense(params):
    return jax.tree.map(np.array, masking.dense(params, "kernels"))


def masked(masks, params):
    """What `masking.apply` does, without compiling it for every shape."""
    keep = lambda m, w: w if m is None else np.where(m, w, np.float32(0))  # noqa: E731
    return jax.tree.map(keep, masks, params, is_leaf=trees.is_none)


def shift(params, statistics, norm, channel, value):
    """Makes BatchNorm's result on an input of 0 this value."""
    stats = statistics["batch_stats"][norm]
    scale = params[norm]["scale"][channel] / np.sqrt(stats["var"][channel] + 1e-5)
    params[norm]["bias"][channel] = value + stats["mean"][channel] * scale


def wounded(params, statistics, seed):
    """Random masks with dead columns and rows; output 1 of every layer is dead and shifted below 0, outputs
    2 and 3 are dead and shifted above."""
    draw = np.random.default_rng(seed)
    masks = dense(params)
    for name, mask in trees.named_leaves(masks).items():
        if mask is not None:
            mask &= draw.random(mask.shape) < 0.7
            if not name.startswith(("Conv_0", "Dense_0")):
                mask[..., draw.random(mask.shape[-2]) < 0.15, :] = False
            if not name.startswith("cls"):
                mask[..., draw.random(mask.shape[-1]) < 0.1] = False
                mask[..., 1:4] = False
    for layer, leaves in params.items():
        if "bias" in leaves and layer != "cls":
            for channel, value in ((1, -0.4), (2, 0.3), (3, 0.5)):
                if layer.startswith("BatchNorm"):
                    shift(params, statistics, layer, channel, value)
                else:
                    leaves["bias"][channel] = value
    return masks
