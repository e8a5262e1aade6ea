"""ResNet-50 tickets on ImageNet: the recipe of the original lottery-ticket suite, flag by flag.

    python scripts/imp.py --optim_ni=48000 --mixed_precision=true --seed=0 --save=save/imagenet2012

is, with every cycle typed by hand,

    python scripts/train.py --optim_ni=16000 --constant_lr=true --periodic_ckpt=true \\
        --mixed_precision=true --seed=0 --save=save/imagenet2012
    python scripts/train.py --optim_ni=48000 --mixed_precision=true --seed=0 \\
        --matching_ckpt=save/imagenet2012/iter_016000.ckpt \\
        --previous_ckpt=save/imagenet2012/iter_016000.ckpt --save=save/imagenet2012/000
    python scripts/train.py --optim_ni=48000 --mixed_precision=true --seed=0 --pruning_ratio=0.8 \\
        --matching_ckpt=save/imagenet2012/iter_016000.ckpt \\
        --previous_ckpt=save/imagenet2012/000/best_acc.ckpt --save=save/imagenet2012/001
    and so on.

BatchNorm statistics are those of groups of 256 images, what one of its 8 cores saw of a batch of 2,048, on
any number of chips (`--grad_accum=8` on one); on a pod every worker runs the same command, with a `--save`
that all of them see. `legacy_scores` ranks weights as it did, `select_on` chooses checkpoints as it did:

    … --config.start.legacy_scores=true --config.evaluation.select_on=test

Hardware and time: 8 TPUv3 cores, 5.7 h a cycle, about 110 h for the rewind point and 19 cycles (cited:
logs of the original suite). Expected: 76.06% top-1 dense, 76.54% at density 0.21, 70.52% at 0.018
(cited: its README, one run, checkpoint selected on the validation set that is reported).
Last verified: never; the network is here, its data source is not yet (`--data_name=arrays` is).
"""

from giung2_ext.experiments.config import default_config


def get_config(smoke: bool = False):
    c = default_config()
    c.placement.log_every = 25  # about 5 s: what SIGTERM waits for
    if smoke:
        c.model.depth, c.model.group_size = 18, 0
        c.feed.batch_size, c.optim.ni, c.chain.rewind_ni, c.chain.cycles = 8, 4, 2, 1
        c.evaluation.every = c.tickets.every = 2
    return c
