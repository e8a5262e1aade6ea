"""ImageNet-R (Hendrycks et al. 2021, https://arxiv.org/abs/2006.16241): 30,000 renditions of 200
classes.
"""

from giung2_ext.data.classes import IMAGENET_R
from giung2_ext.data.distribution import KINDS
from giung2_ext.data.source import Source
from giung2_ext.data.sources import _imagenet

STREAMED = True
WANTED = _imagenet.Wanted(
    "imagenet_r",
    "imagenet_r",
    "test",
    ("imagenet-r", "imagenet_r/imagenet-r", "imagenet_r"),
    "ImageNetR",
    classes=IMAGENET_R,
    count=KINDS["imagenet_r"].counts["test"],
    prepare="python scripts/prepare.py --dataset=imagenet_r --images=imagenet-r.tar --data_root=DIR",
)


def build(
    root: str | None = None, image_size: int = 224, pipeline: str = "timm", form: str = "auto"
) -> Source:
    return _imagenet.shift(WANTED, root, image_size, pipeline, form)
