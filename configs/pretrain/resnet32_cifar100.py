"""A trained ResNet-32 of twice He's width on CIFAR-100, for jackpots/resnet32_cifar100.py.

    python scripts/train.py --config=configs/pretrain/resnet32_cifar100.py --data_root=DIR --seed=0 \\
        --save=save/pretrain/resnet32_cifar100

As resnet32_cifar10.py, with the same constants for the images, as published. Not run: no accelerator.
Expected: about 74.6% (cited from memory: the dense network in GraSP's tables, 74.64%).
Last verified: never run; built 2026-11-22.
"""

import pathlib

from giung2_ext.experiments.config import load_config

CIFAR10 = pathlib.Path(__file__).with_name("resnet32_cifar10.py")


def get_config(epochs: int = 160, smoke: bool = False):
    c = load_config(f"{CIFAR10}:epochs={epochs},smoke={smoke}")
    if not smoke:
        c.data.name = "cifar100"
    return c
