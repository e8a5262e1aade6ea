"""Brings tickets in from other suites and out to other programs.

    python scripts/convert.py FILE --to=DIR            another suite's file as a ticket, DIR/last.ckpt
    python scripts/convert.py TICKET --to=NAME.pt      a state_dict with zeros; NAME.safetensors too
    python scripts/convert.py TICKET --to=NAME.npz     a compact ticket: bits and kept weights
    python scripts/convert.py CHAIN --to=NAME.npz      the masks of a whole chain: a byte a weight

FILE is a checkpoint of the original suite (.ckpt, which any flag that names a checkpoint takes as it is),
or a file of PyTorch or safetensors: torchvision's, RPG's, Lottery Jackpots', Multi-Prize tickets', one of
`torch.nn.utils.prune`, or what this script wrote. Nothing in a file is run.

  --masks=true       of an export: weight_orig and weight_mask, as torch.nn.utils.prune has them
  --like=TICKET      of an import: a ticket of the same network, for one that was exported and trained on
  --data_name=NAME   of an import: the set that the network was trained on, where the file does not tell
  --mean=A,B,C       of an import, and --std: how its pixels are standardised, after division by 255
  --prunable=RULE    of an import: which leaves are prunable (config.masks.prunable)
  --onto=TICKET      of an import of masks alone: the ticket whose weights they are put onto
  --cycle=N          of a chain's map: the cycle whose mask is put onto the weights of --onto
"""

import sys

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import command, converting, flags
from giung2_ext.experiments.importing import Wishes

OWN = dict.fromkeys(("to", "masks", *Wishes._fields))


def _numbers(name, text):
    return tuple(flags.convert(part, float, False, name) for part in text.split(",")) if text else None


def main():
    words = sys.argv[1:]
    files = [word for word in words if not word.startswith("--")]
    if "--help" in words:
        print(__doc__.strip())
        return
    given = flags.parse_own([word for word in words if word.startswith("--")], OWN)
    if len(files) != 1 or not given["to"]:
        raise Refusal("usage: python scripts/convert.py FILE --to=DIR, or TICKET --to=NAME.pt (see --help)")
    cycle = None if given["cycle"] is None else flags.convert(given["cycle"], int, False, "cycle")
    numbers = {name: _numbers(name, given[name]) for name in ("mean", "std")}
    words = {name: given[name] for name in ("like", "data_name", "prunable", "onto")}
    wishes = Wishes(**words, **numbers, cycle=cycle)
    masks = flags.convert(given["masks"] or "false", bool, False, "masks")
    converting.convert(files[0], given["to"], wishes, masks)


if __name__ == "__main__":
    command.guarded(main)
