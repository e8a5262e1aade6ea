"""CIFAR-100 (Krizhevsky 2009), its 100 fine classes: from its authors' python version, or from TFDS.

The former are the files `train` and `test` in ROOT or ROOT/cifar-100-python. The last `holdout` of the
50,000 training images are the split `holdout`. Default mean and std are those of the training pixels.
"""

from giung2_ext.data.source import Source
from giung2_ext.data.sources import _cifar, _small

FILES = {"train": ("train",), "test": ("test",)}
CIFAR100 = _cifar.published(100, "cifar-100-python", FILES, b"fine_labels")


def build(
    root: str | None = None,
    holdout: int = 5000,
    mean: tuple[float, ...] = (0.5071, 0.4865, 0.4409),
    std: tuple[float, ...] = (0.2673, 0.2564, 0.2762),
) -> Source:
    return _small.build(CIFAR100, root, holdout, mean, std)
