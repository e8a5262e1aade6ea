"""RigL and its rivals in ResNet-50 on ImageNet (Evci et al. 2020, https://arxiv.org/abs/1911.11134).

    python scripts/train.py --config=configs/dynamic/resnet50_imagenet.py --method=rigl --density=0.2 \\
        --allocation=erk --data_root=DIR --mixed_precision=true --seed=0 --save=save/dynamic/resnet50

Methods are those of digits.py (the cited rows of static, snip and set want `--allocation=uniform`);
`--times=5` trains and changes masks five times as long. 32,000 steps of 4,096 images, SGD with Nesterov's
momentum at 1.6, a tenth of it after epochs 30, 70 and 90, warm-up of 5 epochs, decay 1e-4 on kernels, label
smoothing 0.1; masks change every 100 steps until 25,000. `uniform` keeps the first layer dense and out of
the density, `erk` prunes all. BatchNorm's groups of 128 are our guess. Hardware: 32 TPUv3 cores; not run:
no accelerator. Expected (cited: the authors' repository), top-1 % and training FLOPs against the dense
network's (76.8):

density   rigl erk        rigl uniform    erk, times=5   uniform, times=5
0.2       75.12, 0.42     74.60, 0.23     77.17          76.71
0.1       73.07, 0.24     72.02, 0.13     76.42          75.73
0.05      70.39 (a)                       74.63          73.22
0.035                                     72.77          71.31
0.01                                      61.86

(a) without label smoothing, with which 0.2 has 75.02 and 0.1 73.4. From memory of the paper: uniform 0.2
static 70.6, snip 72.0, set 72.9; 0.1 static 65.8, snip 67.2, set 69.6. The training FLOPs of the table come
out here as 0.415, 0.225, 0.244 and 0.128. Last verified: never run; built 2026-11-27.
"""

import pathlib

from giung2_ext.experiments.config import load_config

DIGITS = pathlib.Path(__file__).with_name("digits.py")
DENSE = pathlib.Path(__file__).parents[1] / "pretrain/resnet50_imagenet.py"
EPOCH = 1_281_167 // 4096  # steps


def get_config(
    method: str = "rigl",
    density: float = 0.2,
    allocation: str = "",
    times: int = 1,
    smoothing: float = 0.1,
    smoke: bool = False,
):
    steps = 32_000 * times
    given = f"method={method},density={density},allocation={allocation},steps={steps},every=100"
    sparse = load_config(f"{DIGITS}:{given},stop={25 / 32},smoke={smoke}")
    c = load_config(f"{DENSE}:smoke={smoke}").unlock()
    c.method, c.masks = sparse.method, sparse.masks
    c.masks.prunable = "inner" if allocation == "uniform" else "kernels"
    c.optim.ni = sparse.optim.ni
    c.optim.nesterov, c.optim.decay_on = True, "kernels"
    c.optim.label_smoothing = smoothing
    if not smoke:
        c.model.group_size = 128
        c.feed.batch_size = 4096
        c.optim.lr = 1.6
        c.optim.warmup = 5 * EPOCH / 32_000
        c.optim.milestones = tuple(times * epoch * EPOCH for epoch in (30, 70, 90))
    return c
