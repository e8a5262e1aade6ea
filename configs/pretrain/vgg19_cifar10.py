"""A trained VGG-19 on CIFAR-10, for jackpots/vgg19_cifar10.py to search masks in.

    python scripts/train.py --config=configs/pretrain/vgg19_cifar10.py --data_root=DIR --seed=0 \\
        --save=save/pretrain/vgg19_cifar10

As resnet32_cifar10.py, but the rate rises over the first 8 of its 160 epochs: 0.1 from the first step on
may be unstable in so deep a network without shortcuts. Not run: no accelerator. Expected: about 94.2%
(cited from memory: the dense network in GraSP's tables, 94.23%).
Last verified: never run; built 2026-11-22.
"""

import pathlib

from giung2_ext.experiments.config import load_config

RESNET32 = pathlib.Path(__file__).with_name("resnet32_cifar10.py")


def get_config(epochs: int = 160, smoke: bool = False):
    c = load_config(f"{RESNET32}:epochs={epochs},smoke={smoke}").unlock()
    c.model = dict(name="vgg", plan="19", width=1 / 32 if smoke else 1.0)
    c.optim.warmup = 0.05
    return c
