"""ImageNet-ReaL (Beyer et al. 2020, https://arxiv.org/abs/2006.07159): the test set, labelled anew.

An image may have several right answers, and one without any is not counted. From TFDS only, which keeps
the images with both labels.
"""

from giung2_ext.data.source import Source
from giung2_ext.data.sources import _imagenet

STREAMED = True
WANTED = _imagenet.Wanted(
    "imagenet_real",
    "imagenet2012_real",
    "validation",
    (),
    count=50_000,
    features={"label_key": "original_label", "extra": "real_label"},
    prepare="tfds build imagenet2012_real",
)


def build(root: str | None = None, image_size: int = 224, pipeline: str = "timm") -> Source:
    found = _imagenet.need(WANTED, root, "tfds")
    source = _imagenet.make_source({"test": found}, image_size, pipeline)
    return source._replace(answers=found.records.labels)
