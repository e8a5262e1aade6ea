"""CIFAR-100 (Krizhevsky 2009), its 100 fine classes: from its authors' python version, or from TFDS.

The former are the files `train` and `test` in ROOT or ROOT/cifar-100-python. The last `holdout` of the
50,000 training images are the split `holdout`. Default mean and std are those of the training pixels.
"""

from giung2_ext.data.source import Source
from giung2_ext.data.sources import _cifar, _small

FILES = {"train": ("train",), "test": ("test",)}
CIFAR100 = _cifar.published(100, "cifar-100-python", FILES, b"fine_labels")
CLASSES_AND_SHAPE = CIFAR100.num_classes, CIFAR100.shape

_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
NAMES = tuple(_NAMES.split())


def build(
    root: str | None = None,
    holdout: int = 5000,
    mean: tuple[float, ...] = (0.5071, 0.4865, 0.4409),
    std: tuple[float, ...] = (0.2673, 0.2564, 0.2762),
) -> Source:
    return _small.build(CIFAR100, root, holdout, mean, std)
