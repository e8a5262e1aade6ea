"""Lottery Jackpots in LeNet-300-100 on MNIST, and its controls: masks over the same frozen weights.

    python scripts/train.py --config=configs/pretrain/lenet_mnist.py --data_root=DIR --seed=0 \\
        --save=save/pretrain/lenet
    python scripts/train.py --config=configs/jackpots/lenet_mnist.py --density=0.1 --data_root=DIR \\
        --seed=0 --matching_ckpt=save/pretrain/lenet/last.ckpt --save=save/jackpots/lenet

Zhang et al. 2021 (https://arxiv.org/abs/2104.08700) made small. `--mask=magnitude` is the mask that the
search starts from and `--mask=random` one drawn uniformly: nothing trains there. `--rule=threshold` is the
paper's first rule. The classifier stays dense.
Expected test accuracy (%, measured with independent code, 3 seeds, mean ± sd):

density   search          rule=threshold   mask=magnitude   mask=random
0.1       98.32 ± 0.02    98.06 ± 0.11     92.8 ± 1.7       35.5 ± 8.5
0.02      97.36 ± 0.16    97.00 ± 0.12     55.5 ± 13.5      11.0 ± 1.4
0.01      94.74 ± 0.04    94.49 ± 0.23     32.4 ± 6.8        9.7 ± 0.1

Two CPU cores are enough. Last verified: `smoke` 2026-11-22, jax 0.10.2.
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
    if mask != "search":
        c.optim.ni = 0
    else:
        c.method = dict(name="jackpots", rule=rule, restriction=restriction or "constant")
    c.masks.criterion = "magnitude" if mask == "search" else mask
    c.masks.density = density
    c.optim.name = "sgd"
    c.optim.lr = 0.1
    c.optim.weight_decay = 5e-4
    c.optim.constant_lr = False
    c.optim.warmup = 0.0
    return c
