"""Weights and masks together, in ResNet-32 of twice He's width on CIFAR-10.

    python scripts/train.py --config=configs/dynamic/resnet32_cifar10.py --method=rigl --density=0.05 \\
        --data_root=DIR --seed=0 --save=save/dynamic/resnet32_cifar10

Arguments and methods are those of digits.py. The network is that of pretrain/resnet32_cifar10.py, the
recipe the one that RPG's authors give for CIFAR-10 (a public thread): SGD at 0.1, batch 128, decay 5e-4,
300 epochs, masks change every 100 steps of the first 80%. All kernels are prunable, the classifier too.
Hardware: one GPU or a TPU core; not run: no accelerator. Expected: unknown; dense about 94.8% (cited from
memory: GraSP's tables). Last verified: never run; built 2026-11-27.
"""

import pathlib

from giung2_ext.experiments.config import load_config

DIGITS = pathlib.Path(__file__).with_name("digits.py")
DENSE = pathlib.Path(__file__).parents[1] / "pretrain/resnet32_cifar10.py"


def get_config(
    method: str = "rigl",
    density: float = 0.05,
    allocation: str = "",
    epochs: int = 300,
    stop: float = 0.8,
    smoke: bool = False,
):
    c = load_config(f"{DENSE}:epochs={epochs},smoke={smoke}").unlock()
    steps = c.optim.ni
    given = f"method={method},density={density},allocation={allocation},steps={steps},every=100,stop={stop}"
    sparse = load_config(f"{DIGITS}:{given},smoke={smoke}")
    c.method, c.masks = sparse.method, sparse.masks
    c.optim.decay_on = "kernels"
    if smoke:
        c.optim.ni = sparse.optim.ni
    return c
