"""From an encoded file to RGB pixels, uint8 HxWx3.

Ordinary JPEGs go through libjpeg-turbo, which can decode them to a fraction of their size (its scaled DCT).
Everything else is read by Pillow and shown as its convert("RGB") shows it: CMYK and YCCK JPEGs, PNG under
any name, GIF, BMP, WebP. Transparency is dropped, not blended: the colour stored under it comes to light.
16-bit grey is clipped at 255, 16-bit RGB keeps its high bytes. The rotation in EXIF is ignored.
Damage that libjpeg can step over (stray bytes, a flipped bit) is decoded as Pillow decodes it; a file that
ends early is `Undecodable`, also where an end marker was put after the cut and the rest would be grey.
"""

import io
import threading
import warnings

import numpy as np
import simplejpeg
from PIL import Image

MOST_PIXELS = 2**27  # more are left to Pillow, which may take them for a bomb
PLAIN = ("YCbCr", "Gray", "RGB")  # of JPEGs: those that libjpeg-turbo itself turns into RGB
_OPENING = threading.Lock()  # the filters of warnings belong to all threads


class Undecodable(ValueError):
    """The bytes are no whole image."""


def size_of(data: bytes) -> tuple[int, int]:
    """(height, width) from the header alone; the rest may still turn out to be broken."""
    plain = _plain_size(data)
    if plain:
        return plain
    with _opened(data) as image:
        return image.height, image.width


def decode(data: bytes, at_least: tuple[int, int] | None = None, *, fast: bool = False) -> np.ndarray:
    """The image, or with `at_least` = (height, width) the smallest that is neither lower nor narrower.

    Only ordinary JPEGs shrink, and only to half or less: to 3/4, say, libjpeg-turbo is slower than to the
    whole. `fast` takes the rougher integer DCT, TensorFlow's default; without it pixels are Pillow's.
    """
    if _plain_size(data):
        height, width = (0, 0) if at_least is None else (max(1, side) for side in at_least)  # 0: whole
        try:
            return simplejpeg.decode_jpeg(
                data, fastdct=fast, min_height=height, min_width=width, min_factor=2
            )
        except ValueError:
            pass  # damaged: Pillow tells whether beyond repair
    pixels = _decode_with_pillow(data)
    tail = pixels[-max(1, len(pixels) // 10) :]
    if data[:2] == b"\xff\xd8" and np.all(tail == 128) and _ends_early(data):
        raise Undecodable("the JPEG's data end early: the lower part of the picture is missing")
    return pixels


def _plain_size(data: bytes) -> tuple[int, int] | None:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (height, width) if colours in PLAIN and height * width <= MOST_PIXELS else None


def _ends_early(data: bytes) -> bool:
    """Whether libjpeg filled up a segment of the data. It does so with grey."""
    try:
        simplejpeg.decode_jpeg(data)
    except ValueError as error:
        return "premature end" in str(error)
    return False


def _opened(data: bytes) -> Image.Image:
    """Pillow's image, its pixels not read yet. What it warns of, corrupt EXIF mostly, is of no account."""
    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data))
    except Exception as error:  # of many kinds: OSError, SyntaxError, struct.error, DecompressionBombError
        raise Undecodable(_reason(data, error)) from error


def _decode_with_pillow(data: bytes) -> np.ndarray:
    with _opened(data) as image:
        image.info.pop("transparency", None)  # would be warned of; convert drops it all the same
        try:
            return np.array(image.convert("RGB"))
        except Exception as error:
            raise Undecodable(_reason(data, error)) from error


def _reason(data: bytes, error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"{len(data)} bytes that no image format begins with" if data else "the file is empty"
    return str(error) or type(error).__name__
