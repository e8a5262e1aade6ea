"""The lottery tickets of Conv-4 on CIFAR-10: Figure 5 of Frankle & Carbin 2019.

    python scripts/imp.py --config=configs/lottery/conv4_cifar10.py --data_root=DIR --seed=0 \\
        --save=save/conv4

As conv2_cifar10.py but for Adam 3e-4, 25,000 iterations a level.
"""

import pathlib

from giung2_ext.experiments.config import load_config

CONV2 = pathlib.Path(__file__).with_name("conv2_cifar10.py")


def get_config(smoke: bool = False):
    c = load_config(f"{CONV2}:smoke" if smoke else str(CONV2))
    c.model.depth = 4
    c.optim.ni = c.optim.ni if smoke else 25000
    c.optim.lr = 3e-4
    return c
