"""RPG in VGG-19 on CIFAR-10 (Tian et al. 2023).

    python scripts/train.py --config=configs/rpg/vgg19_cifar10.py --density=0.05 --data_root=DIR --seed=0 \\
        --matching_ckpt=save/pretrain/vgg19_cifar10/best_acc.ckpt --save=save/rpg/vgg19_cifar10

(https://arxiv.org/abs/2311.17493.) As resnet32_cifar10.py, from the weights of pretrain/vgg19_cifar10.py or
from scratch. Not run: no accelerator. Expected: unknown. Last verified: never run; built 2026-11-27.
"""

import pathlib

from giung2_ext.experiments.config import load_config

DYNAMIC = pathlib.Path(__file__).parents[1] / "dynamic/vgg19_cifar10.py"


def get_config(density: float = 0.05, epochs: int = 300, smoke: bool = False):
    c = load_config(f"{DYNAMIC}:method=rpg,density={density},epochs={epochs},smoke={smoke}").unlock()
    c.start.batch_stats = "rewind"
    return c
