"""Tickets of ResNet-20 on CIFAR-10, rewound to step 2,000, with re-initialised controls.

    python scripts/imp.py --config=configs/imp/resnet20_cifar10.py --data_root=DIR --mixed_precision=true \\
        --seed=0 --save=save/resnet20

The network and the rewinding of Frankle et al. 2020 (https://arxiv.org/abs/1912.05671) in the ImageNet
suite's recipe: rewind point at a constant rate, then cycles of 178 epochs with warm-up and cosine.
Convolutions are pruned, 20% a cycle, globally; weights are selected on 5,000 held-out training images.
Hardware: one GPU or a TPU core; not for a CPU (2 cores train 200 images a second, a cycle is 8 million).
Expected: 91.7 ± 0.2% dense (cited: Renda et al. 2020, https://arxiv.org/abs/2003.02389, 182 epochs with a
step schedule). Last verified: never in full; `:smoke` 2026-11-21, jax 0.10.2.
"""

from giung2_ext.experiments.config import default_config


def get_config(smoke: bool = False):
    c = default_config()
    c.model = dict(name="resnet_cifar", depth=20)
    c.data = dict(name="cifar10")
    c.feed.batch_size = 128
    c.feed.augment = "crop_flip"
    c.optim.ni = 62400
    c.optim.lr = 0.1
    c.optim.weight_decay = 1e-4
    c.evaluation.every = 1000
    c.evaluation.batch_size = 1000
    c.chain.rewind_ni = 2000
    c.chain.cycles = 18
    c.chain.arms = ("reinit",)
    if smoke:
        c.model.depth, c.model.planes, c.feed.batch_size = 8, 4, 16
        c.optim.ni, c.evaluation.every, c.chain.rewind_ni, c.chain.cycles = 4, 4, 2, 1
    return c
