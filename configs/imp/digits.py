"""Tickets of LeNet-300-100 on the UCI digits: the shape of Frankle & Carbin 2019 in a minute.

python scripts/imp.py --config=configs/imp/digits.py --save=save/digits
"""

from giung2_ext.experiments.config import default_config


def get_config(smoke: bool = False):
    c = default_config()
    c.model = dict(name="lenet")
    c.data = dict(name="digits")
    c.masks.prunable = "kernels"
    c.feed.batch_size = 60
    c.optim.name = "adam"
    c.optim.ni = 400
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
