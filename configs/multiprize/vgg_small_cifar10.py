"""Multi-Prize tickets of VGG-Small on CIFAR-10 at density 0.05 (Diffenderfer & Kailkhura 2021).

    python scripts/train.py --config=configs/multiprize/vgg_small_cifar10.py --data_root=DIR --seed=0 \\
        --save=save/multiprize/vgg_small
    python scripts/train.py --config=configs/multiprize/vgg_small_cifar10.py:density=0.25,binary,wide \\
        --data_root=DIR --seed=0 --save=save/multiprize/vgg_small_binary

(https://arxiv.org/abs/2103.09377.) Adam at 0.1; of binary activations 2e-4 but for `wide` (1.25 times the
channels) without `--norms` ("+BN", and here the last bias). The arguments are those of conv_cifar10.py. The
published network lacks most ReLUs, ours has them.
Hardware: one GPU or a TPU core; not run: no accelerator. Expected (cited: the authors' repository): 91.48%
(0.23 million weights); the second command 89.11%, with `norms` 91.9% (it counts 1.44 million weights, a
fifth, where a quarter is 1.81). Last verified: never run; built 2026-11-22.
"""

import pathlib

from giung2_ext.experiments.config import load_config

CONV = pathlib.Path(__file__).with_name("conv_cifar10.py")


def get_config(
    density: float = 0.05,
    epochs: int = 100,
    weights: str = "kaiming_normal",
    scale_fan: str = "kept",
    binary: bool = False,
    norms: bool = False,
    edge_popup: bool = False,
    wide: bool = False,
    smoke: bool = False,
):
    given = f"density={density},epochs={epochs},weights={weights},scale_fan={scale_fan}"
    c = load_config(f"{CONV}:{given},edge_popup={edge_popup},smoke={smoke}").unlock()
    c.model = dict(name="vgg", plan="small", head="flat", width=1.25 if wide else 1.0)
    c.model.activation = "binary" if binary else "relu"
    c.method.others = norms
    c.optim.name, c.optim.weight_decay = "adam", 0.0
    c.optim.lr = 2e-4 if binary and (norms or not wide) else 0.1
    if smoke:
        c.model.width = 1 / 16
    return c
