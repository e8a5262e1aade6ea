"""ImageNetV2 (Recht et al. 2019, https://arxiv.org/abs/1902.10811): 10,000 new images, three variants.

Its folders are named by label, 0 to 999, and are read by number: in string order 10 comes before 2.
"""

from giung2_ext.core.errors import unknown
from giung2_ext.data.distribution import KINDS
from giung2_ext.data.source import Source
from giung2_ext.data.sources import _imagenet

STREAMED = True
KIND = KINDS["imagenet_v2"]
FOLDERS = (
    "imagenetv2-matched-frequency-format-val",
    "imagenetv2-threshold0.7-format-val",
    "imagenetv2-top-images-format-val",
)
VARIANTS = dict(zip(KIND.variants, FOLDERS, strict=True))


def build(
    root: str | None = None,
    variant: str = "matched-frequency",
    image_size: int = 224,
    pipeline: str = "timm",
    form: str = "auto",
) -> Source:
    if variant not in VARIANTS:
        raise unknown("variant of imagenet_v2", variant, VARIANTS)
    folder = VARIANTS[variant]
    first = variant == "matched-frequency"  # the one that the original suite's arrays are taken to be
    wanted = _imagenet.Wanted(
        f"imagenet_v2/{variant}",
        f"imagenet_v2/{variant}",
        "test",
        (folder, f"imagenet_v2/{folder}", f"imagenet_v2/{variant}"),
        "ImageNetV2" if first else None,
        naming=KIND.naming,
        count=KIND.counts["test"],
        prepare=f"python scripts/prepare.py --dataset=imagenet_v2 --variant={variant} "
        "--images=imagenetv2-….tar.gz --data_root=DIR",
    )
    return _imagenet.shift(wanted, root, image_size, pipeline, form)
