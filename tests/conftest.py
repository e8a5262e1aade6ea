"""Eight fake CPU devices, no silent broadcasting, no warnings; fixtures that several folders share."""

import atexit
import os
import shutil
import tempfile

os.environ.pop("JAX_NUM_CPU_DEVICES", None)
COMPILED = tempfile.mkdtemp(prefix="compiled-")  # programs that tests and the scripts they start share
atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

import numpy as np
import pytest
from fakes import python2_batch


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """A compiled program is some hundred memory maps, and a process may have 65,530: a suite needs more."""
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def image_arrays(tmp_path):
    """A folder for the `arrays` source: 12x12 images of two easy classes in three."""
    draw = np.random.default_rng(0)
    folder = tmp_path / "arrays"
    folder.mkdir()
    for split, size in (("train", 120), ("test", 45)):
        labels = draw.integers(0, 3, size)
        images = draw.integers(0, 60, (size, 12, 12, 1), dtype=np.uint8)
        images[np.arange(size), labels * 4] += 150  # a bright row tells the class
        np.save(folder / f"{split}_images.npy", images)
        np.save(folder / f"{split}_labels.npy", labels)
    return folder


@pytest.fixture
def cifar10_files(tmp_path):
    """A folder with CIFAR-10's six files of a dozen images each; file f, image i, label (7 f + i) % 10.

    The pixel at row r, column c, channel d is (101 f + 37 i + 3 r + 7 c + 85 d) % 251.
    """
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    image, channel, row, column = np.ogrid[:12, :3, :32, :32]
    for f, name in enumerate(["test_batch", *(f"data_batch_{n}" for n in range(1, 6))]):
        pixels = (101 * f + 37 * image + 3 * row + 7 * column + 85 * channel) % 251
        pixels = pixels.astype(np.uint8).reshape(12, 3 * 32 * 32)  # channels apart, as stored
        batch = python2_batch(name.encode(), pixels, [(7 * f + i) % 10 for i in range(12)])
        (folder / name).write_bytes(batch)
    return tmp_path
