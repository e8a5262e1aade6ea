"""A trained VGG-19 on CIFAR-100, for jackpots/vgg19_cifar100.py to search masks in.

    python scripts/train.py --config=configs/pretrain/vgg19_cifar100.py --data_root=DIR --seed=0 \\
        --save=save/pretrain/vgg19_cifar100

As vgg19_cifar10.py, with the same constants for the images, as published. Not run: no accelerator.
Expected: about 74.2% (cited from memory: the dense network in GraSP's tables, 74.16%).
Last verified: never run; built 2026-11-22.
"""

import pathlib

from giung2_ext.experiments.config import load_config

CIFAR10 = pathlib.Path(__file__).with_name("vgg19_cifar10.py")


def get_config(epochs: int = 160, smoke: bool = False):
    c = load_config(f"{CIFAR10}:epochs={epochs},smoke={smoke}")
    if not smoke:
        c.data.name = "cifar100"
    return c
