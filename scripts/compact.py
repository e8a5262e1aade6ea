"""Takes the channels that a ticket's mask has killed out of its network, and measures what that saves.

    python scripts/compact.py TICKET --to=DIR

  --to=DIR      where the smaller ticket is written, as DIR/last.ckpt
  --images=64   random images on which the logits of both are compared

A channel is dead if no weight reads it, or if none writes it and what its bias or BatchNorm makes of
that is 0 after the activation; through residual sums too. The smaller ticket has the same logits (a
difference above 1e-4 of the largest is refused), is one like any other, and names the first as its parent.
Parameters, FLOPs and the time of the compiled network are printed before and after: a measurement on this
machine, not a promised speed-up.
"""

import sys

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import command, compaction, flags


def main():
    arguments = sys.argv[1:]
    if "--help" in arguments:
        print(__doc__.strip())
        return
    names = [word for word in arguments if not word.startswith("--")]
    own = {"to": None, "images": "64"}
    given = flags.parse_own([word for word in arguments if word.startswith("--")], own)
    if len(names) != 1 or not given["to"]:
        raise Refusal("usage: python scripts/compact.py TICKET --to=DIR [--images=64] (see --help)")
    images = flags.convert(given["images"], int, False, "images")
    if images < 1:
        raise Refusal(f"--images must be at least 1, got {images}")
    compaction.compact(names[0], given["to"], images)


if __name__ == "__main__":
    command.guarded(main)
