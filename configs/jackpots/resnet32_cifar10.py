"""Lottery Jackpots in ResNet-32 on CIFAR-10 at densities 0.1 and 0.05 (Zhang et al. 2021).

    python scripts/train.py --config=configs/jackpots/resnet32_cifar10.py --density=0.1 --epochs=30 \\
        --matching_ckpt=save/pretrain/resnet32_cifar10/best_acc.ckpt --data_root=DIR --seed=0 \\
        --save=save/jackpots/resnet32_cifar10

(https://arxiv.org/abs/2104.08700.) A mask searched over the frozen weights of pretrain/resnet32_cifar10.py.
The rule is the authors' second, which swaps ever fewer pairs a step (`restriction=quartic`); their
published code swaps all (`constant`), and most of their numbers are of the first rule (`--rule=threshold`).
Partial batches are dropped, the rate falls by step instead of by epoch, and 5,000 training images are held
out to choose on (there the best on test).
Hardware: one GPU or a TPU core; not run: no accelerator. Expected (cited: the authors' repository): density
0.1 93.70% after 30 epochs and 94.39% after 160, 0.05 92.90% and 93.41%.
Last verified: never run; built 2026-11-22.
"""

import pathlib

from giung2_ext.experiments.config import load_config

TRAINED = pathlib.Path(__file__).parents[1] / "pretrain/resnet32_cifar10.py"
EPOCH = 45_000 // 256  # steps


def get_config(
    density: float = 0.1,
    epochs: int = 30,
    rule: str = "swap",
    restriction: str = "",
    smoke: bool = False,
):
    c = load_config(f"{TRAINED}:smoke={smoke}").unlock()
    usual = "quartic" if rule == "swap" else "constant"
    c.method = dict(name="jackpots", rule=rule, restriction=restriction or usual)
    c.start.batch_stats = "rewind"
    c.masks.criterion = "magnitude"
    c.masks.density = density
    if not smoke:
        c.feed.batch_size = 256
        c.optim.ni = epochs * EPOCH
        c.evaluation.every = EPOCH
    return c
