"""A trained ResNet-50 on ImageNet, for jackpots/resnet50_imagenet.py to search masks in.

    python scripts/train.py --config=configs/pretrain/resnet50_imagenet.py --data_root=DIR \\
        --mixed_precision=true --seed=0 --save=save/pretrain/resnet50_imagenet

torchvision's architecture in the recipe of imagenet2012.py: 64,000 steps of 2,048 images, warm-up and
cosine; the published search starts from torchvision's own weights (76.13%, cited from memory). Hardware: as
imagenet2012.py, 8 TPUv3 cores or `--grad_accum=8` on one GPU; not run: no accelerator. Expected: about
76.1% (cited: the dense network of the original suite, 76.06%). Last verified: never run; built 2026-11-22.
"""

import pathlib

from giung2_ext.experiments.config import load_config

IMAGENET = pathlib.Path(__file__).parents[1] / "imagenet2012.py"


def get_config(smoke: bool = False):
    c = load_config(str(IMAGENET)).unlock()
    c.model.padding, c.model.head = "torch", "biased"
    c.masks.prunable = "body"
    if smoke:
        c.model.depth, c.model.planes, c.model.group_size = 18, (8, 16, 32, 64), 0
        c.data = dict(name="digits")
        c.feed.batch_size, c.optim.ni, c.evaluation.every = 32, 20, 10
    return c
