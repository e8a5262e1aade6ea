"""A trained ResNet-32 of twice He's width on CIFAR-10, for jackpots/resnet32_cifar10.py to search masks in.

    python scripts/train.py --config=configs/pretrain/resnet32_cifar10.py --data_root=DIR --seed=0 \\
        --save=save/pretrain/resnet32_cifar10

The network of Lottery Jackpots (https://arxiv.org/abs/2104.08700) with its images and augmentation. How it
was trained is not published; SGD at 0.1, batch 128, decay 5e-4, 160 epochs and a cosine are our choice.
Hardware: one GPU or a TPU core; not run: no accelerator. Expected: about 94.8% (cited from memory: the
dense network in GraSP's tables, 94.80%). Last verified: never run; built 2026-11-22.
"""

from giung2_ext.experiments.config import default_config

EPOCH = 45_000 // 128  # steps


def get_config(epochs: int = 160, smoke: bool = False):
    c = default_config()
    c.model = dict(name="resnet_cifar", depth=32, planes=32, shortcut="pad", head="biased", padding="torch")
    c.data = dict(name="cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
    c.masks.prunable = "body"
    c.feed.batch_size = 128
    c.feed.augment = "crop_flip"
    c.optim.ni = epochs * EPOCH
    c.optim.lr = 0.1
    c.optim.weight_decay = 5e-4
    c.optim.warmup = 0.0
    c.evaluation.every = EPOCH
    c.evaluation.batch_size = 1000
    if smoke:
        c.model.depth, c.model.planes = 8, 4
        c.data = dict(name="digits")
        c.feed.batch_size, c.optim.ni, c.evaluation.every = 32, 20, 10
    return c
