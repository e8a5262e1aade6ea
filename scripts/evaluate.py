"""Judges a ticket on one or more datasets.

    python scripts/evaluate.py --ckpt=DIR/best_acc.ckpt --data_root=DIR \\
        --datasets=imagenet2012,imagenet_v2,imagenet_r,imagenet_a,imagenet_sketch [--against=OTHER]

  --datasets=…     default: the ticket's own. Also imagenet_v2/threshold-0.7 and /topimages, imagenet_real,
                   imagenet_c (all that is there) or imagenet_c/fog_3
  --split=test     test, holdout or train
  --pipeline=timm  how images are brought to the network's size: timm or tf; arrays are as they are
  --form=auto      tfds, folders or arrays, where a set is there in several
  --against=…      another ticket: paired differences, and the examples that flipped
  --data_root=DIR  where the data is; $TFDS_DATA_DIR too
  --batch_size=512 --num_workers=32 (threads) --worker_processes=0 --mesh=data:8 --distributed=auto

Network and preprocessing are the ticket's. Scores: top-1 and top-5 accuracy, NLL, Brier score, ECE (15
bins), each with a 95% bootstrap interval. ImageNet-R and -A are judged among their 200 classes and among
all 1,000. Predictions of every example are kept beside the ticket, in predictions/.
"""

import sys

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import command, evaluate, flags
from giung2_ext.training import processes

PLACEMENT = ("data_root", "num_workers", "worker_processes", "prefetch_factor", "mesh", "distributed")
OWN = {"ckpt": None, "datasets": "", "split": "test", "pipeline": "timm", "against": None, "form": None}
OWN |= {"batch_size": "512"} | dict.fromkeys(PLACEMENT)


def main():
    if "--help" in sys.argv:
        print(__doc__.strip())
        return
    given = flags.parse_own(sys.argv[1:], OWN)
    if not given["ckpt"]:
        raise Refusal(
            "--ckpt=PATH of a ticket is required, for example save/digits/trial_0/007/best_acc.ckpt"
        )
    batch_size = flags.convert(given["batch_size"], int, False, "batch_size")
    if batch_size < 1:
        raise Refusal(f"--batch_size must be at least 1, got {batch_size}")
    where = flags.placement_of({name: given[name] for name in PLACEMENT})
    processes.connect(where.distributed, where.joined_within, where.lost_after)
    evaluate.evaluate(
        given["ckpt"],
        [name for name in given["datasets"].split(",") if name],
        where,
        pipeline=given["pipeline"],
        split=given["split"],
        form=given["form"],
        batch_size=batch_size,
        against=given["against"],
    )


if __name__ == "__main__":
    command.guarded(main)
