"""Lottery Jackpots in VGG-19 on CIFAR-10 at densities 0.1 and 0.05 (Zhang et al. 2021).

    python scripts/train.py --config=configs/jackpots/vgg19_cifar10.py --density=0.1 --epochs=30 \\
        --matching_ckpt=save/pretrain/vgg19_cifar10/best_acc.ckpt --data_root=DIR --seed=0 \\
        --save=save/jackpots/vgg19_cifar10

As resnet32_cifar10.py, over the weights of pretrain/vgg19_cifar10.py. Not run: no accelerator. Expected
(cited: the authors' repository): density 0.1 93.88% after 30 epochs and 93.94% after 160, 0.05 93.49% and
93.74%. Last verified: never run; built 2026-11-22.
"""

import pathlib

from giung2_ext.experiments.config import load_config

RESNET32 = pathlib.Path(__file__).with_name("resnet32_cifar10.py")
TRAINED = pathlib.Path(__file__).parents[1] / "pretrain/vgg19_cifar10.py"


def get_config(
    density: float = 0.1,
    epochs: int = 30,
    rule: str = "swap",
    restriction: str = "",
    smoke: bool = False,
):
    given = f"density={density},epochs={epochs},rule={rule},restriction={restriction},smoke={smoke}"
    c = load_config(f"{RESNET32}:{given}").unlock()
    trained = load_config(f"{TRAINED}:smoke={smoke}")
    c.model, c.data = trained.model, trained.data
    return c
