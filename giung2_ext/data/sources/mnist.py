"""MNIST (LeCun et al. 1998): from its authors' four idx files, or from TFDS.

The former are in ROOT/mnist, ROOT/MNIST/raw or, if it has such a name, ROOT. The last `holdout` of the
60,000 training images are the split `holdout`. Default mean and std are those of the training pixels.
"""

from giung2_ext.data.source import Source
from giung2_ext.data.sources import _idx, _small

MNIST = _idx.published("mnist", "MNIST", "yann.lecun.com/exdb/mnist")
CLASSES_AND_SHAPE = MNIST.num_classes, MNIST.shape


def build(
    root: str | None = None,
    holdout: int = 5000,
    mean: tuple[float, ...] = (0.1307,),
    std: tuple[float, ...] = (0.3081,),
) -> Source:
    return _small.build(MNIST, root, holdout, mean, std)
