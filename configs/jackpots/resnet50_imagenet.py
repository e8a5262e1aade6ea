"""Lottery Jackpots in ResNet-50 on ImageNet at densities 0.2 and 0.1 (Zhang et al. 2021).

    python scripts/train.py --config=configs/jackpots/resnet50_imagenet.py --density=0.2 --epochs=30 \\
        --matching_ckpt=save/pretrain/resnet50_imagenet/best_acc.ckpt --data_root=DIR --seed=0 \\
        --save=save/jackpots/resnet50
    python scripts/train.py --config=configs/jackpots/resnet50_imagenet.py --tune=10 \\
        --matching_ckpt=save/jackpots/resnet50/best_acc.ckpt --data_root=DIR --seed=0 \\
        --save=save/jackpots/resnet50_tuned

(https://arxiv.org/abs/2104.08700.) As resnet32_cifar10.py, of the weights of pretrain/resnet50_imagenet.py.
`--tune=10` is the published stage of so many epochs in which everything trains under the mask that was
found, whatever the other arguments. The choice is on 10,000 held-out training images (there top-5 on test).
Hardware: one GPU or a TPU core; not run: no accelerator. Expected (cited: the authors' repository at the
paper's time): density 0.2 74.53% after 30 epochs and 75.26% after 60, 0.1 72.17% and 72.46%; later 75.19%
and 72.43%, both after 30. Last verified: never run; built 2026-11-22.
"""

import pathlib

from giung2_ext.experiments.config import load_config

RESNET32 = pathlib.Path(__file__).with_name("resnet32_cifar10.py")
TRAINED = pathlib.Path(__file__).parents[1] / "pretrain/resnet50_imagenet.py"
EPOCH = (1_281_167 - 10_000) // 256  # steps


def get_config(
    density: float = 0.2,
    epochs: int = 30,
    rule: str = "swap",
    restriction: str = "",
    tune: int = 0,
    smoke: bool = False,
):
    given = f"density={density},rule={rule},restriction={restriction},smoke={smoke}"
    c = load_config(f"{RESNET32}:{given}").unlock()
    trained = load_config(f"{TRAINED}:smoke={smoke}")
    c.model, c.data = trained.model, trained.data
    c.feed.augment = trained.feed.augment
    c.optim.weight_decay = 1e-4
    if tune:
        c.method = dict(name="ticket")
        c.masks.criterion, c.masks.density = "none", 1.0
        c.optim.lr, c.optim.weight_decay = 0.01, 0.0
    if not smoke:
        c.optim.ni = (tune or epochs) * EPOCH
        c.evaluation.every, c.evaluation.batch_size = EPOCH, 512
    return c
