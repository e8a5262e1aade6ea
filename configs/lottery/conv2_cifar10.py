"""The lottery tickets of Conv-2 on CIFAR-10: Figure 5 of Frankle & Carbin 2019.

    python scripts/imp.py --config=configs/lottery/conv2_cifar10.py --data_root=DIR --seed=0 \\
        --save=save/conv2

(https://arxiv.org/abs/1803.03635.) As lenet_mnist.py but for Adam 2e-4, 20,000 iterations a level, and 10%
of the convolutions' weights pruned at each of 20 levels; no augmentation. Hardware: one GPU or a TPU core,
on which it was never run; 2 CPU cores make about 6 steps a second of all trials. Expected (cited): tickets
faster and more accurate than dense, re-initialised ones slower. Last verified: never in full; 100
iterations a level 2026-11-21, jax 0.10.2. `smoke` is on digits, 45 seconds there.
"""

import pathlib

from giung2_ext.experiments.config import load_config

LENET = pathlib.Path(__file__).with_name("lenet_mnist.py")


def get_config(smoke: bool = False):
    c = load_config(f"{LENET}:smoke" if smoke else str(LENET)).unlock()
    c.model = dict(name="conv", depth=2)
    c.data = dict(name="cifar10", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    c.optim.ni = 20000
    c.optim.lr = 2e-4
    c.chain.cycles = 20
    c.chain.layer_ratios = "conv:0.9,dense:0.8,cls:0.9"
    if smoke:  # on the digits that ship with the package
        c.data = dict(name="digits")
        c.optim.ni, c.chain.cycles = 20, 1
        c.evaluation.every, c.evaluation.test_every = 10, 10
    return c
