"""A wnid's label is its place in the sorted list; ImageNet-A and -R are 200 of the same labels."""

import pytest
from fakes import SHARED

from giung2_ext.core.errors import Refusal
from giung2_ext.data import classes

META = SHARED / "imagenet-meta"


def test_labels_are_places_in_the_sorted_wnids():
    assert len(set(classes.WNIDS)) == 1000
    assert list(classes.WNIDS) == sorted(classes.WNIDS)
    assert (classes.WNIDS[0], classes.WNIDS[388], classes.WNIDS[999]) == (
        "n01440764",  # tench
        "n02510455",  # giant panda
        "n15075141",  # toilet tissue
    )
    assert [classes.label_of(wnid) for wnid in classes.WNIDS] == list(range(1000))


@pytest.mark.parametrize(
    ("labels", "first", "total"),
    [(classes.IMAGENET_A, (6, 11, 13), 102_178), (classes.IMAGENET_R, (1, 2, 4), 86_135)],
    ids=["A", "R"],
)
def test_a_and_r_are_two_hundred_of_the_labels(labels, first, total):
    assert len(labels) == len(set(labels)) == 200
    assert list(labels) == sorted(labels)
    assert (labels[:3], labels[-1], sum(labels)) == (first, 988, total)


def test_a_and_r_share_eighty_six_classes():
    assert len(set(classes.IMAGENET_A) & set(classes.IMAGENET_R)) == 86


@pytest.mark.skipif(not META.exists(), reason="the class lists are not there (2026-11-21)")
def test_the_lists_are_the_published_ones():
    def stored(name):
        return (META / f"{name}_wnids.txt").read_text().split()

    assert list(classes.WNIDS) == stored("imagenet1k")
    assert [classes.WNIDS[label] for label in classes.IMAGENET_A] == stored("imagenet_a")
    assert [classes.WNIDS[label] for label in classes.IMAGENET_R] == stored("imagenet_r")


@pytest.mark.parametrize("name", ["n02084071", "tench", "0", "", "N01440764"])
def test_a_folder_of_no_class_is_refused(name):
    assert not classes.is_wnid(name)
    with pytest.raises(Refusal, match=rf"folder '{name}' is none of the 1,000 ImageNet classes"):
        classes.label_of(name)


def test_a_mistyped_wnid_is_refused_with_the_nearest():
    with pytest.raises(Refusal, match="did you mean 'n01440764'"):
        classes.label_of("n0144076")
