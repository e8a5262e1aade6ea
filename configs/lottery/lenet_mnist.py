"""The lottery tickets of LeNet-300-100 on MNIST: Figures 1 and 3 of Frankle & Carbin 2019.

    python scripts/imp.py --config=configs/lottery/lenet_mnist.py --data_root=DIR --seed=0 --save=save/lenet

(https://arxiv.org/abs/1803.03635.) Adam 1.2e-3, batch 60, 50,000 iterations a level; at each of 27 levels
20% of the weights that are left are pruned, 10% in the last layer, by their size at the end of training.
Validation every 100 iterations; the early stop is the iteration of its lowest loss. 5 trials, with
re-initialised and with randomly sampled sparse networks (5 of these too, the paper has 10); validation is
on the last 5,000 training images (there on random ones), and the partial batch of an epoch is dropped.

In full about 5 hours on two CPU cores (by its rate; never run). Measured 2026-11-21, jax 0.10.2: 10,000
iterations, 19 levels, 3 trials, arms reinit, shuffle, no_rewind and random in 42 minutes there: dense 97.8%
with an early stop at 3,333, 21.1% of the weights 98.3% at 1,967 (re-initialised 97.9% at 7,133), 3.6%
98.0% at 3,767 (96.7% at 9,333). Its figures and results.csv are in lenet_mnist/.
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
    c.chain.arms = ("reinit", "random")
    c.placement.log_every = 100
    if smoke:
        c.optim.ni, c.chain.cycles, c.chain.trials = 200, 2, 2
        c.evaluation.test_every = 100
    return c
