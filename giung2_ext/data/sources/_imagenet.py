"""Where ImageNet and the sets that shift it are looked for, and in which forms they are read.

In order: a TFDS directory (ArrayRecord or TFRecord), the folders that the authors distribute, the
pre-made arrays of the original suite; each below --data_root and then below $TFDS_DATA_DIR. Labels are
always among ImageNet's 1000. Pixels are standardised as the original suite does, with CLIP's constants.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

from etils import epath

from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.data import classes as lists
from giung2_ext.data import preparation
from giung2_ext.data.formats import arrays, folders, tfds_folders
from giung2_ext.data.source import Missing, Records, Source

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
FORMS = ("tfds", "folders", "arrays")


class Wanted(NamedTuple):
    """One split of one set, as it is called in each form."""

    dataset: str
    tfds: str  # NAME or NAME/VARIANT
    split: str  # there
    folders: tuple[str, ...]
    array: str | None = None
    naming: str = "wnid"
    classes: tuple[int, ...] | None = None
    count: int = 0  # of the whole set
    prepare: str = ""  # the command that makes it
    features: Mapping[str, str] = {}  # of TFDS, where they have other names


class Found(NamedTuple):
    records: Records
    about: str
    form: str


def find(wanted: Wanted, root: str | None, form: str = "auto") -> Found | None:
    """The first form that is there, or only the named one."""
    if form not in ("auto", *FORMS):
        raise unknown("config.data.form", form, ("auto", *FORMS))
    for kind in FORMS if form == "auto" else (form,):
        for place in _roots(root):
            found = _READ[kind](wanted, place)
            if found is not None:
                return _told(wanted, found)
    return None


def need(wanted: Wanted, root: str | None, form: str = "auto") -> Found:
    found = find(wanted, root, form)
    if found is None:
        raise Missing(missing(wanted, root))
    return found


def is_there(wanted: Wanted, root: str | None) -> bool:
    """Whether something like it exists, without reading it."""
    name, _, variant = wanted.tfds.partition("/")
    return any(
        tfds_folders.find(place, name, variant or None) is not None
        or any((place / folder).is_dir() for folder in wanted.folders)
        or (wanted.array is not None and arrays.find(place, wanted.array) is not None)
        for place in _roots(root)
    )


def missing(wanted: Wanted, root: str | None) -> str:
    """What was looked for, where, and what makes it."""
    roots = _roots(root)
    if not roots:
        return f"data {wanted.dataset!r} needs --data_root=DIR, or $TFDS_DATA_DIR"
    names = [f"{wanted.tfds}/VERSION (TFDS)", *(f"{folder}/ (folders)" for folder in wanted.folders)]
    names += [f"{wanted.array}_x224/test_images.npy"] if wanted.array else []
    places = [f"{place}{'' if place.exists() else ' (which does not exist)'}" for place in roots]
    begun = [folder for place in roots for folder in (place / wanted.tfds).glob(f"*/{preparation.PLAN}")]
    unfinished = f" {begun[0].parent} is unfinished." if begun else ""
    return (
        f"no {wanted.split} split of {wanted.dataset} in {' or '.join(places)}: looked for "
        f"{', '.join(names)}.{unfinished} Prepare it with: {wanted.prepare}"
    )


def _roots(root: str | None) -> list[epath.Path]:
    named = [root, os.environ.get("TFDS_DATA_DIR")]
    return [epath.Path(place).expanduser() for place in dict.fromkeys(filter(None, named))]


def _told(wanted: Wanted, found: Found) -> Found:
    count = len(found.records)
    part = f" (the whole set has {wanted.count:,})" if wanted.count not in (0, count) else ""
    about = f"{count:,} images{part}, {found.about}"
    return found._replace(about=about)


def _read_tfds(wanted: Wanted, root: epath.Path) -> Found | None:
    name, _, variant = wanted.tfds.partition("/")
    folder = tfds_folders.find(root, name, variant or None)
    if folder is None or wanted.split not in tfds_folders.sizes(folder):
        return None
    prepared = preparation.describe(folder)
    about = f"{tfds_folders.describe(folder)} in {folder}{prepared and f', {prepared}'}"
    return Found(tfds_folders.read(folder, wanted.split, say=print, **wanted.features), about, "tfds")


def _read_folders(wanted: Wanted, root: epath.Path) -> Found | None:
    for name in wanted.folders:
        if (root / name).is_dir():
            return Found(folders.read(root / name, wanted.naming), f"folders in {root / name}", "folders")
    return None


def _read_arrays(wanted: Wanted, root: epath.Path) -> Found | None:
    folder = None if wanted.array is None else arrays.find(root, wanted.array)
    if folder is None:
        return None
    return Found(arrays.Arrays(folder, wanted.classes, len(lists.WNIDS)), f"arrays in {folder}", "arrays")


_READ = {"tfds": _read_tfds, "folders": _read_folders, "arrays": _read_arrays}


def make_source(splits: Mapping[str, Found], image_size: int, pipeline: str, **more: object) -> Source:
    """What networks see of the splits that were found; arrays are taken as they are stored."""
    if image_size < 1:
        raise Refusal(f"config.data.image_size must be at least 1, got {image_size}")
    pipelines = {name: "stored" if found.form == "arrays" else pipeline for name, found in splits.items()}
    for found in splits.values():
        if isinstance(found.records, arrays.Arrays) and found.records.shape[:2] != (image_size,) * 2:
            raise Refusal(
                f"{found.about}: its images are {found.records.shape[:2]}, the network's {image_size} "
                "(config.data.image_size)"
            )
    return Source(
        splits={name: found.records for name, found in splits.items()},
        num_classes=len(lists.WNIDS),
        mean=MEAN,
        std=STD,
        image_size=image_size,
        pipelines=pipelines,
        about={name: f"{found.about}, pipeline {pipelines[name]}" for name, found in splits.items()},
        **more,
    )


def shift(wanted: Wanted, root: str | None, image_size: int, pipeline: str, form: str) -> Source:
    """A set that is only for testing."""
    return make_source({"test": need(wanted, root, form)}, image_size, pipeline, classes=wanted.classes)
