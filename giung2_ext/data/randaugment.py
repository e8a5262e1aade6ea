"""RandAugment (Cubuk et al. 2020, https://arxiv.org/abs/1909.13719): `layers` operations of one magnitude.

Each is one of the paper's 14, drawn anew. The paper's code takes its ranges from AutoAugment, in which some
operations weaken as the magnitude grows; here all grow from none at 0, as in timm's rand-mM-nN-inc1, to
    rotate 30 degrees, shear x/y 0.3, translate x/y 0.45 of the side, all in a drawn direction,
    colour, contrast, brightness, sharpness 1 ± 0.9, the sign drawn (0: grey, flat, black, blurred),
    posterize to 4 bits of 8, solarize everything (all above 256 at first)
at 10. Autocontrast and equalize have no magnitude. Unlike timm, every operation drawn is applied, and
posterize stops at AutoAugment's 4 bits. Pixels are moved to the nearest place; what they uncover is grey.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from giung2_ext.core.errors import Refusal

GREY = (128, 128, 128)
STRONGEST = 10.0

Operation = Callable[[Image.Image, float, int], Image.Image]


def randaugment(image: np.ndarray, draw: np.random.Generator, layers: int, magnitude: float) -> np.ndarray:
    """The uint8 HxWx3 image after `layers` operations; `draw` decides which, and their signs."""
    if layers < 0 or not 0 <= magnitude <= STRONGEST:
        raise Refusal(
            "randaugment takes 0 layers or more and a magnitude from 0 to 10,"
            f" got {layers} layers and magnitude {magnitude}"
        )
    picture = Image.fromarray(image)
    names = list(OPERATIONS)
    for _ in range(layers):
        name, sign = names[draw.integers(len(names))], 1 if draw.random() < 0.5 else -1
        picture = OPERATIONS[name](picture, magnitude / STRONGEST, sign)
    return np.array(picture)


def _move(picture: Image.Image, *matrix: float) -> Image.Image:
    """The pixel at (x, y) comes from (a x + b y + c, d x + e y + f)."""
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, fillcolor=GREY)


def _enhance(kind: type) -> Operation:
    return lambda picture, strength, sign: kind(picture).enhance(1 + sign * 0.9 * strength)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda picture, strength, sign: picture,
    "autocontrast": lambda picture, strength, sign: ImageOps.autocontrast(picture),
    "equalize": lambda picture, strength, sign: ImageOps.equalize(picture),
    "rotate": lambda picture, strength, sign: picture.rotate(sign * 30 * strength, fillcolor=GREY),
    "solarize": lambda picture, strength, sign: ImageOps.solarize(picture, 256 - round(256 * strength)),
    "color": _enhance(ImageEnhance.Color),
    "posterize": lambda picture, strength, sign: ImageOps.posterize(picture, 8 - round(4 * strength)),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": lambda picture, strength, sign: _move(picture, 1, sign * 0.3 * strength, 0, 0, 1, 0),
    "shear_y": lambda picture, strength, sign: _move(picture, 1, 0, 0, sign * 0.3 * strength, 1, 0),
    "translate_x": lambda picture, strength, sign: _move(
        picture, 1, 0, sign * 0.45 * strength * picture.width, 0, 1, 0
    ),
    "translate_y": lambda picture, strength, sign: _move(
        picture, 1, 0, 0, 0, 1, sign * 0.45 * strength * picture.height
    ),
}
