"""The lottery tickets of Conv-6 on CIFAR-10: Figure 5 of Frankle & Carbin 2019.

    python scripts/imp.py --config=configs/lottery/conv6_cifar10.py --data_root=DIR --seed=0 \\
        --save=save/conv6

As conv2_cifar10.py but for Adam 3e-4, 30,000 iterations a level, and 15% of the convolutions' weights
pruned at each.
"""

import pathlib

from giung2_ext.experiments.config import load_config

CONV2 = pathlib.Path(__file__).with_name("conv2_cifar10.py")


def get_config(smoke: bool = False):
    c = load_config(f"{CONV2}:smoke" if smoke else str(CONV2))
    c.model.depth = 6
    c.optim.ni = c.optim.ni if smoke else 30000
    c.optim.lr = 3e-4
    c.chain.layer_ratios = "conv:0.85,dense:0.8,cls:0.9"
    return c
