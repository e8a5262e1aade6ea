"""The lottery tickets of LeNet-300-100 on MNIST: Figures 1 and 3 of Frankle & Carbin 2019.

    python scripts/imp.py --config=configs/lottery/lenet_mnist.py --data_root=DIR --seed=0 --save=save/lenet

(https://arxiv.org/abs/1803.03635.) Adam 1.2e-3, batch 60, 50,000 iterations a level; at each of 27 levels
20% of the weights that are left are pruned, 10% in the last layer, by their size at the end of training.
Validation on 5,000 held-out images every 100 iterations; the early-stopping iteration is that of its
lowest loss.
"""

from giung2_ext.experiments.config import default_config


def get_config(smoke: bool = False):
    c = default_config()
    c.model = dict(name="lenet")
    c.data = dict(name="mnist", mean=(0.0,), std=(1.0,))
    c.masks.prunable = "kernels"
    c.feed.batch_size = 60
    c.optim.name = "adam"
    c.optim.ni = 50000
    c.optim.lr = 1.2e-3
    c.optim.weight_decay = 0.0
    c.optim.constant_lr = True
    c.start.rounding = "nearest"
    c.evaluation.every = 100
    c.evaluation.select_by = "loss"
    c.evaluation.test_every = 500
    c.chain.rewind_ni = 0
    c.chain.cycles = 27
    c.chain.pruning_ratio = 1.0
    c.chain.layer_ratios = "dense:0.8,cls:0.9"
    c.chain.prune_from = "last"
    c.chain.trials = 5
    c.chain.arms = ("reinit",)
    c.placement.log_every = 100
    if smoke:
        c.optim.ni, c.chain.cycles, c.chain.trials = 200, 2, 2
        c.evaluation.test_every = 100
    return c
