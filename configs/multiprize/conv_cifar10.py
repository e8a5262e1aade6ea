"""Multi-Prize tickets of Conv-2, 4, 6 and 8 on CIFAR-10 (Diffenderfer & Kailkhura 2021).

    python scripts/train.py --config=configs/multiprize/conv_cifar10.py --depth=4 --density=0.5 \\
        --data_root=DIR --seed=0 --save=save/multiprize/conv4

(https://arxiv.org/abs/2103.09377.) Binary weights; `--binary` makes the activations binary too, behind
BatchNorm that learns nothing (`--norms`: it does, "+BN", and here the last bias), with Adam. The published
densities are 0.8, 0.6, 0.5, 0.4, 0.2 and 0.1. `--edge_popup`, `--weights` and `--scale_fan` as in
lenet_mnist.py; the published code scales by what is removed (`--scale_fan=removed`). Its rate falls by
epoch, not by step; it chooses on test. `--config.method.threshold=global` cuts all layers at one score,
with `--config.method.ramp=0.1` from half of the weights over the first tenth ("A Winning Hand").
Hardware: one GPU or a TPU core; not run: no accelerator. Expected: the paper has figures alone; edge-popup
at 0.5 (`--edge_popup --weights=signed_constant --scale_fan=none`) about 77.7, 85.8 and 88.1% of Conv-2, 4
and 6 (cited from memory, unsure).
Last verified: never run; built 2026-11-22.
"""

import pathlib

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments.config import load_config

LENET = pathlib.Path(__file__).with_name("lenet_mnist.py")
EPOCH = 45_000 // 128  # steps


def get_config(
    depth: int = 4,
    density: float = 0.5,
    epochs: int = 100,
    weights: str = "kaiming_normal",
    scale_fan: str = "kept",
    binary: bool = False,
    norms: bool = False,
    edge_popup: bool = False,
    smoke: bool = False,
):
    if norms and not binary:
        raise Refusal("norms trains BatchNorm, which these networks have with binary activations only")
    given = f"density={density},weights={weights},scale_fan={scale_fan},edge_popup={edge_popup}"
    c = load_config(f"{LENET}:{given},smoke={smoke}").unlock()
    c.model = dict(name="conv", depth=depth)
    c.method.others = norms
    if binary:
        c.model.activation, c.model.norm = "binary", True
        c.optim.name, c.optim.weight_decay = "adam", 0.0
    if smoke:
        c.model.depth = 2
        c.feed.batch_size, c.optim.ni = 16, 4
    else:
        c.data = dict(name="cifar10", mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262))
        c.feed.batch_size, c.feed.augment = 128, "crop_flip"
        c.optim.ni = epochs * EPOCH
        c.evaluation.every, c.evaluation.batch_size = EPOCH, 1000
    return c
