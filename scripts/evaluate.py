"""Judges a ticket: python scripts/evaluate.py --ckpt=DIR/best_acc.ckpt [--split=test] [--data_root=DIR]

Network, data and preprocessing are the ticket's own; splits are train, validation and test.
"""

import sys

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import command, evaluate, flags

OWN = {"ckpt": None, "split": "test", "data_root": None, "batch_size": "512"}


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
    evaluate.evaluate_ticket(given["ckpt"], given["split"], given["data_root"], batch_size)


if __name__ == "__main__":
    command.guarded(main)
