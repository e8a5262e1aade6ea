"""Fashion-MNIST (Xiao et al. 2017): from its authors' four idx files, or from TFDS.

The former are in ROOT/fashion_mnist, ROOT/FashionMNIST/raw or, if it has such a name, ROOT. The last
`holdout` of the 60,000 training images are the split `holdout`. Default mean and std are those of the
training pixels.
"""

from giung2_ext.data.source import Source
from giung2_ext.data.sources import _idx, _small

FASHION = _idx.published("fashion_mnist", "Fashion-MNIST", "github.com/zalandoresearch/fashion-mnist")
CLASSES_AND_SHAPE = FASHION.num_classes, FASHION.shape

NAMES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


def build(
    root: str | None = None,
    holdout: int = 5000,
    mean: tuple[float, ...] = (0.2860,),
    std: tuple[float, ...] = (0.3530,),
) -> Source:
    return _small.build(FASHION, root, holdout, mean, std)
