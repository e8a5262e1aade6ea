"""The 1,000 classes of ILSVRC 2012: wnids in label order, and which 200 are in ImageNet-A and in -R.

Every ImageNet variant is labelled among these 1,000, whatever its own release counts to.
"""

import pathlib

from giung2_ext.core.errors import Refusal, did_you_mean

FILE = pathlib.Path(__file__).with_name("imagenet_classes.txt")
_LINES = [line.split() for line in FILE.read_text(encoding="ascii").splitlines()]  # wnid, marks

WNIDS: tuple[str, ...] = tuple(line[0] for line in _LINES)
IMAGENET_A: tuple[int, ...] = tuple(i for i, line in enumerate(_LINES) if "A" in line[1:])
IMAGENET_R: tuple[int, ...] = tuple(i for i, line in enumerate(_LINES) if "R" in line[1:])
_LABELS = {wnid: label for label, wnid in enumerate(WNIDS)}


def is_wnid(folder_name: str) -> bool:
    return folder_name in _LABELS


def label_of(folder_name: str) -> int:
    """The label of a class folder such as n01440764."""
    label = _LABELS.get(folder_name)
    if label is None:
        raise Refusal(
            f"folder {folder_name!r} is none of the 1,000 ImageNet classes, whose folders are named "
            f"{WNIDS[0]} to {WNIDS[-1]}{did_you_mean(folder_name, WNIDS)}"
        )
    return label
