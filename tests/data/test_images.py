"""Files of all kinds decode as Pillow shows them; what is no whole image is said to be none."""

import functools
import io
import struct
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
import simplejpeg
from fakes import sample_jpegs
from PIL import Image

from giung2_ext.data.images import Undecodable, decode, size_of


def scene(height=93, width=121):
    """A picture with slopes, an edge and a little grain."""
    row, column = np.mgrid[:height, :width]
    pixels = np.stack([row * 2, column * 1.5, 255 - row - column / 2], axis=-1)
    pixels += np.random.default_rng(0).normal(0, 4, pixels.shape)
    pixels[height // 4 : height // 2, width // 3 :] = 250, 60, 40
    return np.clip(pixels, 0, 255).astype(np.uint8)


def encoded(image, kind="JPEG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shown_by_pillow(data):
    """Its pixels, or None if it refuses."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    except OSError:
        return None


def ycck(pixels):
    """An Adobe YCCK JPEG: YCbCr of the inks and black, inverted, with its marker set to say so."""
    inks = Image.fromarray(255 - pixels).convert("YCbCr")
    none = Image.new("L", inks.size, 255)  # no black ink
    planes = [Image.eval(plane, lambda value: 255 - value) for plane in (*inks.split(), none)]
    data = bytearray(encoded(Image.merge("CMYK", planes), quality=95))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def kinds():
    pixels = scene()
    image = Image.fromarray(pixels)
    alpha = Image.fromarray(pixels[..., 0])
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    palette = image.quantize(64)
    return {
        "4:2:0": encoded(image),
        "4:2:2": encoded(image, subsampling=1),
        "4:4:4": encoded(image, subsampling=0, quality=100),
        "progressive": encoded(image, progressive=True),
        "restarts": encoded(image, restart_marker_rows=1),
        "grey": encoded(image.convert("L")),
        "grey progressive": encoded(image.convert("L"), progressive=True),
        "RGB in JPEG": encoded(image, keep_rgb=True),
        "turned": encoded(image, exif=turned),
        "CMYK": encoded(image.convert("CMYK")),
        "YCCK": ycck(pixels),
        "PNG": encoded(image, "PNG"),
        "PNG palette": encoded(palette, "PNG"),
        "PNG palette, one clear": encoded(palette, "PNG", transparency=3),
        "PNG palette, alphas": encoded(palette, "PNG", transparency=bytes(range(64))),
        "PNG grey": encoded(image.convert("L"), "PNG"),
        "PNG black and white": encoded(image.convert("1"), "PNG"),
        "PNG grey alpha": encoded(Image.merge("LA", (image.convert("L"), alpha)), "PNG"),
        "PNG alpha": encoded(Image.merge("RGBA", (*image.split(), alpha)), "PNG"),
        "PNG 16 bit": encoded(Image.fromarray(pixels[..., 0].astype(np.uint16) * 3), "PNG"),
        "GIF": encoded(palette, "GIF"),
        "BMP": encoded(image, "BMP"),
        "WebP": encoded(image, "WEBP"),
        "1x1": encoded(pixels[:1, :1]),
        "3x2000": encoded(np.tile(pixels[:3], (1, 17, 1))[:, :2000]),
    }


KINDS = kinds()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of the reference; see below for ours
@pytest.mark.parametrize("kind", KINDS)
def test_files_decode_as_pillow_shows_them_and_headers_tell_their_size(kind):
    pixels = decode(KINDS[kind])
    assert (pixels.dtype, pixels.shape[2]) == (np.uint8, 3)
    assert size_of(KINDS[kind]) == pixels.shape[:2]
    assert np.array_equal(pixels, shown_by_pillow(KINDS[kind]))


@pytest.mark.parametrize(
    "kind", sorted(set(KINDS) - {"PNG black and white", "PNG 16 bit", "1x1", "3x2000"})
)
def test_files_look_like_the_picture_they_were_made_of(kind):
    expected = scene()
    if "grey" in kind:
        expected = np.array(Image.fromarray(expected).convert("L").convert("RGB"))
    error = np.abs(decode(KINDS[kind]).astype(int) - expected).mean()
    limit = 12 if "palette" in kind or kind == "GIF" else 6
    assert error < limit  # turned: not turned; alpha: dropped; CMYK and YCCK: not inverted


def test_real_files_decode_to_the_very_pixels_of_pillow():
    for data in sample_jpegs():
        assert np.array_equal(decode(data), shown_by_pillow(data))  # max error 0


def test_decoding_takes_any_colour_of_jpeg_by_the_way_meant_for_it():
    colours = {
        kind: simplejpeg.decode_jpeg_header(KINDS[kind])[2] for kind in ("4:2:0", "grey", "CMYK", "YCCK")
    }
    assert colours == {"4:2:0": "YCbCr", "grey": "Gray", "CMYK": "CMYK", "YCCK": "YCCK"}


def test_jpegs_are_decoded_to_half_or_less_if_that_is_enough():
    data = encoded(scene(400, 600))
    shapes = {
        (400, 600): (400, 600), (201, 10): (400, 600), (200, 300): (200, 300), (200, 301): (400, 600),
        (151, 10): (200, 300), (150, 225): (150, 225), (100, 150): (100, 150), (10, 10): (50, 75),
        (0, 0): (50, 75), (900, 900): (400, 600),
    }  # fmt: skip
    for at_least, shape in shapes.items():
        assert decode(data, at_least=at_least).shape[:2] == shape
    half = decode(data, at_least=(200, 300)).astype(float)
    mean = scene(400, 600).reshape(200, 2, 300, 2, 3).mean(axis=(1, 3))
    assert np.abs(half - mean).mean() < 3
    png = encoded(scene(40, 60), "PNG")
    assert decode(png, at_least=(5, 5)).shape == (40, 60, 3)  # others come whole


def test_the_fast_way_differs_little():
    data = KINDS["4:2:0"]
    difference = np.abs(decode(data, fast=True).astype(int) - decode(data))
    assert 0 < difference.max() <= 20
    assert difference.mean() < 2


ENDINGS = {"PNG": 22, "PNG palette": 22, "GIF": 2, "BMP": 1}  # bytes after the last that Pillow needs


@pytest.mark.parametrize("kind", ["4:2:0", "progressive", "grey", "CMYK", "YCCK", "WebP", *ENDINGS])
def test_a_file_cut_anywhere_is_undecodable_even_by_one_byte(kind):
    data, spare = KINDS[kind], ENDINGS.get(kind, 0)
    for lost in (*range(spare + 1, spare + 120), len(data) // 2, *range(len(data) - 40, len(data) + 1, 4)):
        with pytest.raises(Undecodable, match=r"\w{3}"):
            decode(data[: len(data) - lost])
    for lost in range(1, spare + 1):  # no pixel is lost
        assert np.array_equal(decode(data[:-lost]), decode(data))


def test_a_jpeg_ended_early_by_its_own_marker_is_undecodable():
    for kind in ("4:2:0", "grey"):
        data = KINDS[kind]
        cut = data[: len(data) // 2] + b"\xff\xd9"
        assert shown_by_pillow(cut) is not None  # with a grey lower part
        with pytest.raises(Undecodable, match="the lower part of the picture is missing"):
            decode(cut)
    grey = np.full((64, 64, 3), 128, np.uint8)
    assert np.array_equal(decode(encoded(grey)), grey)  # whole, and grey by itself
    stray = encoded(grey)
    stray = stray[:-2] + bytes(20) + stray[-2:]
    assert np.array_equal(decode(stray), grey)


def test_what_is_no_image_is_undecodable_with_a_reason():
    with pytest.raises(Undecodable, match="the file is empty"):
        decode(b"")
    for data in (
        b"<html>404</html>" * 9,
        bytes(1000),
        b"\xff\xd8",
        b"\xff\xd8\xff\xe0" + bytes(99),
        b"GIF89a",
    ):
        for read in (decode, size_of):
            with pytest.raises(Undecodable, match=r"\w{3}"):
                read(data)


def test_an_image_of_absurd_size_is_undecodable_without_its_memory_being_asked_for():
    jpeg = bytearray(KINDS["4:2:0"])
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg[frame : frame + 4] = b"\xff\x00\xff\x00"  # 65280x65280
    header = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    png = KINDS["PNG"][:12] + header + struct.pack(">I", zlib.crc32(header)) + KINDS["PNG"][33:]
    for data in (bytes(jpeg), png):
        for read in (decode, size_of):
            with pytest.raises(Undecodable, match="bomb"):
                read(data)


def test_damage_that_pillow_steps_over_is_decoded_as_pillow_does():
    data = KINDS["4:2:0"]
    scan, table = data.index(b"\xff\xda"), data.index(b"\xff\xdb")
    middle = (scan + len(data)) // 2
    damaged = {
        "junk before the scan": data[:scan] + b"abc" + data[scan:],
        "junk before a table": data[:table] + b"abc" + data[table:],
        "junk before the end": data[:-2] + bytes(20) + data[-2:],
        "padding before the end": data[:-2] + b"\xff" * 20 + data[-2:],
        "junk after the end": data + b"junk" * 10,
        "a bit flipped": data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :],
    }
    for name, bad in damaged.items():
        for options in ({}, {"fast": True}, {"at_least": (93, 121)}):
            pixels = decode(bad, **options)
            assert pixels.shape == (93, 121, 3), name
        assert np.array_equal(decode(bad), shown_by_pillow(bad)), name
        assert size_of(bad) == (93, 121)


def test_no_damage_crashes_and_pillow_agrees_on_what_can_be_shown():
    draw = np.random.default_rng(0)
    shown = 0
    for data in (KINDS["4:2:0"], KINDS["progressive"], KINDS["CMYK"]):
        for _ in range(60):
            bad = np.frombuffer(data, np.uint8).copy()
            places = draw.integers(2, len(bad), 2)
            bad[places] = draw.integers(0, 256, 2)
            bad = bad[: len(bad) - draw.choice([0, 0, 0, 1, 50])].tobytes()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    expected = shown_by_pillow(bad)
                except (SyntaxError, ValueError, TypeError, IndexError):
                    expected = None
            if expected is None or np.all(expected[-9:] == 128):
                with pytest.raises(Undecodable, match=r"\w{3}"):
                    decode(bad)
            else:
                assert np.array_equal(decode(bad), expected)
                shown += 1
    assert 60 < shown < 170


def with_corrupt_exif(data):
    """Two entries in place of the JFIF header: a text that lies beyond the end, and half an entry."""
    tiff = b"II*\0\x08\0\0\0\x02\0" + b"\x0e\x01\x02\0\x40\0\0\0\xf0\xff\0\0" + b"\x1a\x01\x05\0"
    body = b"Exif\0\0" + tiff
    start = 20 if b"JFIF" in data[:20] else 2
    return data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[start:]


def test_what_pillow_warns_of_neither_fails_nor_shows():
    for kind in ("4:2:0", "CMYK"):
        bad = with_corrupt_exif(KINDS[kind])
        assert size_of(bad) == (93, 121)
        assert np.array_equal(decode(bad), decode(KINDS[kind]))  # warnings are errors here
    decode(KINDS["PNG palette, alphas"])
    with pytest.warns(UserWarning, match="Corrupt EXIF|Tag data"):
        Image.open(io.BytesIO(bad)).close()


def test_threads_decode_at_once_and_leave_the_warnings_filters_as_they_were(request):
    request.addfinalizer(functools.partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)
    filters = list(warnings.filters)
    bad = with_corrupt_exif(KINDS["CMYK"])
    expected, found = decode(bad), []

    def work():
        found.extend(np.array_equal(decode(bad), expected) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 160
    assert warnings.filters == filters
