"""Writes a small made-up ImageNet in the real layout, to try the suite on.

    python scripts/make_imagenet.py DIR

20 classes by their real wnids; patterns that a network can learn, as JPEGs of 60x48 pixels, a few of them
awkward (a PNG by the wrong name, CMYK, grayscale, progressive): train and val, ImageNetV2, -R, -A and
-Sketch as their authors distribute them.
"""

import io
import pathlib
import sys

import numpy as np
from PIL import Image

from giung2_ext.core.errors import Refusal
from giung2_ext.data.classes import IMAGENET_A, IMAGENET_R, WNIDS
from giung2_ext.experiments.command import guarded

BOTH = sorted(set(IMAGENET_A) & set(IMAGENET_R))
LABELS = sorted([*BOTH[:14], 0, 2, 7, 10, 100, 999])  # in string order 10 and 100 come before 2
V2 = "imagenetv2-matched-frequency-format-val"
AWKWARD = [
    dict(kind="PNG"),
    dict(mode="CMYK"),
    dict(mode="L"),
    dict(progressive=True),
    dict(side=(40, 90)),
]


def picture(label, number, side=(60, 48), kind="JPEG", mode="RGB", **options):
    """An encoded image: the class's colour and stripes, with noise that differs by number."""
    height, width = side
    draw = np.random.default_rng([label, number])
    colour = np.random.default_rng(label).integers(30, 226, 3)
    along = np.arange(width)[None] * (label % 2) + np.arange(height)[:, None]
    stripes = 40 * np.sin(2 * np.pi * along / (4 + label % 9))
    pixels = colour + stripes[..., None] + draw.normal(0, 12, (height, width, 3))
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert(mode).save(out, kind, **options)
    return out.getvalue()


def write(root, labels, count, first=0, named="{wnid}", awkward=False, **options):
    """`count` images a class below `root`; the first few of the last class are awkward if asked."""
    for label in labels:
        folder = root / named.format(wnid=WNIDS[label], label=label)
        folder.mkdir(parents=True)
        for number in range(first, first + count):
            odd = AWKWARD[number] if awkward and label == labels[-1] and number < len(AWKWARD) else options
            (folder / f"{WNIDS[label]}_{number}.JPEG").write_bytes(picture(label, number, **odd))


def make(root, count=12):
    """All five sets, with `count` training images a class."""
    write(root / "train", LABELS, count, awkward=True)
    write(root / "val", LABELS, 4, first=1000)
    write(root / V2, LABELS, 2, first=2000, named="{label}")
    write(root / "imagenet-r", [c for c in LABELS if c in IMAGENET_R], 3, first=3000)
    write(root / "imagenet-a", [c for c in LABELS if c in IMAGENET_A], 2, first=4000)
    write(root / "sketch", LABELS, 2, first=5000)
    return root


def main():
    if "--help" in sys.argv:
        print(__doc__.strip())
        return
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise Refusal("usage: python scripts/make_imagenet.py DIR")
    root = pathlib.Path(sys.argv[1])
    if root.exists() and any(root.iterdir()):
        raise Refusal(f"{root} is not empty: name a new folder")
    make(root)
    print(f"{root}: {len(list(root.rglob('*.JPEG')))} images of {len(LABELS)} classes in five sets")


if __name__ == "__main__":
    guarded(main)
