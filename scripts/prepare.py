"""Prepares ImageNet or one of its shifts for reading, from its folders or archives as distributed:

python scripts/prepare.py --dataset=imagenet2012 --images=DIR --data_root=OUT --shorter_side=256
python scripts/prepare.py --dataset=imagenet_v2 --variant=matched-frequency --images=FILE --data_root=OUT

  --dataset           imagenet2012, imagenet_v2, imagenet_r, imagenet_a or imagenet_sketch
  --images            a folder or an archive; imagenet2012: a folder with train and val (or the two tars),
                      or two paths, TRAIN,VAL
  --data_root         where to write; TFDS's layout, in ArrayRecord
  --shorter_side      shrink larger images to this (default: keep every file as it is)
  --quality           of the JPEGs that are shrunk (default: 90)
  --variant           imagenet_v2: matched-frequency, threshold-0.7 or topimages
  --allow_incomplete  true: take what is there, though images are missing
  --num_workers       threads (default: one for each core)

The same command again goes on where it was stopped.
"""

import functools
import sys

from giung2_ext.core.errors import Refusal
from giung2_ext.data import preparation
from giung2_ext.experiments import command, flags

OWN = {
    "dataset": None,
    "images": None,
    "data_root": None,
    "shorter_side": None,
    "quality": "90",
    "variant": None,
    "allow_incomplete": "false",
    "num_workers": None,
}


def main():
    if "--help" in sys.argv:
        print(__doc__.strip())
        return
    given = flags.parse_own(sys.argv[1:], OWN)
    for name in ("dataset", "images", "data_root"):
        if not given[name]:
            raise Refusal(f"--{name} is required; --help says what it takes")
    side, workers = (given[name] and number(given, name) for name in ("shorter_side", "num_workers"))
    preparation.prepare(
        given["dataset"],
        [place for place in given["images"].split(",") if place],
        given["data_root"],
        variant=given["variant"],
        shorter_side=side,
        quality=number(given, "quality"),
        allow_incomplete=flags.convert(given["allow_incomplete"], bool, False, "allow_incomplete"),
        num_workers=workers,
        say=functools.partial(print, flush=True),
    )


def number(given, name):
    value = flags.convert(given[name], int, False, name)
    if value < 1:
        raise Refusal(f"--{name} must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    command.guarded(main)
