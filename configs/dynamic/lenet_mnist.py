"""Weights and masks together, in LeNet-300-100 on MNIST at densities .05, .02 and .01.

    python scripts/train.py --config=configs/dynamic/lenet_mnist.py --method=rpg --density=0.01 \\
        --data_root=DIR --seed=0 --save=save/dynamic/lenet

Arguments and methods are those of digits.py; `--rank_weight=0` leaves RPG's rank loss out. 10,000 steps of
60 images, Adam at a constant 1.2e-3, masks change every 100 steps of the first 75%, all three kernels are
prunable. The recipe is ours.
Measured test accuracy after the last step (%, seeds 0 to 2, mean ± sd):

density   static         set            rigl           gradual        rpg            rpg, rank_weight=0
0.05      97.03 ± 0.09   97.60 ± 0.16   97.59 ± 0.15   98.20 ± 0.10   98.30 ± 0.15   98.27 ± 0.08
0.02      95.07 ± 0.33   96.37 ± 0.13   96.95 ± 0.20   97.93 ± 0.01   98.01 ± 0.05   98.06 ± 0.02
0.01      91.01 ± 0.39   94.52 ± 0.19   95.67 ± 0.03   97.51 ± 0.06   97.35 ± 0.07   97.39 ± 0.22

Last verified 2026-11-27, jax 0.10.2.
"""

import pathlib

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments.config import load_config

DIGITS = pathlib.Path(__file__).with_name("digits.py")


def get_config(
    method: str = "rigl",
    density: float = 0.05,
    allocation: str = "",
    steps: int = 10_000,
    rank_weight: float = 0.5,
    smoke: bool = False,
):
    if method != "rpg" and rank_weight != 0.5:
        raise Refusal("--rank_weight is rpg's; leave it out")
    given = (
        f"method={method},density={density},allocation={allocation},steps={steps},every=100,smoke={smoke}"
    )
    c = load_config(f"{DIGITS}:{given}").unlock()
    if method == "rpg":
        c.method.rank_weight = rank_weight
    if not smoke:
        c.data = dict(name="mnist")
        c.evaluation.every = 1000
    return c
