"""One image for training, and the ways to prepare one for evaluation: uint8 RGB of the network's size.

Training crops as TensorFlow's sample_distorted_bounding_box does and flips half of the images. `tf`
evaluates as the original suite does in TensorFlow, `timm` as timm and torchvision do, `stored` takes pixels
as they are. Deviations from the original: pixels are rounded and clipped to uint8, it kept floats with the
cubic's overshoot. In training OpenCV's cubic (a = -0.75, TensorFlow's is -0.5) resizes, and a crop of twice
the size or more comes from a JPEG decoded to half or less, smoother than its bicubic without antialiasing.
"""

import functools
import math
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from giung2_ext.core.errors import Refusal
from giung2_ext.data import images

ASPECTS = (3 / 4, 4 / 3)
LEAST_AREA = 0.08  # what heights are drawn from; a crop below LEAST_COVERED is then thrown away
LEAST_COVERED = 0.1
ATTEMPTS = 10
CROP_FRACTION = 0.875  # of evaluation: 224 / (224 + 32)
TABLE = 1024  # TensorFlow looks its cubic weights up at this many places between two pixels

cv2.setNumThreads(0)  # images are prepared side by side, so one image takes one thread

Pixels = bytes | np.ndarray  # an encoded file, or uint8 HxWx3
Box = tuple[int, int, int, int]  # top, left, height, width


def crop_box(draw: np.random.Generator, height: int, width: int) -> Box:
    """(top, left, h, w) of a random crop; the central one if ten attempts fail or the draw is all there is.

    The aspect ratio is uniform, then the height among those that the areas leave for it: small crops are
    more frequent than with uniform areas. A crop that does not fill a side never reaches its far end.
    """
    for _ in range(ATTEMPTS):
        h, w = _draw_shape(draw, height, width)
        if h <= height and w <= width and h * w / (height * width) >= LEAST_COVERED:
            break
    else:
        h, w = height, width
    if (h, w) == (height, width):
        return central_box(height, width)
    top = int(draw.integers(height - h)) if h < height else 0
    left = int(draw.integers(width - w)) if w < width else 0
    return top, left, h, w


def _draw_shape(draw: np.random.Generator, height: int, width: int) -> tuple[int, int]:
    aspect = draw.uniform(*ASPECTS)
    least = LEAST_AREA * height * width
    low = round(math.sqrt(least / aspect))
    high = round(math.sqrt(height * width / aspect))
    if round(high * aspect) > width:
        high = math.ceil((width + 0.5) / aspect) - 1  # the largest whose width, rounded, is not too much
    high = min(high, height)
    h = int(draw.integers(low, high + 1)) if low < high else high
    if round(h * aspect) * h < least:  # rounded out of the range; one pixel mends that in tiny images
        h += 1
    return h, round(h * aspect)


def central_box(height: int, width: int) -> Box:
    """The centre 7/8 of the shorter side, squared, at least one pixel."""
    side = max(1, int(CROP_FRACTION * min(height, width)))
    return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def train_image(data: Pixels, size: int, draw: np.random.Generator) -> np.ndarray:
    """A random crop, resized to (size, size, 3) and flipped half the time; `draw` decides all of it."""
    height, width = decoded(data).shape[:2] if isinstance(data, np.ndarray) else images.size_of(data)
    box = crop_box(draw, height, width)
    flip = draw.random() < 0.5
    cut = cut_out(data, (height, width), box, size)
    resized = cv2.resize(cut, (size, size), interpolation=cv2.INTER_CUBIC)
    return cv2.flip(resized, 1) if flip else resized


def cut_out(data: Pixels, full: tuple[int, int], box: Box, size: int) -> np.ndarray:
    """The box of an image whose full size is known; a JPEG is decoded no larger than `size` asks for.

    Edges that fall between the smaller image's pixels move to the nearest, by half a pixel at most.
    """
    top, left, h, w = box
    pixels = data
    if not isinstance(data, np.ndarray):
        scale = max((size + 1) / h, (size + 1) / w)  # one more, for the edges that move
        least = (math.ceil(full[0] * scale), math.ceil(full[1] * scale))
        pixels = images.decode(data, at_least=least if scale < 1 else None, fast=True)
    rows = _scaled(top, h, full[0], pixels.shape[0])
    return pixels[rows, _scaled(left, w, full[1], pixels.shape[1])]


def _scaled(start: int, length: int, full: int, actual: int) -> slice:
    first, last = ((2 * edge * actual + full) // (2 * full) for edge in (start, start + length))
    return slice(first, last)


def decoded(image: Pixels, *, fast: bool = False) -> np.ndarray:
    """The pixels of an encoded file, or the pixels themselves if they are uint8 HxWx3."""
    if not isinstance(image, np.ndarray):
        return images.decode(image, fast=fast)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise Refusal(f"an image must be uint8 of shape (height, width, 3), got {image.dtype}{image.shape}")
    return image


def evaluate_tf(image: Pixels, size: int) -> np.ndarray:
    """The central crop, resized as tf.image.resize does with bicubic and no antialiasing."""
    pixels = decoded(image, fast=True)
    top, left, h, w = central_box(*pixels.shape[:2])
    resized = resize_keys(pixels[top : top + h, left : left + w], size)
    return np.rint(np.clip(resized, 0, 255, out=resized), out=resized).astype(np.uint8)


def resize_keys(pixels: np.ndarray, size: int) -> np.ndarray:
    """float32 (size, size, 3) by Keys' cubic on the four nearest pixels of each direction."""
    rows, weights = _taps(pixels.shape[0], size)
    across = sum(pixels[r] * w[:, None, None] for r, w in zip(rows, weights, strict=True))
    columns, weights = _taps(pixels.shape[1], size)
    return sum(across[:, c] * w[:, None] for c, w in zip(columns, weights, strict=True))


@functools.lru_cache(maxsize=1024)
def _taps(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Four positions and float32 weights for each output; those off the image weigh nothing."""
    centre = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(length / size) - np.float32(0.5)
    first = np.floor(centre)
    offset = np.rint((centre - first) * TABLE) / TABLE
    positions = first.astype(int) + np.arange(-1, 3)[:, None]
    distance = np.abs(np.arange(-1, 3)[:, None] - offset)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance <= 1, near, far) * ((positions >= 0) & (positions < length))
    weights /= weights.sum(axis=0)
    return np.clip(positions, 0, length - 1), weights.astype(np.float32)


def evaluate_timm(image: Pixels, size: int) -> np.ndarray:
    """The shorter side to size / 0.875 by Pillow's antialiased bicubic, then the centre."""
    pixels = decoded(image)
    short = int(size / CROP_FRACTION)
    height, width = pixels.shape[:2]
    least = min(height, width)
    height, width = (short if side == least else int(short * side / least) for side in (height, width))
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.asarray(resized)[top : top + size, left : left + size]


def stored(image: Pixels, size: int) -> np.ndarray:
    """The pixels as they are."""
    pixels = decoded(image)
    if pixels.shape[:2] != (size, size):
        got = "{}x{}".format(*pixels.shape)
        raise Refusal(
            f"pipeline 'stored' takes images of {size}x{size} as they are, got {got};"
            " prepare them at that size or choose 'tf' or 'timm'"
        )
    return pixels


PIPELINES: dict[str, Callable[[Pixels, int], np.ndarray]] = {
    "tf": evaluate_tf,
    "timm": evaluate_timm,
    "stored": stored,
}
