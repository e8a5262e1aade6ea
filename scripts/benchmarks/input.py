"""Images a second that one thread makes ready for training: decode, random resized crop to 224, flip.

From original files and from files prepared at a shorter side of 256, against Pillow and tf.data (extra
`tensorflow`; bicubic as in the original suite, and bilinear, which is less work). tf.data has one thread in
its pool, and a second one takes over what is ready: held to one core they would wait for each other.
"""

import io
import os

import numpy as np
from PIL import Image

from benchmarks import _jpegs
from giung2_ext.data import streaming, transforms
from giung2_ext.data.source import Example

SIZE = 224
AIMS = {"tf.data, original": 1.3, "tf.data on the originals": 2.3}


def ours(files):
    return (transforms.train_image(data, SIZE, np.random.default_rng(i)) for i, data in enumerate(files))


def pillow(files):
    return (by_pillow(data, np.random.default_rng(i)) for i, data in enumerate(files))


def exhaust(images):
    """Looks at every image and keeps none."""
    for _ in images:
        pass


def by_pillow(data, draw):
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        top, left, h, w = transforms.crop_box(draw, height, width)
        box = (left, top, left + w, top + h)
        out = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
    if draw.random() < 0.5:
        out = out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(out)


def by_tensorflow(tf, method):
    """The original suite's transform (which is bicubic), decoding no more of a file than its crop."""

    def one(data):
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data),
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        return tf.image.random_flip_left_right(tf.image.resize(image, [SIZE, SIZE], method))

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1

    def pipeline(files):
        mapped = tf.data.Dataset.from_tensor_slices(files).map(one, num_parallel_calls=1)
        return mapped.batch(32).with_options(options)

    return pipeline


def make(smoke, data_root):
    originals = _jpegs.read(smoke, data_root, "input")
    originals = originals * (1 if smoke else max(1, 300 // len(originals)))
    prepared = [_jpegs.prepare(data) for data in originals]
    try:
        import tensorflow as tf
    except ModuleNotFoundError:
        tf = None
    same = {"tf.data": "bicubic", "tf.data bilinear": "bilinear"}
    rivals = {f"{name}, original": (originals, method) for name, method in same.items()}
    first = part("original", originals, tf, rivals, smoke)
    rivals = {f"{name}, prepared": (prepared, method) for name, method in same.items()}
    rivals["tf.data on the originals"] = originals, "bicubic"
    return [first, part("prepared", prepared, tf, rivals, smoke)]


def part(kind, files, tf, rivals, smoke):
    for mine, theirs in zip(ours(files[:100]), pillow(files[:100]), strict=True):
        assert mine.shape == theirs.shape == (SIZE, SIZE, 3)
        assert np.abs(mine.astype(float) - theirs).mean() < 12  # the same crop; Pillow antialiases
    contenders = {
        f"ours, {kind}": lambda: exhaust(ours(files)),
        f"Pillow, {kind}": lambda: exhaust(pillow(files)),
    }
    kilobytes = np.mean([len(data) for data in files]) / 1e3
    notes = [f"{len(files)} files of {kilobytes:.0f} kB on average, one thread"]
    if tf is None:
        notes.append("tf.data: not measured, TensorFlow is not installed (extra `tensorflow`)")
    else:
        for name, (its_files, method) in rivals.items():
            pipeline = by_tensorflow(tf, method)(its_files)  # holds their bytes: nothing is copied later
            assert next(iter(pipeline)).shape[1:] == (SIZE, SIZE, 3)
            contenders[name] = lambda p=pipeline: exhaust(batch.numpy() for batch in p)
        notes.append(f"TensorFlow {tf.__version__}, the same law of crops with its own draws")
    notes.append(lambda: memory(files, 100 if smoke else 10_000))
    aims = {name: aim for name, aim in AIMS.items() if name in contenders}
    return contenders, aims, notes, ("images", len(files))


class Files:
    """Any number of records from a few files."""

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return 50_000

    def __getitem__(self, index):
        return Example(self.files[index % len(self.files)], index % 1000, f"file {index}")


def memory(files, images):
    """Resident memory of the streaming feed early and late in a run of `images`."""
    batch = 20 if images < 1000 else 100
    recipe = streaming.Recipe(SIZE, "tf", "resized_crop")
    feed = streaming.host_batches(
        streaming.Training(Files(files), recipe, batch, range(batch), 0), threads=2
    )
    seen = {}
    for done in range(batch, images + 1, batch):
        next(feed)
        seen[done] = resident()
    early = max(size for done, size in seen.items() if done <= images // 5)
    late = max(size for done, size in seen.items() if done > images // 5)
    return (
        f"memory of the streaming feed: at most {early:.0f} MiB in the first {images // 5:,} images, "
        f"{late:.0f} MiB in the other {images - images // 5:,}"
    )


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
