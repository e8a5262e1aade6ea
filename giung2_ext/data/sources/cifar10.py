"""CIFAR-10 (Krizhevsky 2009): from its authors' python version, or from TFDS.

The former are the files `data_batch_1` to `data_batch_5` and `test_batch` in ROOT or
ROOT/cifar-10-batches-py. The last `holdout` of the 50,000 training images, which are in random order, are
the split `holdout`. Default mean and std are those of the training pixels.
"""

from giung2_ext.data.source import Source
from giung2_ext.data.sources import _cifar, _small

FILES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
CIFAR10 = _cifar.published(10, "cifar-10-batches-py", FILES, b"labels")
CLASSES_AND_SHAPE = CIFAR10.num_classes, CIFAR10.shape

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def build(
    root: str | None = None,
    holdout: int = 5000,
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465),
    std: tuple[float, ...] = (0.2470, 0.2435, 0.2616),
) -> Source:
    return _small.build(CIFAR10, root, holdout, mean, std)
