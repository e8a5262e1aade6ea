"""ImageNet-A (Hendrycks et al. 2021, https://arxiv.org/abs/1907.07174): natural adversarial examples.

7,500 photographs of 200 of ImageNet's classes that a ResNet-50 gets wrong.
"""

from giung2_ext.data.classes import IMAGENET_A
from giung2_ext.data.distribution import KINDS
from giung2_ext.data.source import Source
from giung2_ext.data.sources import _imagenet

STREAMED = True
WANTED = _imagenet.Wanted(
    "imagenet_a",
    "imagenet_a",
    "test",
    ("imagenet-a", "imagenet_a/imagenet-a", "imagenet_a"),
    "ImageNetA",
    classes=IMAGENET_A,
    count=KINDS["imagenet_a"].counts["test"],
    prepare="python scripts/prepare.py --dataset=imagenet_a --images=imagenet-a.tar --data_root=DIR",
)


def build(
    root: str | None = None, image_size: int = 224, pipeline: str = "timm", form: str = "auto"
) -> Source:
    return _imagenet.shift(WANTED, root, image_size, pipeline, form)
