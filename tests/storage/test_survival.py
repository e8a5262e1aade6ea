"""The masks of a chain in one file: exact, proved nested, and small."""

import io

import numpy as np
import pytest
from fakes import make_model, shapes_of

from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.storage import survival


def chain(cycles, ratio=0.8, seed=0):
    """Random nested masks, and a leaf that is not prunable."""
    draw = np.random.default_rng(seed)
    dense = masking.dense(shapes_of(make_model("lenet"))[0], "kernels")
    found = [trees.map_present(lambda mask: np.ones(mask.shape, bool), dense)]
    for _ in range(cycles - 1):
        found.append(trees.map_present(lambda mask: mask & (draw.random(mask.shape) < ratio), found[-1]))
    return found


def names(masks):
    return [f"{cycle:03d}" for cycle in range(len(masks))]


def equal(a, b):
    a, b = trees.named_leaves(a), trees.named_leaves(b)
    assert a.keys() == b.keys()
    return all((m is None and b[n] is None) or np.array_equal(m, b[n]) for n, m in a.items())


def test_every_cycles_mask_comes_back_exactly():
    masks = chain(19)
    found = survival.from_bytes(survival.to_bytes(survival.gather(masks, names(masks))), "map")
    assert found.cycles == 19
    for cycle, mask in enumerate(masks):
        assert equal(found.masks(cycle), mask)
    assert not equal(masks[17], masks[18])


def test_the_same_chain_gives_the_same_bytes():
    first, again = (survival.to_bytes(survival.gather(m, names(m))) for m in (chain(5), chain(5)))
    assert first == again
    assert survival.is_survival(first)
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    assert not survival.is_survival(buffer.getvalue())


def test_a_weight_that_comes_back_is_refused_and_named():
    masks = chain(4)
    kernel = masks[3]["Dense_1"]["kernel"]
    place = np.argwhere(~masks[2]["Dense_1"]["kernel"])[0]
    kernel[tuple(place)] = True
    with pytest.raises(Refusal, match="003 keeps 1 weights of Dense_1/kernel that 002 had pruned"):
        survival.gather(masks, names(masks))


def test_masks_of_another_network_or_rule_are_refused():
    masks = chain(2)
    masks[1]["cls"]["kernel"] = None
    with pytest.raises(Refusal, match="001 is of another network or rule than 000: cls/kernel"):
        survival.gather(masks, names(masks))


def test_masks_of_other_leaves_are_refused():
    for there in (0, 1):
        masks = chain(2)
        masks[there]["extra"] = {"kernel": np.ones(3, bool)}
        with pytest.raises(Refusal, match="001 is of another network than 000: extra/kernel is in one"):
            survival.gather(masks, names(masks))


def test_what_is_not_there_or_was_changed_is_refused():
    masks = chain(3)
    whole = survival.gather(masks, names(masks))
    with pytest.raises(Refusal, match="cycle 3 of a chain of 3: 0 to 2"):
        whole.masks(3)
    with pytest.raises(Refusal, match="1 to 255 cycles, got 256"):
        survival.gather([masks[0]] * 256, [""] * 256)
    content = survival.to_bytes(whole)
    with pytest.raises(Refusal, match="map cannot be read as the map of a chain"):
        survival.from_bytes(content[: len(content) // 2], "map")
    lived = dict(whole.lived)
    lived["cls/kernel"] = lived["cls/kernel"].copy()
    lived["cls/kernel"][0, 0] ^= 1
    changed = whole._replace(lived=lived)
    with pytest.raises(Refusal, match="not the one that was written"):
        [changed.masks(cycle) for cycle in range(3)]


def test_nineteen_cycles_of_resnet_50_take_less_than_twelve_and_a_half_megabytes():
    """Of independent layers: 20% of the survivors of each cycle die, anywhere."""
    draw = np.random.default_rng(0)
    size = 23_454_912 // 8  # an eighth of its convolutions
    when = np.floor(np.log(draw.random(size)) / np.log(0.8)).astype(np.int64) + 1
    lived = np.minimum(when, 19).astype(np.uint8)
    content = survival.to_bytes(survival.Survival({"a": lived}, {"mask_digests": [""] * 19}))
    assert 8 * len(content) < 12.5e6
