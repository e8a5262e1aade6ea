"""A feed is a pure function of (key, step); evaluation counts each example once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giung2_ext.core.errors import Refusal
from giung2_ext.data import resident
from giung2_ext.data.source import Split

SIZE = 23


def make_split(size=SIZE):
    """The label is the example's number; so is its every pixel, plus one."""
    images = np.broadcast_to(np.arange(1, size + 1, dtype=np.uint8)[:, None, None, None], (size, 8, 8, 1))
    return Split(np.ascontiguousarray(images), np.arange(size, dtype=np.int32))


def make_batch(feed):
    """(key, step) -> the batch, as the compiled program forms it."""

    @jax.jit
    def batch(key, step):
        return feed.batch(
            jax.tree.map(jnp.asarray, feed.arrays), feed.order(key, step // feed.steps_per_epoch), key, step
        )

    return lambda key, step: jax.tree.map(np.asarray, batch(key, jnp.int32(step)))


def equal(a, b):
    return all(np.array_equal(a[name], b[name]) for name in ("images", "labels", "valid"))


@pytest.mark.parametrize(("batch_size", "per_epoch"), [(1, 23), (5, 4), (23, 1)])
def test_every_epoch_shows_each_example_at_most_once_and_drops_only_the_remainder(
    batch_size, per_epoch, key
):
    feed = resident.make_feed(make_split(), batch_size)
    assert feed.steps_per_epoch == per_epoch
    batch, epochs = make_batch(feed), []
    for epoch in range(3):
        batches = [batch(key, epoch * per_epoch + i) for i in range(per_epoch)]
        labels = np.concatenate([b["labels"] for b in batches])
        images = np.concatenate([b["images"] for b in batches])
        assert len(set(labels.tolist())) == len(labels) == per_epoch * batch_size
        assert np.array_equal(images, make_split().images[labels])  # image and label stay together
        assert all(b["valid"].all() and b["valid"].shape == (batch_size,) for b in batches)
        epochs.append(labels.tolist())
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_the_examples_left_out_differ_from_epoch_to_epoch(key):
    feed = resident.make_feed(make_split(), 5)
    left_out = [frozenset(np.asarray(feed.order(key, e))[20:].tolist()) for e in range(12)]
    assert len(set(left_out)) > 6
    assert all(sorted(np.asarray(feed.order(key, e)).tolist()) == list(range(SIZE)) for e in range(3))


def test_a_batch_is_the_same_however_its_step_was_reached(key):
    feed = resident.make_feed(make_split(), 5, "crop_flip")
    batch = make_batch(feed)
    forward = [batch(key, step) for step in range(9)]
    assert all(equal(forward[step], batch(key, step)) for step in (8, 5, 2))

    def body(step, _):
        order = feed.order(key, step // feed.steps_per_epoch)
        return step + 1, feed.batch(jax.tree.map(jnp.asarray, feed.arrays), order, key, step)

    _, scanned = jax.jit(lambda: jax.lax.scan(body, jnp.int32(3), length=6))()
    for i in range(6):
        assert equal(forward[3 + i], {name: np.asarray(leaf[i]) for name, leaf in scanned.items()})


def test_other_keys_and_steps_see_other_rows_and_other_pixels():
    one = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)  # for all, so that only augmentation differs
    split = Split(np.repeat(one, SIZE, axis=0), make_split().labels)
    batch = make_batch(resident.make_feed(split, 23, "crop_flip"))
    seen = [batch(jax.random.key(seed), step) for seed in (0, 1) for step in (0, 1)]
    assert len({b["labels"].tobytes() for b in seen}) == 4
    assert len({b["images"].tobytes() for b in seen}) == 4


def test_order_and_pixels_never_share_random_bits(key):
    numbers = jnp.arange(50)
    both = [
        jax.vmap(resident._draw, (None, None, 0))(key, use, numbers)
        for use in (resident.ORDER, resident.PIXELS)
    ]
    bits = np.concatenate([jax.random.key_data(keys) for keys in both])
    assert len(np.unique(bits, axis=0)) == 100


def test_pixels_reach_the_step_in_their_stored_type(key):
    split = make_split()
    for images in (split.images, split.images.astype(np.float32) / 255):
        feed = resident.make_feed(Split(images, split.labels), 4, "crop")
        assert make_batch(feed)(key, 0)["images"].dtype == images.dtype == feed.arrays["images"].dtype


@pytest.mark.parametrize("batch_size", [-1, 0, 24])
def test_a_batch_that_the_split_cannot_fill_is_refused(batch_size):
    with pytest.raises(Refusal, match=rf"batch_size must be in 1\.\.23 .*got {batch_size}"):
        resident.make_feed(make_split(), batch_size)


@pytest.mark.parametrize(
    ("batch_size", "shape"), [(1, (23, 1)), (5, (5, 5)), (23, (1, 23)), (100, (1, 23))]
)
def test_evaluation_counts_each_example_once_and_marks_the_padding(batch_size, shape):
    batches = {
        name: np.asarray(leaf)
        for name, leaf in resident.evaluation_batches(make_split(), batch_size).items()
    }
    assert {name: leaf.shape for name, leaf in batches.items()} == {
        "images": (*shape, 8, 8, 1),
        "labels": shape,
        "valid": shape,
    }
    valid = batches["valid"]
    assert valid.sum() == SIZE
    assert np.array_equal(batches["labels"][valid], make_split().labels)
    assert np.array_equal(batches["images"][valid], make_split().images)
    assert valid[:-1].all()  # padding is in the last batch alone
