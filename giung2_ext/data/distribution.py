"""What the authors of ImageNet and its shifts distribute: which splits, how many images, called what."""

from collections.abc import Mapping
from typing import NamedTuple

from etils import epath

from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.data.formats import archives, folders

Found = folders.Folder | archives.Archive


class Kind(NamedTuple):
    version: str  # of the same data in TFDS
    counts: dict[str, int]  # by split
    naming: str = "wnid"
    bare: bool = False  # whether TFDS's file_name is without the class folder
    variants: tuple[str, ...] = ()


KINDS = {
    "imagenet2012": Kind("5.1.0", {"train": 1_281_167, "validation": 50_000}, bare=True),
    "imagenet_v2": Kind(
        "3.0.0", {"test": 10_000}, "number", variants=("matched-frequency", "threshold-0.7", "topimages")
    ),
    "imagenet_r": Kind("0.2.0", {"test": 30_000}),
    "imagenet_a": Kind("0.1.0", {"test": 7_500}, bare=True),
    "imagenet_sketch": Kind("1.0.0", {"test": 50_889}),
}
SPLIT_FILES = {
    "train": ("train", "ILSVRC2012_img_train.tar"),
    "validation": ("val", "validation", "ILSVRC2012_img_val.tar"),
}


def kind_of(dataset: str, variant: str | None) -> Kind:
    if dataset not in KINDS:
        raise unknown("data set to prepare", dataset, KINDS)
    kind = KINDS[dataset]
    if variant is None and kind.variants:
        raise Refusal(f"{dataset} needs --variant={' or '.join(kind.variants)}: which one are the images?")
    if variant is not None and variant not in kind.variants:
        raise unknown(f"variant of {dataset}", variant, kind.variants)
    return kind


def find_records(dataset: str, kind: Kind, places: list[str]) -> dict[str, Found]:
    """{split: its images}; of two splits, names of folders and archives tell which is which."""
    if len(kind.counts) > 1:
        found = _find_splits(places)
    elif len(places) == 1:
        found = {"test": places[0]}
    else:
        raise Refusal(f"{dataset} is one folder or archive, got {len(places)} paths")
    return {split: _open(found[split], kind.naming) for split in kind.counts if split in found}


def _open(place: str, naming: str) -> Found:
    opener = folders if epath.Path(place).is_dir() else archives
    return opener.read(place, naming)


def _find_splits(places: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for place in places:
        inside = {
            split: str(epath.Path(place) / name)
            for split, names in SPLIT_FILES.items()
            for name in names
            if (epath.Path(place) / name).exists()
        }
        name = epath.Path(place).name.lower()
        named = [split for split, names in SPLIT_FILES.items() if names[0] in name]
        if not inside and len(named) != 1:
            known = ", ".join(name for names in SPLIT_FILES.values() for name in names)
            raise Refusal(f"{place}: neither holds any of {known} nor says in its name which split it is")
        for split, path in (inside or {named[0]: place}).items():
            if split in found:
                raise Refusal(f"two places for {split}: {found[split]} and {path}")
            found[split] = path
    return found


def check_counts(
    dataset: str, kind: Kind, records: Mapping[str, Found], places: list[str], allowed: bool
) -> bool:
    wrong = []
    for split, expected in kind.counts.items():
        part = records.get(split)
        if part is None:
            wrong.append(f"{split} is missing")
        elif len(part) != expected:
            others = f" and {part.listing.others:,} other files" if part.listing.others else ""
            wrong.append(f"{split} has {len(part):,} images{others}, expected {expected:,}")
    if wrong and not allowed:
        raise Refusal(
            f"{dataset} in {', '.join(places)} is not complete: {'; '.join(wrong)}. Fetch the rest, or "
            "take what is there with --allow_incomplete=true"
        )
    return not wrong
