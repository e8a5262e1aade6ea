"""Whole writes, names, records, tickets and states where nothing can be renamed or appended to."""

import errno
import importlib.util
import os
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from fakes import REPOSITORY

from giung2_ext.core.errors import Failure, Refusal
from giung2_ext.storage import buckets, paths, records, tickets
from giung2_ext.storage.checkpoints import StateStore

PARAMS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
MASKS = {"w": np.array([[True, False, True], [False, True, True]])}
ROWS = [{"step": step, "loss": 1 / (step + 1)} for step in (0, 10, 20, 30)]


def names_below(folder):
    return sorted(path.name for path in folder.glob("*"))


def start_python(code, *arguments):
    command = [sys.executable, "-W", "ignore", "-c", code, *map(os.fspath, arguments)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def test_a_write_on_a_condition_changes_nothing_where_it_does_not_hold(bucket):
    place = bucket / "run/file"
    content, absent = buckets.read(place)
    assert content is None
    first = buckets.write(place, b"1", only_if=absent)
    assert first is not None
    assert buckets.write(place, b"2", only_if=absent) is None
    second = buckets.write(place, b"2", only_if=first)
    for change in (b"3", None):
        assert buckets.write(place, change, only_if=first) is None
    assert buckets.read(place) == (b"2", second)
    assert buckets.write(place, None, only_if=second) is not None
    assert not place.exists()


def test_what_a_store_refuses_is_an_error_with_its_path(bucket):
    with pytest.raises(OSError, match=r"Permission denied.*gs://forbidden-one/run/file") as refused:
        paths.write_bytes(epath.Path("gs://forbidden-one/run/file"), b"")
    assert refused.value.errno == errno.EACCES
    with pytest.raises(Refusal, match="gs://no-such/run/file: there is no such bucket; make it"):
        paths.write_bytes(epath.Path("gs://no-such/run/file"), b"")


@pytest.mark.parametrize("place", ["s3://bucket/run", "gs://", "hf://run"])
def test_a_place_that_nothing_here_can_write_is_refused(place, bucket):
    with pytest.raises(Refusal, match="expected a directory or gs://BUCKET/FOLDER"):
        buckets.check(place)


def test_names_are_files_that_are_moved_in_one_piece(bucket):
    for name in ("one", "two"):
        paths.write_directory(bucket / "run/tickets" / name, {"content": name.encode()})
        paths.point(bucket / "run/last.ckpt", bucket / "run/tickets" / name)
        assert paths.resolve(bucket / "run/last.ckpt") == bucket / "run/tickets" / name
        assert paths.target(bucket / "run/last.ckpt") == name
    paths.point(bucket / "run/gone.ckpt", bucket / "run/tickets/gone")
    with pytest.raises(Refusal, match=r"gone\.ckpt: it names .*tickets/gone, which is not there"):
        paths.resolve(bucket / "run/gone.ckpt")
    with pytest.raises(Refusal, match=r"run has: gone\.ckpt, last\.ckpt"):
        paths.resolve(bucket / "run/best_acc.ckpt")


def test_a_directory_replaces_what_was_there_with_exactly_its_files(bucket):
    paths.write_directory(bucket / "made", {"a": b"1", "b": b"2"})
    paths.write_directory(bucket / "made", {"b": b"3"})
    assert {p.name: p.read_bytes() for p in (bucket / "made").iterdir()} == {"b": b"3"}
    paths.remove_directory(bucket / "made")
    assert not (bucket / "made").exists()


def test_a_ticket_is_no_ticket_until_its_last_file_is_there(bucket, object_store):
    code = """
import sys
import time
import numpy as np
from etils import epath
from giung2_ext.storage import tickets
params = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
masks = {"w": np.array([[True, False, True], [False, True, True]])}
print("ready", flush=True)
tickets.write_ticket(epath.Path(sys.argv[1]), params, masks, {}, {"seed": 0})
"""
    object_store.tell("slow", 3600, tickets.META)
    with start_python(code, bucket / "run") as writer:
        writer.stdout.readline()
        while not (bucket / "run").exists():
            assert writer.poll() is None
            time.sleep(0.05)
        writer.kill()
    [half] = (bucket / "run/tickets").iterdir()
    assert names_below(half) == [tickets.ARRAYS]
    with pytest.raises(Refusal, match=r"is not a ticket: cannot read its ticket\.json"):
        tickets.read_ticket(half)
    object_store.tell("slow")
    path, _ = tickets.write_ticket(bucket / "run", PARAMS, MASKS, {}, {"seed": 0})
    assert path == half
    assert np.array_equal(tickets.read_ticket(path).params["w"], PARAMS["w"])


def test_tickets_that_lost_their_name_go_and_whole_ones_have_the_digest_of_a_disk(bucket, tmp_path):
    made = [tickets.write_ticket(bucket / "run", PARAMS, MASKS, {}, {"seed": seed})[0] for seed in (0, 1)]
    (bucket / "run/tickets/half/arrays.npz").write_bytes(b"half")
    tickets.name_ticket(bucket / "run", "last.ckpt", made[1])
    tickets.drop_unnamed(bucket / "run")
    assert names_below(bucket / "run/tickets") == [made[1].name]
    local, meta = tickets.write_ticket(epath.Path(tmp_path), PARAMS, MASKS, {}, {"seed": 1})
    found = tickets.read_ticket(bucket / "run/last.ckpt")
    assert found.meta == meta
    for name in (tickets.ARRAYS, tickets.META):
        assert (local / name).read_bytes() == (made[1] / name).read_bytes()


def test_no_run_is_written_into_a_ticket_and_nothing_above_a_bucket_is_asked_for(bucket, object_store):
    path, _ = tickets.write_ticket(bucket / "run", PARAMS, MASKS, {}, {"seed": 0})
    with pytest.raises(Refusal, match="is inside the ticket"):
        tickets.refuse_inside(path / "below")
    object_store.tell("log")
    tickets.refuse_inside(bucket / "run/000")
    assert {line.split("/b/")[1].split("/")[0].split("?")[0] for line in object_store.tell("log")[:-1]} == {
        bucket.name
    }


def test_resumed_metrics_are_those_of_a_run_that_was_not_interrupted(bucket, tmp_path):
    for folder in (bucket / "run", epath.Path(tmp_path)):
        first = records.Lines(folder / records.METRICS, 0)
        for row in ROWS[:3]:
            first.write([row])
        resumed = records.Lines(
            folder / records.METRICS, 10
        )  # it was killed; its newest state is of step 10
        for row in ROWS[2:]:
            resumed.write([row])
        assert records.read_metrics(folder) == ROWS
    assert (bucket / "run/metrics.jsonl").read_bytes() == (tmp_path / "metrics.jsonl").read_bytes()
    records.Lines(bucket / "run" / records.METRICS, 0)
    assert records.read_metrics(bucket / "run") == []  # begun anew


def test_metrics_that_another_process_has_written_are_not_overwritten(bucket):
    mine = records.Lines(bucket / records.METRICS, 0)
    mine.write(ROWS[:1])
    records.Lines(bucket / records.METRICS, 10).write(ROWS[1:2])
    with pytest.raises(Failure, match=r"metrics\.jsonl was written by another process"):
        mine.write(ROWS[2:])
    assert records.read_metrics(bucket) == ROWS[:2]


def test_metrics_whose_answer_was_lost_are_written_once(bucket, object_store):
    lines = records.Lines(bucket / records.METRICS, 0)
    object_store.tell("lose", 1, records.METRICS)
    for row in ROWS:
        lines.write([row])
    assert records.read_metrics(bucket) == ROWS


def state(step):
    return {"w": jnp.full(50, step), "b": None}


def test_the_newest_states_are_retained_and_damaged_ones_set_aside(bucket):
    store = StateStore(bucket / "run/states", 2)
    for step in (5, 10, 100):
        store.save(step, state(step), {"step": step})
    assert store.steps() == [100, 10]
    store.set_aside([100])
    assert store.steps() == [10]
    assert len(names_below(bucket / "run/damaged")) == 1
    store.save(100, state(7), {"again": True})
    assert store.steps() == [100, 10]
    assert store.notes(100) == {"again": True}
    assert set(store.restore(100, state(0))["w"].tolist()) == {7}
    store.clear()
    assert names_below(bucket / "run") == ["damaged"]


def test_a_kill_during_a_save_leaves_the_older_state_and_room_for_the_same_step(bucket, object_store):
    code = """
import sys
import time
import jax.numpy as jnp
from etils import epath
from giung2_ext.storage.checkpoints import StateStore
store = StateStore(epath.Path(sys.argv[1]), 2)
for step in (1, 2, 3):
    store.save(step, {"w": jnp.full(50, step), "b": None}, {"step": step})
    print(step, flush=True)
store.close()
"""
    object_store.tell("slow", 3600, "states/3/state/d/")
    with start_python(code, bucket / "run/states") as saver:
        assert [saver.stdout.readline() for _ in range(3)] == ["1\n", "2\n", "3\n"]
        while not any("states/3/state/d/" in line for line in object_store.tell("log")):
            assert saver.poll() is None
            time.sleep(0.05)
        saver.kill()
    object_store.tell("slow")
    store = StateStore(bucket / "run/states", 2)
    assert store.steps()[0] == 2
    assert set(store.restore(2, state(0))["w"].tolist()) == {2}
    store.save(3, state(30), {"step": 30})
    assert store.steps() == [3, 2]
    assert set(store.restore(3, state(0))["w"].tolist()) == {30}
    assert names_below(bucket / "run/states") == ["2", "3"]


def test_a_listing_that_fails_is_an_error_and_no_empty_folder(bucket, object_store):
    path, _ = tickets.write_ticket(bucket / "run", PARAMS, MASKS, {}, {"seed": 0})
    tickets.name_ticket(bucket / "run", "last.ckpt", path)
    object_store.tell("fail", 403, "prefix=run/")
    for ask in (tickets.drop_unnamed, records.holds_work, StateStore(bucket / "run/states", 1).steps):
        with pytest.raises(OSError, match="Forbidden"):
            ask(bucket / "run") if ask.__name__ != "steps" else ask()
    object_store.tell("fail")
    assert tickets.read_ticket(bucket / "run/last.ckpt").params["w"].tolist() == PARAMS["w"].tolist()


def test_without_its_package_a_bucket_is_refused_with_the_remedy(bucket, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gcsfs" else find(name))
    with pytest.raises(Refusal, match=r"needs gcsfs: pip install -e '\.\[gcs\]'"):
        tickets.read_ticket(bucket / "run/last.ckpt")


def test_a_reader_that_a_store_refuses_ends_with_one_line(object_store):
    code = """
import sys
from etils import epath
from giung2_ext.experiments import command
command.guarded(lambda: list(epath.Path(sys.argv[1]).iterdir()))
"""
    command = [sys.executable, "-c", code, "gs://forbidden-one/data"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: the object store refused (Forbidden: ")
    assert len(ended.stderr.splitlines()) == 1
