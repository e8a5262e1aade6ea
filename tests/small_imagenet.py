"""A small tree in ImageNet's real layout: real wnids, JPEGs of patterns that a network can learn."""

import io

import numpy as np
from PIL import Image

from giung2_ext.data.classes import IMAGENET_A, IMAGENET_R, WNIDS

BOTH = sorted(set(IMAGENET_A) & set(IMAGENET_R))
LABELS = sorted([*BOTH[:14], 0, 2, 7, 10, 100, 999])  # 20 classes; in string order 10 and 100 precede 2
V2 = "imagenetv2-matched-frequency-format-val"


def picture(label, number, side=(60, 48), kind="JPEG", **options):
    """An encoded image: the class's colour and stripes, with noise that differs by number."""
    draw = np.random.default_rng([label, number])
    colour = np.random.default_rng(label).integers(30, 226, 3)
    period = 4 + label % 9
    height, width = side
    stripes = 40 * np.sin(
        2 * np.pi * (np.arange(width)[None] * (label % 2) + np.arange(height)[:, None]) / period
    )
    pixels = colour + stripes[..., None] + draw.normal(0, 12, (height, width, 3))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if options.pop("cmyk", False):
        image = image.convert("CMYK")
    if options.pop("gray", False):
        image = image.convert("L")
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


AWKWARD = [
    dict(kind="PNG"),
    dict(cmyk=True),
    dict(gray=True),
    dict(progressive=True),
    dict(side=(40, 90)),
]


def write(root, labels, count, first=0, named="{wnid}", awkward=False, **options):
    """`count` images a class below `root`; the first few of the last class are awkward if asked."""
    for label in labels:
        folder = root / named.format(wnid=WNIDS[label], label=label)
        folder.mkdir(parents=True)
        for number in range(first, first + count):
            odd = AWKWARD[number] if awkward and label == labels[-1] and number < len(AWKWARD) else options
            (folder / f"{WNIDS[label]}_{number}.JPEG").write_bytes(picture(label, number, **odd))


def make(root, count=12):
    """train and val, V2, R, A and Sketch, as their authors distribute them."""
    write(root / "train", LABELS, count, awkward=True)
    write(root / "val", LABELS, 4, first=1000)
    write(root / V2, LABELS, 2, first=2000, named="{label}")
    write(root / "imagenet-r", [c for c in LABELS if c in IMAGENET_R], 3, first=3000)
    write(root / "imagenet-a", [c for c in LABELS if c in IMAGENET_A], 2, first=4000)
    write(root / "sketch", LABELS, 2, first=5000)
    return root
