"""RandAugment's operations, their strength and signs; all of it follows from the generator."""

import collections

import numpy as np
import pytest
from PIL import Image

from giung2_ext.core.errors import Refusal
from giung2_ext.data.randaugment import OPERATIONS, randaugment


def picture(height=40, width=60):
    return np.random.default_rng(0).integers(20, 200, (height, width, 3), dtype=np.uint8)


def apply(name, image, magnitude, sign=1):
    return np.array(OPERATIONS[name](Image.fromarray(image), magnitude / 10, sign))


def test_it_is_a_function_of_the_generator_and_leaves_its_input_alone():
    image = picture()
    kept = image.copy()
    once, again = (randaugment(image, np.random.default_rng(3), 2, 9.0) for _ in range(2))
    assert np.array_equal(once, again)
    assert np.array_equal(image, kept)
    assert (once.shape, once.dtype) == (image.shape, np.uint8)
    others = [randaugment(image, np.random.default_rng(seed), 2, 9.0) for seed in range(20)]
    assert len({other.tobytes() for other in others}) > 10


def test_the_result_can_be_written_to():
    assert randaugment(picture(), np.random.default_rng(0), 0, 9.0).flags.writeable


def test_there_are_the_14_operations_of_the_paper_and_each_is_drawn_as_often(monkeypatch):
    assert len(OPERATIONS) == 14
    drawn = collections.Counter()
    for name in OPERATIONS:

        def count(image, strength, sign, name=name):
            drawn[name, sign] += 1
            return image

        monkeypatch.setitem(OPERATIONS, name, count)
    draw = np.random.default_rng(0)
    randaugment(picture(), draw, 14000, 5.0)
    assert len(drawn) == 28
    assert all(420 < count < 580 for count in drawn.values())  # 500 ± 3.6 standard deviations


def test_no_layers_and_no_strength_change_nothing():
    image = picture()
    assert np.array_equal(randaugment(image, np.random.default_rng(0), 0, 9.0), image)
    for name in set(OPERATIONS) - {"autocontrast", "equalize"}:
        for sign in (1, -1):
            assert np.array_equal(apply(name, image, 0, sign), image), name


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"identity", "autocontrast", "equalize"}))
def test_more_magnitude_changes_more(name):
    image = (np.indices((64, 64)).sum(axis=0)[..., None] * np.array([0.9, 1.5, 2.0])).astype(np.uint8)
    if name == "sharpness":
        image = picture(64, 64)
    weak, middle, strong = (
        np.abs(apply(name, image, magnitude).astype(int) - image).mean() for magnitude in (2.5, 5, 10)
    )
    assert 0 < weak < middle < strong


def test_translations_go_45_percent_of_the_side_at_most_and_uncover_grey():
    image = picture(40, 60)
    left, up = apply("translate_x", image, 10), apply("translate_y", image, 10)
    assert np.array_equal(left[:, : 60 - 27], image[:, 27:])
    assert np.all(left[:, 60 - 27 :] == 128)
    assert np.array_equal(up[: 40 - 18], image[18:])
    assert np.all(up[40 - 18 :] == 128)
    right = apply("translate_x", image, 10, sign=-1)
    assert np.array_equal(right[:, 27:], image[:, : 60 - 27])


def test_shears_move_by_three_tenths_of_the_distance_and_rotation_by_30_degrees():
    image = picture(50, 50)
    sheared = apply("shear_x", image, 10)
    assert np.array_equal(sheared[30, :30], image[30, 9:39])  # 0.3 * 30.5, and half a pixel
    assert np.array_equal(apply("shear_y", image, 10)[:30, 30], image[9:39, 30])
    dot = np.zeros((101, 101, 3), np.uint8)
    dot[49:52, 89:92] = 255  # 40 to the right of the centre
    row, column = (axis.mean() for axis in np.nonzero(apply("rotate", dot, 10)[..., 0] == 255))
    assert (row, column) == pytest.approx((30, 84.6), abs=0.7)  # 40 sin 30° up, 40 cos 30° to the right
    assert tuple(apply("rotate", dot, 10)[0, 0]) == (128, 128, 128)
    row = np.nonzero(apply("rotate", dot, 10, sign=-1)[..., 0] == 255)[0].mean()
    assert row == pytest.approx(70, abs=0.7)


def test_enhancements_reach_a_tenth_and_19_tenths():
    image = picture()
    assert np.allclose(apply("brightness", image, 10, -1), image * 0.1, atol=1)
    assert np.allclose(apply("brightness", image, 10, 1), np.minimum(image * 1.9, 255), atol=1)
    grey = apply("color", image, 10, -1).astype(int)
    assert np.ptp(grey, axis=2).max() <= 0.1 * np.ptp(image, axis=2).max() + 1


def test_posterize_ends_at_four_bits_and_solarize_at_the_negative():
    image = picture()
    assert np.array_equal(apply("posterize", image, 10), image & 0xF0)
    assert np.array_equal(apply("posterize", image, 5), image & 0xFC)
    assert np.array_equal(apply("solarize", image, 10), 255 - image)
    assert np.array_equal(apply("solarize", image, 5), np.where(image < 128, image, 255 - image))


def test_autocontrast_and_equalize_spread_the_values():
    image = picture() // 4 + 60
    assert tuple(np.unique(apply("autocontrast", image, 9))[[0, -1]]) == (0, 255)
    assert apply("equalize", image, 9).std() > 2 * image.std()


@pytest.mark.parametrize(("layers", "magnitude"), [(-1, 5.0), (2, -0.1), (2, 10.5), (2, float("nan"))])
def test_wrong_numbers_are_refused(layers, magnitude):
    with pytest.raises(Refusal, match=f"got {layers} layers and magnitude {magnitude}"):
        randaugment(picture(), np.random.default_rng(0), layers, magnitude)
