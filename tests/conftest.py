"""Eight fake CPU devices, no silent broadcasting, no warnings; fixtures that several folders share."""

import os

os.environ.pop("JAX_NUM_CPU_DEVICES", None)
import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

import numpy as np
import pytest


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
