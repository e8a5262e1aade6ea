"""Writes transforms.npz: what TensorFlow makes of a picture, for tests/data/test_transforms.py.

Run as `python tests/golden/make_transforms.py` where TensorFlow and Pillow are installed; made with
TensorFlow 2.21 and Pillow 13. `photo` is a JPEG of a drawn scene, `pixels` what TensorFlow decodes of it.
`resized_HxWtoS` are bicubic resizes of its corner HxW, `evaluated_S` the suite's evaluation, `trained` its
training crop at `train_box`; all float32. `boxes_HxW` are draws of the crop: counts of every box for
tiny images, quantiles of area, aspect ratio, top and left otherwise, with `quantiles` naming them.
"""

import io
import pathlib

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

DRAWS = 20000
QUANTILES = np.linspace(0.02, 0.98, 25)
RESIZES = ((7, 7, 20), (30, 30, 48), (61, 61, 48), (110, 110, 40), (50, 71, 33), (24, 24, 24))
TRAIN_BOX = (11, 23, 90, 101)


def draw_photo() -> bytes:
    """160x120: slopes, hard edges of bright colours, and grain."""
    row, column = np.mgrid[:120, :160]
    pixels = np.stack([row * 2, column * 1.5, 255 - row - column / 2], axis=-1)
    pixels += np.random.default_rng(0).normal(0, 12, pixels.shape)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    pen.ellipse((30, 20, 90, 100), fill=(250, 40, 30), outline=(0, 0, 0), width=3)
    pen.polygon([(80, 10), (150, 60), (95, 110)], fill=(30, 60, 240), outline=(255, 255, 255))
    for offset in range(0, 60, 6):
        pen.line((100 + offset, 70, 80 + offset, 119), fill=(240, 240, 20), width=2)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def evaluate(photo: bytes, size: int) -> np.ndarray:
    height, width = tf.unstack(tf.io.extract_jpeg_shape(photo))[:2]
    side = tf.cast(224 / (224 + 32) * tf.cast(tf.minimum(height, width), tf.float32), tf.int32)
    window = tf.stack([(height - side + 1) // 2, (width - side + 1) // 2, side, side])
    cut = tf.image.decode_and_crop_jpeg(photo, window, channels=3)
    return tf.image.resize(cut, [size, size], "bicubic").numpy()


def draw_boxes(height: int, width: int) -> np.ndarray:
    def one(_):
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            [height, width, 3],
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        return tf.concat([begin[:2], size[:2]], 0)

    tf.random.set_seed(0)
    return next(iter(tf.data.Dataset.range(DRAWS).map(one).batch(DRAWS))).numpy()


def quantiles(boxes: np.ndarray) -> np.ndarray:
    top, left, height, width = boxes.T
    return np.stack([np.quantile(of, QUANTILES) for of in (height * width, width / height, top, left)])


def main() -> None:
    photo = draw_photo()
    pixels = tf.io.decode_jpeg(photo, 3).numpy()
    made = {"photo": np.frombuffer(photo, np.uint8), "pixels": pixels, "quantiles": QUANTILES}
    for height, width, size in RESIZES:
        resized = tf.image.resize(pixels[:height, :width], [size, size], "bicubic").numpy()
        made[f"resized_{height}x{width}to{size}"] = resized
    for size in (32, 64):
        made[f"evaluated_{size}"] = evaluate(photo, size)
    cut = tf.image.decode_and_crop_jpeg(photo, TRAIN_BOX, channels=3)
    made["train_box"] = np.array(TRAIN_BOX)
    made["trained"] = tf.image.resize(cut, [64, 64], "bicubic").numpy()
    for height, width in ((8, 6), (5, 5)):
        boxes, counts = np.unique(draw_boxes(height, width), axis=0, return_counts=True)
        made[f"boxes_{height}x{width}"] = np.column_stack([boxes, counts])
    for height, width in ((375, 500), (300, 120)):
        made[f"boxes_{height}x{width}"] = quantiles(draw_boxes(height, width))
    np.savez_compressed(pathlib.Path(__file__).with_name("transforms.npz"), **made)


if __name__ == "__main__":
    main()
