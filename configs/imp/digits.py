"""Tickets of LeNet-300-100 on the UCI digits: the shape of Frankle & Carbin 2019 in a minute.

python scripts/imp.py --config=configs/imp/digits.py --save=save/digits --seed=0

Rewound to step 0, 3 trials, with re-initialised controls; Adam 1.2e-3, batch 60, 300 steps a cycle: about
when tickets have learned and re-initialised networks have not. 19 to 24 s on two CPU cores. Expected: dense
97.5%, tickets 98.3% at density 0.21 and 93.6% at 0.018, re-initialised 96.9% and 76.7%.
Last verified 2026-11-21, jax 0.10.2.
"""

from giung2_ext.experiments.config import default_config


def get_config(smoke: bool = False):
    c = default_config()
    c.model = dict(name="lenet")
    c.data = dict(name="digits")
    c.masks.prunable = "kernels"
    c.feed.batch_size = 60
    c.optim.name = "adam"
    c.optim.ni = 300
    c.optim.lr = 1.2e-3
    c.optim.weight_decay = 0.0
    c.optim.constant_lr = True
    c.evaluation.every = 100
    c.chain.rewind_ni = 0
    c.chain.cycles = 18
    c.chain.trials = 3
    c.chain.arms = ("reinit",)
    c.placement.log_every = 100
    if smoke:
        c.optim.ni, c.evaluation.every, c.chain.cycles, c.chain.trials = 100, 50, 2, 2
    return c
