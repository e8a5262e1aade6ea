"""RigL and its rivals in WRN-22-2 on CIFAR-10 (Evci et al. 2020, https://arxiv.org/abs/1911.11134).

    python scripts/train.py --config=configs/dynamic/wrn22_cifar10.py --method=rigl --density=0.1 \\
        --data_root=DIR --seed=0 --save=save/dynamic/wrn22_cifar10

Arguments and methods are those of digits.py. 250 epochs of 128 images, SGD with Nesterov's momentum at 0.1,
a fifth of it after every 30,000 steps, decay 5e-4, masks change every 100 steps of the first 75% (the
recipe from memory of the paper). Hardware: one GPU or a TPU core; not run: no accelerator. Expected (cited:
an author, a public thread), test % at densities .5, .2, .1, .05: rigl (erk) 94.2, 93.6, 92.9, 91.8; static
(erk) 94.1, 92.9, 91.5, 89.0; gradual 94.0, 93.6, 93.3, 92.3. Last verified: never run; built 2026-11-27.
"""

import pathlib

from giung2_ext.experiments.config import load_config

RESNET32 = pathlib.Path(__file__).with_name("resnet32_cifar10.py")


def get_config(
    method: str = "rigl", density: float = 0.1, allocation: str = "", epochs: int = 250, smoke: bool = False
):
    given = (
        f"method={method},density={density},allocation={allocation},epochs={epochs},stop=0.75,smoke={smoke}"
    )
    c = load_config(f"{RESNET32}:{given}").unlock()
    c.model = dict(name="wide_resnet", depth=10 if smoke else 22, width=1 if smoke else 2)
    c.optim.nesterov = True
    if not smoke:
        c.optim.milestones = tuple(range(30_000, c.optim.ni, 30_000))
        c.optim.decay_factor = 0.2
    return c
