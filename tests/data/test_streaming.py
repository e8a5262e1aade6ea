"""Laws of the streaming feed: what a batch is depends on seed and step alone."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from fakes import REPOSITORY, script_module

from giung2_ext.core.errors import Refusal
from giung2_ext.data import streaming
from giung2_ext.data.formats import folders
from giung2_ext.data.reader import Reader
from giung2_ext.data.source import Example, Part

small_imagenet = script_module("make_imagenet")

BATCH = 12
RECIPE = streaming.Recipe(size=16, pipeline="tf", augment="resized_crop")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    small_imagenet.write(root, small_imagenet.LABELS[:10], 4)
    return folders.read(root)


class Listed:
    """Records from a list of encoded images, that remembers what was read."""

    def __init__(self, images):
        self.images, self.read = images, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.read.append(index)
        return Example(self.images[index], index, f"image {index}")


def batches(records, count, start=0, rows=None, seed=3, recipe=RECIPE, **options):
    training = streaming.Training(records, recipe, BATCH, rows or range(BATCH), seed)
    stream = streaming.host_batches(training, start, **{"threads": 3, **options})
    return [next(stream) for _ in range(count)]


def same(one, other):
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("hosts", [2, 3, 4])
def test_rows_and_pixels_are_the_same_for_every_number_of_hosts(records, hosts):
    whole = batches(records, 5)
    share = BATCH // hosts
    parts = [batches(records, 5, rows=range(h * share, (h + 1) * share)) for h in range(hosts)]
    joined = [
        {name: np.concatenate([part[n][name] for part in parts]) for name in whole[n]} for n in range(5)
    ]
    assert same(joined, whole)


def test_rows_that_do_not_follow_each_other_are_those_rows(records):
    whole, rows = batches(records, 2), [0, 1, 6, 7]
    assert same(batches(records, 2, rows=rows), [{k: v[rows] for k, v in batch.items()} for batch in whole])


@pytest.mark.parametrize("options", [dict(threads=1), dict(threads=9), dict(processes=2)], ids=str)
def test_threads_and_worker_processes_change_nothing(records, options):
    assert same(batches(records, 4, **options), batches(records, 4))


def test_a_stream_that_starts_at_a_step_is_the_rest_of_the_whole(records):
    assert same(batches(records, 3, start=4), batches(records, 7)[4:])


def test_a_far_step_reads_no_record_before_it():
    listed = Listed([small_imagenet.picture(0, i) for i in range(30)])
    batches(listed, 1, start=10**9)
    assert 0 < len(listed.read) <= 4 * BATCH


def test_every_epoch_has_each_record_once_in_an_order_of_its_own():
    size = 30  # epochs end inside of batches of 12
    listed = Listed([small_imagenet.picture(0, i, side=(8, 8)) for i in range(size)])
    labels = np.concatenate([batch["labels"] for batch in batches(listed, 10)])
    epochs = labels.reshape(4, size)
    assert (np.sort(epochs, axis=1) == np.arange(size)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_seeds_that_follow_each_other_share_no_epoch():
    listed = Listed([small_imagenet.picture(0, i, side=(8, 8)) for i in range(24)])
    orders = [
        np.concatenate([batch["labels"] for batch in batches(listed, 6, seed=seed)]).reshape(3, 24)
        for seed in range(4)
    ]
    assert len({tuple(epoch) for order in orders for epoch in order}) == 12


def test_places_next_to_each_other_share_no_random_bits():
    streams = []

    class Spy(streaming.Training):
        def _pixels(self, example, draw):
            streams.append(draw.bit_generator.random_raw(64))
            return np.zeros((16, 16, 3), np.uint8)

    rows = Spy(Listed([b""] * BATCH), RECIPE, BATCH, range(BATCH), 3)
    for place in range(40):
        rows[place]
    words = np.concatenate(streams)
    assert len(set(words.tolist())) == words.size == 40 * 64


def test_pixels_differ_between_epochs_and_seeds():
    listed = Listed([small_imagenet.picture(5, 1)] * BATCH)
    first, second = batches(listed, 2)
    [other] = batches(listed, 1, seed=4)
    assert not np.array_equal(first["images"], second["images"])
    assert not np.array_equal(first["images"], other["images"])
    assert first["images"].dtype == np.uint8
    assert first["images"].shape == (BATCH, 16, 16, 3)


def test_a_damaged_image_is_named_and_replaced_by_the_next_record(records):
    images = [small_imagenet.picture(0, i, side=(16, 16)) for i in range(BATCH)]
    damaged = list(images)
    damaged[5] = damaged[5][:90]
    named = []
    [found] = batches(Listed(damaged), 1, report=named.extend)
    [whole] = batches(Listed(images), 1)
    at = int(np.flatnonzero(whole["labels"] == 5)[0])
    assert named == ["image 5"]
    assert found["labels"][at] == 6
    others = np.arange(BATCH) != at
    assert np.array_equal(found["images"][others], whole["images"][others])
    assert "damaged" not in found


def group(tmp_path, signals):
    """A process group that streams with two workers, signalled as a terminal signals it; what it leaves."""
    code = f"""
import signal, sys, time
sys.path.insert(0, {str(REPOSITORY / "tests")!r})
from fakes import script_module
from giung2_ext.data import streaming
from giung2_ext.data.formats import folders

