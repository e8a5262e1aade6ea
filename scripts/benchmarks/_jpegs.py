"""JPEGs to measure with: a folder's, or for a smoke test a few that are made up."""

import io
import pathlib

import numpy as np
from PIL import Image

from giung2_ext.core.errors import Refusal


def read(smoke, data_root, name):
    """The encoded files below DIR, in order."""
    if data_root is None:
        if not smoke:
            raise Refusal(f"{name} needs --data_root=DIR with JPEGs of photographs in it")
        return [make(i) for i in range(4)]
    files = [p for p in sorted(pathlib.Path(data_root).rglob("*")) if p.suffix.lower() in (".jpeg", ".jpg")]
    if not files:
        raise Refusal(f"no JPEGs below {data_root}")
    return [path.read_bytes() for path in files[: 8 if smoke else None]]


def make(seed, size=(375, 500)):
    """Smooth noise of a photograph's size."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def prepare(data, side=256, quality=90):
    """As scripts/prepare.py --shorter_side=256 stores it."""
    from giung2_ext.data.preparation import Look
    from giung2_ext.data.source import Example

    return Look(side, quality).encode(Example(data, 0, "an image"))
