"""ImageNet (ILSVRC 2012; Russakovsky et al. 2015): 1,281,167 images to train on and 50,000 to test on.

Its authors call the latter the validation set; here it is `test`, or `validation` by their name. The
last `holdout` images of train, which every form has in a mixed order, are `holdout`: checkpoints are
chosen on them and they are never trained on. With `holdout` 0 all are trained on, as the original suite
does, and checkpoints can only be chosen on the test set.
"""

from giung2_ext.core.errors import Refusal
from giung2_ext.data.distribution import KINDS
from giung2_ext.data.source import Part, Source
from giung2_ext.data.sources import _imagenet

STREAMED = True
CLASSES_AND_SHAPE = 1000, (224, 224, 3)
MEAN, STD = _imagenet.MEAN, _imagenet.STD
PREPARE = (
    "python scripts/prepare.py --dataset=imagenet2012 --images=ILSVRC2012_img_train.tar,"
    "ILSVRC2012_img_val.tar --data_root=DIR"
)


def wanted(split: str) -> _imagenet.Wanted:
    """`train` or `validation`, as the set's authors call them."""
    short = "train" if split == "train" else "val"
    long = f"ILSVRC2012_img_{short}"
    return _imagenet.Wanted(
        "imagenet2012",
        "imagenet2012",
        split,
        (f"imagenet2012/{short}", short, f"imagenet2012/{long}", long),
        "ImageNet" if split == "validation" else None,
        count=KINDS["imagenet2012"].counts[split],
        prepare=PREPARE,
    )


def build(
    root: str | None = None,
    splits: tuple[str, ...] = ("train", "holdout", "test"),
    holdout: int = 10_000,
    image_size: int = 224,
    pipeline: str = "tf",
    form: str = "auto",
) -> Source:
    """Only what is needed for `splits` is looked for."""
    test = train = None
    if {"test", "validation"} & set(splits):
        test = _imagenet.need(wanted("validation"), root, form)
    if {"train", "holdout"} & set(splits):
        train = _imagenet.need(wanted("train"), root, "auto" if form == "arrays" else form)
    found: dict[str, _imagenet.Found] = {}
    if train is not None:
        size = len(train.records)
        if not 0 <= holdout < size:
            raise Refusal(f"config.data.holdout must be in 0..{size - 1}, got {holdout} ({train.about})")
        first = Part(train.records, 0, size - holdout)
        about = f"{len(first):,} of {train.about}"
        found["train"] = train._replace(records=first, about=about)
        if holdout:
            last = Part(train.records, size - holdout, size)
            about = f"{holdout:,} images, the last of train"
            found["holdout"] = train._replace(records=last, about=about)
    if test is not None:
        found["test"] = test
    source = _imagenet.make_source(found, image_size, pipeline, also={"validation": "test"})
    lacking = {"holdout": "config.data.holdout=0 leaves no images to choose on: --select_on=validation"}
    return source._replace(about=lacking | dict(source.about))
