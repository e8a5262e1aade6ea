"""Prune, rewind, train again, one data epoch a cycle: the students' "binary tickets" with their flags.

    python scripts/train.py --config=configs/multiprize/cycles.py --data_root=DIR --seed=0 \\
        --save=save/cycles

Each of --epochs cycles is an epoch (916 batches of 60 of mnist, 750 of cifar10; --batch_size); all but the
first begin by removing --prune_percent of what each kernel has left and rewinding the rest (that batch
trains nothing). best_acc.ckpt is of the last cycle, whose density is final. --arch_type is fc1
(784-300-100), lenet5, alexnet, resnet18, vgg16 or conv2, 4, 6 or 8; --dataset mnist or cifar10; --lr is
Adam's rate. --score ranks scores, which gradients move at --lr, instead of weights; --binarize shows the
network signs times one gain a kernel; --mini_batch prunes after every batch, for one epoch whatever
--epochs: as published every kernel is left with one weight. --test_freq=N measures every N batches (916:
each cycle's end).

Not reproduced of that code: negative weights got no gradient; BatchNorm's scales were pruned and
binarised; rewound biases were not the first ones; most of an epoch ran in evaluation mode; the first
cycle's rate was 1e-3 whatever --lr; CIFAR-10 had MNIST's mean and deviation; accuracy was divided by
images that were not seen, chosen on test and paired with the density after the next pruning; the last mask
never trained; --score ranked indices; --binarize took gradients at the inputs from float weights; vgg16 did
not run, resnet18 had 1,000 classes on mnist, lenet5 was another network there; no seed. Here biases begin
at 0, not N(0, 1).

Hardware: two CPU cores for fc1, one GPU for the convolutional ones (never run in full). Measured on mnist
2026-11-22, jax 0.10.2, seed 0: 50 cycles in 140 seconds, test accuracy 97.5% with 8.1% of the weights (a
dense cycle: 96.9% on validation); --mini_batch ends at 13.5% with 3 weights. `smoke` is on digits, seconds.
"""

from giung2_ext.core.errors import unknown
from giung2_ext.experiments.config import default_config

MODELS = {
    "fc1": dict(name="lenet"),
    "lenet5": dict(name="lenet5"),
    "alexnet": dict(name="alexnet"),
    "resnet18": dict(name="resnet", depth=18, stem="small", head="biased", padding="torch"),
    "vgg16": dict(name="vgg", plan="16", norm=False, head="dense"),
    **{f"conv{depth}": dict(name="conv", depth=depth) for depth in (2, 4, 6, 8)},
}
TRAINED_ON = {"mnist": 55_000, "cifar10": 45_000}  # images, without the suite's 5,000 for validation


def get_config(
    lr: float = 1.2e-3,
    epochs: int = 50,
    test_freq: int = 50,
    batch_size: int = 60,
    dataset: str = "mnist",
    arch_type: str = "fc1",
    prune_percent: float = 5.0,
    mini_batch: bool = False,
    score: bool = False,
    binarize: bool = False,
    smoke: bool = False,
):
    if dataset not in TRAINED_ON:
        raise unknown("dataset", dataset, TRAINED_ON)
    if arch_type.lower() not in MODELS:
        raise unknown("arch_type", arch_type, MODELS)
    c = default_config()
    c.model = MODELS[arch_type.lower()]
    c.data = dict(name="digits" if smoke else dataset)
    c.masks.prunable = "kernels"
    c.feed.batch_size = batch_size
    epoch = (1200 if smoke else TRAINED_ON[dataset]) // batch_size
    cycles = min(epochs, 3) if smoke else epochs
    c.optim.ni = epoch if mini_batch else cycles * epoch
    c.optim.name = "adam"
    c.optim.lr = lr
    c.optim.weight_decay = 1e-4
    c.optim.constant_lr = True
    c.method = dict(
        name="cycles",
        every=1 if mini_batch else epoch,
        percent=prune_percent,
        by="scores" if score else "weights",
        binarise=binarize,
        rewind=not mini_batch,
        score_rate=lr,
    )
    c.evaluation.every = test_freq
    return c
