"""RPG in ResNet-32 of twice He's width on CIFAR-10 (Tian et al. 2023).

    python scripts/train.py --config=configs/rpg/resnet32_cifar10.py --density=0.05 --data_root=DIR \\
        --matching_ckpt=save/pretrain/resnet32_cifar10/best_acc.ckpt --seed=0 \\
        --save=save/rpg/resnet32_cifar10

(https://arxiv.org/abs/2311.17493.) From the weights of pretrain/resnet32_cifar10.py, or from scratch
without --matching_ckpt; the recipe that the authors give (a public thread): 300 epochs, SGD at 0.1, batch
128, decay 5e-4, rank weight 0.5, tolerance 0.1, updates in the first 80%. There ramp and stop are both 0.8,
with which the density is never quite reached; here the ramp ends two updates earlier. The published numbers
of this network at densities 0.005 and 0.001 were withdrawn by the authors (best epochs of a higher
density), which cannot happen here. Hardware: one GPU or a TPU core; not run: no accelerator. Expected:
unknown. Last verified: never run; built 2026-11-27.
"""

import pathlib

from giung2_ext.experiments.config import load_config

DYNAMIC = pathlib.Path(__file__).parents[1] / "dynamic/resnet32_cifar10.py"


def get_config(density: float = 0.05, epochs: int = 300, smoke: bool = False):
    c = load_config(f"{DYNAMIC}:method=rpg,density={density},epochs={epochs},smoke={smoke}").unlock()
    c.start.batch_stats = "rewind"
    return c
