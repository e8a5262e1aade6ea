"""Eight fake CPU devices, no silent broadcasting, no warnings; fixtures that several folders share."""

import atexit
import os
import shutil
import tempfile

os.environ.pop("JAX_NUM_CPU_DEVICES", None)
os.environ["JAX_PLATFORMS"] = "cpu"
COMPILED = tempfile.mkdtemp(prefix="compiled-")  # programs that tests and the scripts they start share
atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
# the tests run their programs once or twice: machine code that is made in two thirds of the time will do
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=1"
)  # `XLA_FLAGS=` means as users compile

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

import importlib.util
import itertools
import json
import subprocess
import sys
import urllib.parse
import urllib.request

import numpy as np
import pytest
from etils import epath
from fakes import REPOSITORY, python2_batch


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


class ObjectStore:
    """A local object store, a process of its own; see object_store.py."""

    def __init__(self, address):
        self.address = address

    def tell(self, order, number=0, part=""):
        """`slow`, `fail` or `lose` what has `part` in its name; `log` returns what was asked for."""
        with urllib.request.urlopen(f"{self.address}/_{order}?{number}&{part}") as answer:
            return json.load(answer)

    def put(self, folder, place):
        """Copies a folder's files there; they are not asked of the code that is tested."""
        for file in filter(os.path.isfile, folder.rglob("*")):
            name = urllib.parse.quote(f"{'/'.join(place.parts[3:])}/{file.relative_to(folder)}".lstrip("/"))
            url = f"{self.address}/upload/storage/v1/b/{place.parts[2]}/o?uploadType=media&name={name}"
            urllib.request.urlopen(url, data=file.read_bytes()).close()
        return place


@pytest.fixture(scope="session")
def object_store():
    """What gs:// is for this process and its children."""
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("gs:// needs the extra [gcs], which is not installed (2026-11-27)")
    command = [sys.executable, str(REPOSITORY / "tests/object_store.py")]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with pytest.MonkeyPatch.context() as patch, subprocess.Popen(command, text=True, **pipes) as server:
        address = server.stdout.readline().strip()
        for client in (
            "STORAGE_EMULATOR_HOST",
            "TENSORSTORE_GCS_HTTP_URL",
            "CLOUD_STORAGE_EMULATOR_ENDPOINT",
        ):
            patch.setenv(client, address)  # of gcsfs, orbax, ArrayRecord
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # which asks by another protocol
        yield ObjectStore(address)
        server.stdin.close()


_numbers = itertools.count()


@pytest.fixture
def bucket(object_store):
    """A bucket of the test's own."""
    yield epath.Path(f"gs://bucket-{next(_numbers)}")
    for order in ("slow", "fail", "lose"):
        object_store.tell(order)
