"""Lottery Jackpots in LeNet-300-100 on MNIST, and its controls: masks over the same frozen weights.

    python scripts/train.py --config=configs/pretrain/lenet_mnist.py --data_root=DIR --seed=0 \\
        --save=save/pretrain/lenet
    python scripts/train.py --config=configs/jackpots/lenet_mnist.py --density=0.1 --data_root=DIR \\
        --seed=0 --matching_ckpt=save/pretrain/lenet/last.ckpt --save=save/jackpots/lenet

Zhang et al. 2021 (https://arxiv.org/abs/2104.08700) made small. `--mask=magnitude` is the mask that the
search starts from and `--mask=random` one drawn uniformly: nothing trains there. `--rule=threshold` is the
paper's first rule, `--restriction=quartic` (or cosine) swaps ever fewer. The classifier stays dense.
Measured test accuracy after the last step (%, seeds 0 to 2, mean ± sd; the trained network 97.82 ± 0.08):

density   search          rule=threshold   mask=magnitude   mask=random
0.1       98.30 ± 0.05    98.09 ± 0.06     93.0 ± 0.9       23.5 ± 4.7
0.02      97.23 ± 0.16    96.89 ± 0.09     52.0 ± 7.9        9.4 ± 0.7
0.01      94.70 ± 0.21    94.45 ± 0.23     38.1 ± 6.3        9.7 ± 0.0

A search takes about 25 seconds on two CPU cores. Last verified 2026-11-22, jax 0.10.2.
"""

import pathlib

from giung2_ext.experiments.config import load_config

TRAINED = pathlib.Path(__file__).parents[1] / "pretrain/lenet_mnist.py"


def get_config(
    density: float = 0.1,
    epochs: int = 10,
    mask: str = "search",
    rule: str = "swap",
    restriction: str = "",
    smoke: bool = False,
):
    c = load_config(f"{TRAINED}:epochs={epochs},smoke={smoke}").unlock()
    c.method = dict(name="jackpots", rule=rule, restriction=restriction or "constant")
    if mask != "search":
        c.optim.ni = 0
    c.masks.criterion = "magnitude" if mask == "search" else mask
    c.masks.density = density
    c.optim.name = "sgd"
    c.optim.lr = 0.1
    c.optim.weight_decay = 5e-4
    c.optim.constant_lr = False
    c.optim.warmup = 0.0
    return c
