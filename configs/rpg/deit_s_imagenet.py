"""RPG, and with --method any method of dynamic/digits.py, in DeiT-S on ImageNet (Tian et al. 2023).

    python scripts/train.py --config=configs/rpg/deit_s_imagenet.py --density=0.1 --data_root=DIR \\
        --seed=0 --mixed_precision=true --save=save/rpg/deit_s

(https://arxiv.org/abs/2311.17493; the network and recipe of https://arxiv.org/abs/2012.12877.) 300 epochs
of 1,024 images, AdamW at 1e-3, warm-up of 5 epochs and a cosine, decoupled decay 0.05 on kernels, label
smoothing 0.1, two layers of RandAugment, mixup of 0.8. Without DeiT's cutmix, random erasing, stochastic
depth and repeated augmentation, so a dense network stays below its 79.8% (cited). Prunable are the matrices
of the blocks; RPG's rank loss is on all of them, where the published code has convolutions alone. Hardware:
8 GPUs or TPU cores; not run: no accelerator. Expected: unknown. Last verified: never run; built 2026-11-27.
"""

import pathlib

from giung2_ext.experiments.config import load_config

DIGITS = pathlib.Path(__file__).parents[1] / "dynamic/digits.py"
EPOCH = 1_281_167 // 1024  # steps


def get_config(
    method: str = "rpg", density: float = 0.1, allocation: str = "", epochs: int = 300, smoke: bool = False
):
    given = f"method={method},density={density},allocation={allocation},steps={epochs * EPOCH},every=100"
    c = load_config(f"{DIGITS}:{given},smoke={smoke}").unlock()
    c.masks.prunable = "blocks"
    c.model = dict(name="vit", size="Ti", depth=2, patch=4) if smoke else dict(name="vit", size="S")
    c.optim.name = "adamw"
    c.optim.weight_decay, c.optim.decay_on = 0.05, "kernels"
    c.optim.label_smoothing = 0.1
    c.optim.constant_lr = False
    c.optim.lr, c.optim.warmup = 1e-3, 5 / 300
    c.feed.mixup = 0.8
    if not smoke:
        c.data = dict(name="imagenet2012")
        c.feed.batch_size, c.feed.randaugment = 1024, 2
        c.feed.augment = "resized_crop"
        c.evaluation.every, c.evaluation.batch_size = EPOCH, 512
    return c
