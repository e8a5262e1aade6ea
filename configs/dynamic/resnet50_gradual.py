"""Gradual pruning of ResNet-50 on ImageNet: the table of JaxPruner (Lee et al. 2023).

    python scripts/train.py --config=configs/dynamic/resnet50_gradual.py --criterion=magnitude \\
        --data_root=DIR --mixed_precision=true --seed=0 --save=save/dynamic/resnet50_gradual

(https://arxiv.org/abs/2304.14082; the schedule of Zhu & Gupta 2017.) 100 epochs of 4,096 images, SGD with
momentum at 1.6, warm-up of 5 epochs and a cosine, decay 1e-4; masks shrink every 1,000 steps from 10,000 to
25,000; every layer but the first keeps the density (`--allocation=global` ranks all together).
`--criterion=magnitude|saliency|random`, `--method=ste` for top-k with straight-through gradients;
`--structure= 2:4 --density=0.5` ends in that pattern. Hardware: 32 TPUv3 cores; not run: no accelerator.
Expected (cited: its README), top-1 % at density 0.2, dense 76.67: magnitude 75.53, saliency 74.93, random
70.19, magnitude and global 75.49, ste 73.54. Rows of it for resnet50_imagenet.py with
`--allocation=uniform`, where a tenth is dropped every 1,000 steps: static 71.34, set 74.57, rigl 74.75. Of
"The State of Sparsity" (cited from its published runs, best and median of 54 settings): magnitude 0.5
76.53, 75.87; 0.2 75.58, 74.97; 0.1 73.91, 73.43; 0.05 70.59, 69.91. Last verified: never run; built
2026-11-27.
"""

import pathlib

from giung2_ext.experiments.config import load_config

DENSE = pathlib.Path(__file__).parents[1] / "pretrain/resnet50_imagenet.py"
EPOCH = 1_281_167 // 4096  # steps


def get_config(
    method: str = "gradual",
    density: float = 0.2,
    criterion: str = "magnitude",
    allocation: str = "uniform",
    structure: str = "none",
    smoke: bool = False,
):
    c = load_config(f"{DENSE}:smoke={smoke}").unlock()
    every, begin, end = (2, 4, 14) if smoke else (1_000, 10_000, 25_000)
    c.method = dict(name=method, density=density, begin=begin, end=end, every=every)
    c.method.allocation, c.method.structure = allocation, structure
    if method == "gradual":
        c.method.criterion = criterion
    c.masks.prunable = "inner"
    if not smoke:
        c.model.group_size = 128
        c.feed.batch_size = 4096
        c.optim.ni = 100 * EPOCH
        c.optim.lr, c.optim.warmup = 1.6, 0.05
    return c