if __name__ == "__main__":
    records = folders.read({str(tmp_path / "images")!r})
    rows = streaming.Training(records, streaming.Recipe(16, "tf"), 8, range(8), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    batches = streaming.host_batches(rows, threads=2, processes=2)
    next(batches)
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("goes on", next(batches)["valid"].sum(), flush=True)
"""
    small_imagenet.write(tmp_path / "images", small_imagenet.LABELS[:4], 4)
    script = tmp_path / "stream.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    send, to_group = signals
    (os.killpg if to_group else os.kill)(process.pid, send)
    out, err = process.communicate(timeout=120)  # which waits for whoever holds its pipes
    assert process.returncode in (0, -signal.SIGKILL), err
    return out, process


def test_a_terminals_interrupt_leaves_the_workers_to_go_on(tmp_path):
    out, process = group(tmp_path, (signal.SIGINT, True))
    assert out == "goes on 8\n"
    assert process.returncode == 0


def test_workers_end_with_the_process_that_they_work_for(tmp_path):
    _, process = group(tmp_path, (signal.SIGKILL, False))  # `communicate` would wait for them
    assert process.returncode == -signal.SIGKILL


def test_nothing_but_damaged_images_is_refused():
    with pytest.raises(Refusal, match="cannot be decoded"):
        batches(Listed([b"no image"] * BATCH), 1)


@pytest.mark.parametrize("size", [1, 11, 12, 13, 40])
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_evaluation_has_every_example_once_whatever_the_hosts(size, hosts):
    images = [small_imagenet.picture(0, i, side=(20, 20)) for i in range(size)]
    share, seen, ids = BATCH // hosts, [], []
    for host in range(hosts):
        rows = range(host * share, (host + 1) * share)
        part = streaming.Evaluation(Listed(images), streaming.Recipe(16, "tf"), BATCH, rows)
        found = list(streaming.host_batches(part, threads=2))
        assert len(found) == -(-size // BATCH)
        assert all(batch["images"].shape == (share, 16, 16, 3) for batch in found)
        seen += [label for batch in found for label in batch["labels"][batch["valid"]]]
        ids += [i for batch in found for i in batch["ids"][batch["valid"]].view("<u8")[:, 0]]
    assert sorted(seen) == list(range(size))
    assert len(set(ids)) == size


def test_in_evaluation_a_damaged_image_is_black_and_named():
    images = [small_imagenet.picture(0, i) for i in range(3)]
    images[1] = b"no image"
    part = streaming.Evaluation(Listed(images), streaming.Recipe(16, "timm"), 4, range(4))
    named = []
    [batch] = streaming.host_batches(part, threads=1, report=named.extend)
    assert named == ["image 1"]
    assert batch["valid"].tolist() == [True, True, True, False]
    assert batch["labels"].tolist()[:3] == [0, 1, 2]
    assert not batch["images"][1].any()
    assert batch["images"][0].any()


def test_an_examples_identity_is_that_of_its_label_and_file_whatever_the_folder():
    ids = [
        streaming.identity(Example(b"", label, name)).tolist()
        for label, name in ((1, "a/x.JPEG"), (1, "x.JPEG"), (2, "x.JPEG"), (1, "y\udcff.JPEG"))
    ]  # the last is no UTF-8 on disk
    assert ids[0] == ids[1]
    assert len({tuple(i) for i in ids}) == 3


def test_a_part_of_records_is_that_part_and_no_more():
    part = Part(Listed(list(range(10))), 6, 10)
    assert len(part) == 4
    assert [part[i].label for i in range(4)] == [6, 7, 8, 9]
    assert part[-1].label == 9
    with pytest.raises(IndexError):
        part[4]


def reader(log, ahead=2, fail_at=None):
    def open_at(step):
        log.append(f"open {step}")
        while True:
            if step == fail_at:
                raise OSError("the disk is gone")
            yield {"x": np.full(2, step)}
            step += 1

    return Reader(open_at, lambda batch: batch["x"].sum(), ahead)


def test_a_reader_gives_the_batch_of_the_step_and_starts_anew_where_it_must():
    log = []
    read = reader(log)
    assert [read.batch(step) for step in (0, 1, 2, 7, 8, 3)] == [0, 2, 4, 14, 16, 6]
    assert log == ["open 0", "open 7", "open 3"]
    read.close()


def test_what_goes_wrong_while_reading_ahead_is_raised_where_the_batch_is_asked_for():
    read = reader([], fail_at=2)
    assert [read.batch(0), read.batch(1)] == [0, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        read.batch(2)


def test_a_closed_reader_leaves_no_thread_behind():
    read = reader([])
    read.batch(0)
    [feeding] = [t for t in threading.enumerate() if t.name == "feed" and t.is_alive()][-1:]
    read.close()
    feeding.join(timeout=10)
    assert not feeding.is_alive()


def test_unknown_augmentations_and_pipelines_are_refused_with_the_known():
    for recipe in (RECIPE.__class__(16, "tv"), RECIPE.__class__(16, "tf", augment="crop")):
        with pytest.raises(Refusal, match="known:"):
            streaming.check_recipe(recipe)
