"""ImageNet-Sketch (Wang et al. 2019, https://arxiv.org/abs/1905.13549): 50,889 sketches."""

from giung2_ext.data.distribution import KINDS
from giung2_ext.data.source import Source
from giung2_ext.data.sources import _imagenet

STREAMED = True
WANTED = _imagenet.Wanted(
    "imagenet_sketch",
    "imagenet_sketch",
    "test",
    ("sketch", "imagenet_sketch/sketch", "imagenet_sketch"),
    "ImageNetSketch",
    count=KINDS["imagenet_sketch"].counts["test"],
    prepare="python scripts/prepare.py --dataset=imagenet_sketch --images=ImageNet-Sketch.zip "
    "--data_root=DIR",
)


def build(
    root: str | None = None, image_size: int = 224, pipeline: str = "timm", form: str = "auto"
) -> Source:
    return _imagenet.shift(WANTED, root, image_size, pipeline, form)
