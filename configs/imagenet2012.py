"""ResNet-50 tickets on ImageNet: the recipe of the original lottery-ticket suite, flag by flag.

    python scripts/imp.py --data_root=DIR --optim_ni=48000 --mixed_precision=true --seed=0 \\
        --save=save/imagenet2012

is, with every cycle typed by hand,

    python scripts/train.py --data_root=DIR --optim_ni=16000 --constant_lr=true --periodic_ckpt=true \\
        --mixed_precision=true --seed=0 --save=save/imagenet2012
    python scripts/train.py --data_root=DIR --optim_ni=48000 --mixed_precision=true --seed=0 \\
        --matching_ckpt=save/imagenet2012/iter_016000.ckpt \\
        --previous_ckpt=save/imagenet2012/iter_016000.ckpt --save=save/imagenet2012/000
    python scripts/train.py --data_root=DIR --optim_ni=48000 --mixed_precision=true --seed=0 \\
        --pruning_ratio=0.8 --matching_ckpt=save/imagenet2012/iter_016000.ckpt \\
        --previous_ckpt=save/imagenet2012/000/best_acc.ckpt --save=save/imagenet2012/001
    and so on.

BatchNorm statistics are those of groups of 256 images, what one of its 8 cores saw of a batch of 2,048, on
any number of chips (`--grad_accum=8` on one); on a pod every worker runs the same command, with a `--save`
that all of them see. Checkpoints are chosen on 10,000 training images that are held out, and the
best of every run is judged on ImageNet, V2, R, A and Sketch, as far as they are in DIR. Weights ranked,
images trained on and checkpoints chosen as it did:

    … --config.start.legacy_scores=true --config.data.holdout=0 --select_on=validation

Hardware and time: 8 TPUv3 cores, 5.7 h a cycle, about 110 h for the rewind point and 19 cycles (cited:
logs of the original suite). Expected: 76.06% top-1 dense, 76.54% at density 0.21, 70.52% at 0.018
(cited: its README, one run, checkpoint selected on the validation set that is reported).
Last verified: never at this size; `:smoke`, a small ResNet on the tree of scripts/make_imagenet.py,
2026-11-21, jax 0.10.2.
"""

from giung2_ext.experiments.config import default_config


def get_config(smoke: bool = False):
    c = default_config()
    c.placement.log_every = 25  # about 5 s: what SIGTERM waits for
    if smoke:
        c.model = dict(name="resnet_cifar", depth=8, planes=8)
        c.data = dict(name="imagenet2012", image_size=32, holdout=40)
        c.feed.batch_size, c.optim.lr, c.optim.ni, c.chain.rewind_ni, c.chain.cycles = 32, 0.1, 30, 10, 2
        c.evaluation.every = c.tickets.every = 10
        c.evaluation.batch_size = c.judge.batch_size = 64
    return c
