"""Measures how the error changes on the straight line between two tickets.

    python scripts/instability.py RUN                  a chain with the arm `sibling`: all its cycles
    python scripts/instability.py --ckpt=A --against=B

  --points=11      on the line, its ends among them
  --statistics=50  batches of training images on which BatchNorm's statistics are estimated between the
                   ends; 0: they are interpolated, as the weights are
  --json=FILE      what was found, of two tickets; of a chain it is RUN/instability.json
  --split=test     test, holdout or train
  --pipeline=timm  how images are brought to the network's size: timm or tf; arrays are as they are
  --form=auto      tfds, folders or arrays, where a set is there in several
  --data_root=DIR  where the data is; $TFDS_DATA_DIR too
  --batch_size=512 --num_workers=32 (threads) --mesh=data:8 --distributed=auto

Instability is the highest error on the line minus the mean error of its ends (Frankle et al. 2020): where
the highest is an end, there is no barrier. Of a chain the tickets are the cycles' last.ckpt. An
interrupted analysis of a chain goes on with the pairs that are missing.
"""

import sys

from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import command, evaluate, flags, instability
from giung2_ext.storage import paths
from giung2_ext.training import processes

PLACEMENT = ("data_root", "num_workers", "prefetch_factor", "mesh", "distributed")
NUMBERS = {"points": ("11", 2), "statistics": ("50", 0), "batch_size": ("512", 1)}
"""Defaults and the least allowed"""
OWN = {"ckpt": None, "against": None, "json": None, "split": "test", "pipeline": "timm", "form": None}
OWN |= {name: default for name, (default, _) in NUMBERS.items()} | dict.fromkeys(PLACEMENT)
USAGE = "python scripts/instability.py RUN, or --ckpt=A --against=B"


def main():
    arguments = sys.argv[1:]
    if "--help" in arguments:
        print(__doc__.strip())
        return
    folder = arguments.pop(0) if arguments and not arguments[0].startswith("--") else None
    given = flags.parse_own(arguments, OWN)
    chosen = {name: given[name] for name in ("split", "pipeline", "form")}
    for name, (_, least) in NUMBERS.items():
        chosen[name] = flags.convert(given[name], int, False, name)
        if chosen[name] < least:
            raise Refusal(f"--{name} must be at least {least}, got {chosen[name]}")
    if (folder is None) != bool(given["ckpt"] and given["against"]) or (folder and given["json"]):
        raise Refusal(f"usage: {USAGE} [--json=FILE] (see --help)")
    where = flags.placement_of({name: given[name] for name in PLACEMENT})
    processes.connect(where.distributed, where.joined_within, where.lost_after)
    if folder is not None:
        place = epath.Path(folder)
        pairs = instability.pairs_of(place)
        instability.analyse(pairs, where, place / paths.INSTABILITY, **chosen)
        evaluate.say([f"written: {place / paths.INSTABILITY}"])
        return
    pair = instability.Pair(None, None, given["ckpt"], given["against"])
    file = epath.Path(given["json"]) if given["json"] else None
    evaluate.say(instability.table_of(instability.analyse([pair], where, file, **chosen)))


if __name__ == "__main__":
    command.guarded(main)
