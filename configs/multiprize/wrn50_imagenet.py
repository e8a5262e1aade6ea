"""Multi-Prize tickets of WRN-50-2 on ImageNet at density 0.2 (Diffenderfer & Kailkhura 2021).

    python scripts/train.py --config=configs/multiprize/wrn50_imagenet.py --norms --data_root=DIR \\
        --mixed_precision=true --seed=0 --save=save/multiprize/wrn50

(https://arxiv.org/abs/2103.09377.) Binary weights, 13.7 million of 68.8, drawn as signed constants and not
scaled, as in the authors' configs of this network. The other arguments are those of conv_cifar10.py; of
Kaiming normal weights the published rate is half as large.
10,000 training images are held out to choose on (there the validation images).
Hardware: one GPU, or a TPU; not run: no accelerator. Expected (cited: the authors' repository): 72.67%,
with `--norms` 74.03%. Last verified: never run; built 2026-11-22.
"""

import pathlib

from giung2_ext.experiments.config import load_config

RESNET18 = pathlib.Path(__file__).with_name("resnet18_cifar10.py")
EPOCH = (1_281_167 - 10_000) // 256  # steps


def get_config(
    density: float = 0.2,
    epochs: int = 100,
    weights: str = "signed_constant",
    scale_fan: str = "none",
    binary: bool = False,
    norms: bool = False,
    edge_popup: bool = False,
    smoke: bool = False,
):
    given = f"density={density},weights={weights},scale_fan={scale_fan},binary={binary},norms={norms}"
    c = load_config(f"{RESNET18}:{given},edge_popup={edge_popup},smoke={smoke}").unlock()
    c.optim.lr = 0.128 if weights == "kaiming_normal" else 0.256
    c.optim.momentum = 0.9 if binary else 0.875  # of adam the usual one
    c.optim.weight_decay = 0.0 if binary else 2.0**-15
    c.optim.label_smoothing = 0.1
    c.optim.warmup = 0.05
    if not smoke:
        c.model.depth, c.model.width, c.model.stem = 50, 2, "large"
        c.data = dict(name="imagenet2012")
        c.feed.augment = None
        c.optim.ni = epochs * EPOCH
        c.evaluation.every, c.evaluation.batch_size = EPOCH, 512
    return c
