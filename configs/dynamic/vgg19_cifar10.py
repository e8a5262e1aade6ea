"""Weights and masks together, in VGG-19 on CIFAR-10.

    python scripts/train.py --config=configs/dynamic/vgg19_cifar10.py --method=rpg --density=0.05 \\
        --data_root=DIR --seed=0 --save=save/dynamic/vgg19_cifar10

As resnet32_cifar10.py, with the network of pretrain/vgg19_cifar10.py and its warm-up. Not run: no
accelerator. Expected: unknown; dense about 94.2% (cited from memory: GraSP's tables).
Last verified: never run; built 2026-11-27.
"""

import pathlib

from giung2_ext.experiments.config import load_config

RESNET32 = pathlib.Path(__file__).with_name("resnet32_cifar10.py")
DENSE = pathlib.Path(__file__).parents[1] / "pretrain/vgg19_cifar10.py"


def get_config(
    method: str = "rigl",
    density: float = 0.05,
    allocation: str = "",
    epochs: int = 300,
    smoke: bool = False,
):
    given = f"method={method},density={density},allocation={allocation},epochs={epochs},smoke={smoke}"
    c = load_config(f"{RESNET32}:{given}").unlock()
    dense = load_config(f"{DENSE}:smoke={smoke}")
    c.model = dense.model
    c.optim.warmup = dense.optim.warmup
    return c
