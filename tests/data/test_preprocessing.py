"""Augmentation moves windows and mirrors them, example by example, from the key alone."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giung2_ext.core.errors import Refusal
from giung2_ext.data import preprocessing
from giung2_ext.data.preprocessing import augmentation

SHAPE = (16, 8, 2)  # padded by 2 rows and 1 column on each side


def make_image():
    """No two pixels are equal and none is 0, so that a window tells where it was cut."""
    return np.arange(1, 1 + np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)


def windows():
    """{bytes: (row, column, mirrored)} of everything that may come out."""
    padded = np.pad(make_image(), [(2, 2), (1, 1), (0, 0)])
    cuts = {(i, j): padded[i : i + 16, j : j + 8] for i in range(5) for j in range(3)}
    plain = {cut.tobytes(): (*at, False) for at, cut in cuts.items()}
    return plain | {cut[:, ::-1].tobytes(): (*at, True) for at, cut in cuts.items()}


def augment(name, key, images):
    return np.asarray(jax.jit(augmentation(name))(key, jnp.asarray(images)))


@pytest.mark.parametrize(("name", "mirrors"), [("crop", {False}), ("crop_flip", {False, True})])
def test_outputs_are_the_windows_of_the_padded_image_and_all_of_them(name, mirrors, key):
    known = windows()
    out = augment(name, key, np.stack([make_image()] * 900))
    seen = [known[image.tobytes()] for image in out]  # a KeyError is no window
    assert set(seen) == {at for at in known.values() if at[2] in mirrors}  # no shift at all included
    counts, expected = collections.Counter(seen).values(), len(seen) / (15 * len(mirrors))
    assert 0.4 * expected < min(counts) <= max(counts) < 1.8 * expected


@pytest.mark.parametrize("name", ["crop", "crop_flip"])
def test_an_example_draws_from_the_key_and_its_own_place_alone(name, key):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (12, *SHAPE), dtype=np.uint8)
    whole = augment(name, key, images)
    others = draw.integers(0, 256, images.shape, dtype=np.uint8)
    others[4] = images[4]
    assert np.array_equal(augment(name, key, others)[4], whole[4])
    assert np.array_equal(augment(name, key, images[:5]), whole[:5])
    assert whole.dtype == np.uint8


def test_places_and_keys_draw_differently():
    images = np.stack([make_image()] * 40)
    first, second = (augment("crop_flip", jax.random.key(seed), images) for seed in (0, 1))
    assert len({image.tobytes() for image in first}) > 10
    assert sum(np.array_equal(a, b) for a, b in zip(first, second, strict=True)) < 10


def test_an_image_of_one_colour_is_unchanged_but_for_black_borders(key):
    images = np.full((64, *SHAPE), 200, np.uint8)
    out = augment("crop", key, images)
    assert set(np.unique(out).tolist()) == {0, 200}
    assert np.all(out[:, 2:-2, 1:-1] == 200)


def test_no_augmentation_gives_the_images_themselves(key):
    images = jnp.asarray(make_image()[None])
    assert augmentation("none")(key, images) is images


def test_an_unknown_augmentation_is_refused_with_the_nearest():
    with pytest.raises(
        Refusal, match="unknown augmentation 'flip_crop'; known: crop, crop_flip, none; did you"
    ):
        augmentation("flip_crop")


def mixed(key, batch, alpha=0.4):
    return jax.jit(preprocessing.mixup, static_argnums=0)(alpha, key, batch)


def batch_of_pairs(size=64):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (size, 4, 4, 3), dtype=np.uint8)
    return {"images": images, "labels": np.arange(size, dtype=np.int32), "valid": np.ones(size, bool)}


def test_mixup_mixes_pixels_and_labels_of_neighbours_by_one_share(key):
    batch = batch_of_pairs()
    found = mixed(key, batch)
    share = np.asarray(found["share"])
    assert ((share >= 0.5) & (share <= 1)).all()
    assert share.std() > 0.05
    partner = np.arange(64) ^ 1
    assert (found["partners"] == batch["labels"][partner]).all()
    assert (found["labels"] == batch["labels"]).all()
    pixels = batch["images"].astype(np.float64) / 255
    kept = share[:, None, None, None]
    np.testing.assert_allclose(found["images"], kept * pixels + (1 - kept) * pixels[partner], atol=1e-6)


def test_mixup_draws_from_the_folded_beta(key):
    share = np.sort(mixed(key, batch_of_pairs(4096), alpha=0.2)["share"])
    draws = np.random.default_rng(0).beta(0.2, 0.2, 100_000)
    expected = np.quantile(np.maximum(draws, 1 - draws), (np.arange(4096) + 0.5) / 4096)
    assert np.abs(share - expected).max() < 0.04
