"""ImageNet-C (Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261): the test set, corrupted.

50,000 images for each of 15 corruptions and severities 1 to 5, already cut to 224 pixels and taken as
they are: TFDS imagenet2012_corrupted/CORRUPTION_SEVERITY, or folders CORRUPTION/SEVERITY/wnid.
"""

from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.data.source import Source
from giung2_ext.data.sources import _imagenet

STREAMED = True
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
    "jpeg_compression",
)  # fmt: skip
VARIANTS = tuple(f"{name}_{severity}" for name in CORRUPTIONS for severity in range(1, 6))


def wanted(variant: str) -> _imagenet.Wanted:
    name, _, severity = variant.rpartition("_")
    return _imagenet.Wanted(
        f"imagenet_c/{variant}",
        f"imagenet2012_corrupted/{variant}",
        "validation",
        tuple(f"{folder}/{name}/{severity}" for folder in ("imagenet-c", "imagenet_c", "ImageNet-C")),
        count=50_000,
        prepare="tfds build imagenet2012_corrupted, or unpack its tars below DIR/imagenet-c",
    )


def build(
    root: str | None = None, variant: str | None = None, image_size: int = 224, form: str = "auto"
) -> Source:
    if variant is None:
        raise Refusal(f"imagenet_c needs a variant, as in imagenet_c/{VARIANTS[0]}")
    if variant not in VARIANTS:
        raise unknown("variant of imagenet_c", variant, VARIANTS)
    return _imagenet.shift(wanted(variant), root, image_size, "stored", form)
