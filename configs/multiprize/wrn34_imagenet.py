"""Multi-Prize tickets of binary weights and activations: WRN-34 on ImageNet at density 0.4.

    python scripts/train.py --config=configs/multiprize/wrn34_imagenet.py --norms --data_root=DIR \\
        --mixed_precision=true --seed=0 --save=save/multiprize/wrn34

Diffenderfer & Kailkhura 2021 (https://arxiv.org/abs/2103.09377): Adam at a constant 2e-4, 120 epochs,
Kaiming normal weights, the public code's widths (19.3 million weights kept). As wrn50_imagenet.py
otherwise.
Hardware: one GPU, or a TPU; not run: no accelerator. Expected (cited: the authors' repository): 45.06%,
with `--norms` 52.07%. Last verified: never run; built 2026-11-22.
"""

import pathlib

from giung2_ext.experiments.config import load_config

WRN50 = pathlib.Path(__file__).with_name("wrn50_imagenet.py")


def get_config(
    density: float = 0.4,
    epochs: int = 120,
    weights: str = "kaiming_normal",
    scale_fan: str = "kept",
    norms: bool = False,
    smoke: bool = False,
):
    given = f"density={density},epochs={epochs},weights={weights},scale_fan={scale_fan},norms={norms}"
    c = load_config(f"{WRN50}:{given},binary,smoke={smoke}").unlock()
    c.optim.lr = 2e-4
    c.optim.constant_lr = True
    if not smoke:
        c.model.depth, c.model.width, c.model.planes = 34, 1, (64, 192, 384, 768)
    return c
