"""Multi-Prize tickets of LeNet-300-100 on MNIST: masks searched over random binary weights.

    python scripts/train.py --config=configs/multiprize/lenet_mnist.py --density=0.5 --data_root=DIR \\
        --seed=0 --save=save/multiprize/lenet

Diffenderfer & Kailkhura 2021 (https://arxiv.org/abs/2103.09377) made small: every layer is masked, no bias
is learned. `--edge_popup` keeps the weights' sizes (Ramanujan et al. 2020,
https://arxiv.org/abs/1911.13299); `--weights=signed_constant` draws signs alone, and then both are the same
rule (but for rounding, which grows to other masks). `--scale_fan=none` is what the published names call
unscaled.
Measured test accuracy after the last step at density 0.1 / 0.5 (%, seeds 0 to 2): scaled 97.54 ± 0.19 /
96.84 ± 0.14, with `--edge_popup` 96.44 ± 0.35 / 97.18 ± 0.08; unscaled 91.75 ± 0.01 / 94.62 ± 0.23, with it
92.30 ± 0.16 / 95.98 ± 0.15. About 20 seconds on two CPU cores. Last verified 2026-11-22, jax 0.10.2.
"""

from giung2_ext.experiments.config import default_config

EPOCH = 55_000 // 256  # steps


def get_config(
    density: float = 0.5,
    epochs: int = 10,
    weights: str = "kaiming_normal",
    scale_fan: str = "kept",
    edge_popup: bool = False,
    smoke: bool = False,
):
    c = default_config()
    c.model = dict(name="lenet")
    c.data = dict(name="mnist")
    c.method = dict(name="multiprize", binarise=not edge_popup)
    c.start.weights, c.start.scale_fan = weights, scale_fan
    c.masks.prunable = "kernels"
    c.masks.criterion = "random"
    c.masks.allocation = "uniform"
    c.masks.density = density
    c.feed.batch_size = 256
    c.optim.ni = epochs * EPOCH
    c.optim.lr = 0.1
    c.optim.warmup = 0.0
    c.evaluation.every = EPOCH
    if smoke:
        c.data = dict(name="digits")
        c.optim.ni, c.evaluation.every = 20, 10
    return c
