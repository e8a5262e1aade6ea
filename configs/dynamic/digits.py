"""Weights and masks together, on the UCI digits with LeNet-300-100: every method, a second or ten each.

    python scripts/train.py --config=configs/dynamic/digits.py --method=rigl --density=0.02 --seed=0 \\
        --save=save/rigl

`--method` is what finds the mask. It changes while the weights train: `rigl`, `set`, `snfs` (from a random
mask of this density), `gradual`, `rpg`, `ste` (from the dense network); or it is chosen before the first
step and stays: `static` (random), `magnitude`, `snip`, `grasp`, `synflow`. Masks change every `every` steps
of the first `stop` of the run. `--allocation=global|uniform|erk` says how layers share the density; unless
it is given, erk for random masks and global for the others. Other files of this folder load this one.
Measured test accuracy of the best ticket (%, density 0.02, seed 0): rigl 96.5, snfs 97.2, gradual 96.7, rpg
96.7, ste 97.5; static 78.3, magnitude 88.7, snip 93.2, grasp 93.7, synflow 95.0.
Two CPU cores. Last verified 2026-11-27, jax 0.10.2.
"""

from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.experiments.config import default_config

SWAPPING, RAMPED = ("rigl", "set", "snfs"), ("gradual", "ste", "rpg")
CHOSEN = {
    "static": "random",
    "magnitude": "magnitude",
    "snip": "snip",
    "grasp": "grasp",
    "synflow": "synflow",
}


def get_config(
    method: str = "rigl",
    density: float = 0.02,
    allocation: str = "",
    steps: int = 2000,
    every: int = 25,
    stop: float = 0.75,
    drop: float = 0.3,
    smoke: bool = False,
):
    if method not in (*SWAPPING, *RAMPED, *CHOSEN):
        raise unknown("--method", method, (*SWAPPING, *RAMPED, *CHOSEN))
    if allocation and method == "rpg":
        raise Refusal("--allocation: rpg ranks all layers together; leave it out")
    if drop != 0.3 and method not in (*SWAPPING, "rpg"):
        raise Refusal(f"--drop is what {', '.join(SWAPPING)} and rpg swap; {method} swaps nothing")
    if smoke:
        steps, every = 100, 10
    c = default_config()
    c.model = dict(name="lenet")
    c.data = dict(name="digits")
    c.masks.prunable = "kernels"
    c.feed.batch_size = 60
    c.optim.name = "adam"
    c.optim.ni = steps
    c.optim.lr = 1.2e-3
    c.optim.weight_decay = 0.0
    c.optim.constant_lr = True
    c.evaluation.every = 50 if smoke else 250

    end = int(stop * steps)
    if method in SWAPPING:
        c.method = dict(name=method, every=every, stop=end, drop=drop)
    elif method in ("gradual", "ste"):
        how = dict(density=density, end=end, every=every, allocation=allocation or "global")
        c.method = dict(name=method, **how)
    elif method == "rpg":
        ramp = stop - 2 * every / steps  # so that the density is reached before the last update
        c.method = dict(name=method, density=density, every=every, ramp=ramp, stop=stop, swap=drop)
    else:
        c.method = dict(name="ticket")
    if method in (*SWAPPING, *CHOSEN):
        c.masks.criterion = CHOSEN.get(method, "random")
        c.masks.density = density
        c.masks.allocation = allocation or ("erk" if c.masks.criterion == "random" else "global")
    return c
