"""One process a directory of an object store; real processes hold the leases."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from fakes import REPOSITORY

from giung2_ext.core.errors import Refusal
from giung2_ext.storage import buckets, leases
from giung2_ext.storage.locks import locked

HOLD = """
import sys
from etils import epath
from giung2_ext.core.errors import Refusal
from giung2_ext.storage.locks import locked
try:
    with locked([epath.Path(folder) for folder in sys.argv[2:]], float(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except Refusal as error:
    print("refused", error, flush=True)
"""


def start_holder(*folders, seconds=1.0):
    command = [sys.executable, "-c", HOLD, str(seconds), *map(os.fspath, folders)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, cwd=REPOSITORY, text=True, **pipes)


@contextlib.contextmanager
def held_elsewhere(*folders, seconds=1.0):
    with start_holder(*folders, seconds=seconds) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def take(folder, seconds=1.0):
    """How long it took to get in, and what was said."""
    said, began = [], time.monotonic()
    with locked([folder], seconds, said.append):
        return time.monotonic() - began, said


def left_behind(folder):
    return json.loads((folder / ".lock").read_text())


def test_a_live_holder_is_named_with_the_end_of_its_lease(bucket):
    with held_elsewhere(bucket / "run") as process:
        for _ in range(2):  # being refused does not break the lease
            with pytest.raises(
                Refusal,
                match=rf"in use by process {process.pid} on .* runs until .* UTC \(.*\) .* is alive",
            ):
                take(bucket / "run")
        assert process.poll() is None


def test_a_lease_that_was_given_back_makes_nobody_wait(bucket):
    with start_holder(bucket / "run", seconds=60) as process:
        process.communicate("")
    seconds, said = take(bucket / "run", 60)
    assert seconds < 5
    assert said == []
    assert not (bucket / "run/.lock").exists()


def test_the_lease_of_a_killed_holder_runs_out(bucket):
    with held_elsewhere(bucket / "run", seconds=2) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    until = left_behind(bucket / "run")["until"]
    _, [said] = take(bucket / "run")
    assert time.time() >= until
    assert f"in use by process {process.pid} on" in said
    assert "Waiting: it may have been killed" in said


def test_a_lease_is_renewed_for_as_long_as_its_holder_lives(bucket):
    with held_elsewhere(bucket / "run"):
        first = left_behind(bucket / "run")
        time.sleep(1.5)
        later = left_behind(bucket / "run")
        assert later["until"] > max(first["until"], time.time())
        assert later["token"] == first["token"]


def test_of_many_at_once_exactly_one_gets_in(bucket):
    processes = [start_holder(bucket / "run", seconds=2) for _ in range(3)]
    try:
        answers = [process.stdout.readline() for process in processes]
        told = [
            p.stdout.readline() if "Waiting" in a else a for a, p in zip(answers, processes, strict=True)
        ]
    finally:
        for process in processes:
            process.communicate()
    assert sorted(answer.split()[0] for answer in told) == ["held"] + 2 * ["refused"]


def test_several_are_held_all_or_none(bucket):
    first, second = bucket / "run/000", bucket / "run/001"
    with held_elsewhere(second):
        with pytest.raises(Refusal, match="001 is in use"), locked([first, second], 1.0):
            pass
        assert take(first)[1] == []


def test_a_holder_that_was_frozen_and_replaced_ends_at_once(bucket):
    with held_elsewhere(bucket / "run") as process:
        os.kill(process.pid, signal.SIGSTOP)
        with locked([bucket / "run"], 5.0, lambda text: None):
            os.kill(process.pid, signal.SIGCONT)
            assert process.wait(10) == 1
        assert (
            f"lost its lock. {bucket / 'run'} is in use by process {os.getpid()}" in process.stderr.read()
        )


def test_a_holder_that_was_frozen_and_not_replaced_goes_on(bucket):
    with held_elsewhere(bucket / "run") as process:
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1.2)
        before = left_behind(bucket / "run")["until"]
        os.kill(process.pid, signal.SIGCONT)
        until = time.monotonic() + 20
        while left_behind(bucket / "run")["until"] == before:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        assert left_behind(bucket / "run")["until"] > before + 1


def test_a_request_that_a_freeze_has_cut_is_made_once_more(bucket, monkeypatch):
    lost = []
    lease = leases.Lease(bucket / "run", 1.0, lost.append)
    lease.take(print)
    lease._done.set()  # no thread beside this test
    lease._thread.join()
    write, frozen = lease._write, []

    def cut(*words):
        if not frozen:
            frozen.append(time.sleep(max(lease.until - time.time(), 0) + 0.1))
            raise TimeoutError
        return write(*words)

    monkeypatch.setattr(lease, "_write", cut)
    lease._renew()
    assert lost == []
    assert left_behind(bucket / "run")["until"] > time.time()


def test_a_holder_that_cannot_renew_ends_once_its_lease_has_run_out(bucket, object_store):
    with held_elsewhere(bucket / "run") as process:
        object_store.tell("fail", 503, ".lock")
        assert process.wait(20) == 1
        object_store.tell("fail")
        assert time.time() > left_behind(bucket / "run")["until"]
        assert "could not be renewed for 1 s" in process.stderr.read()


def test_a_holder_whose_bucket_is_gone_ends_and_its_end_is_no_error(bucket, object_store):
    with held_elsewhere(bucket / "run") as process:
        object_store.tell("fail", 404, ".lock")
        assert process.wait(20) == 1
        object_store.tell("fail")
        assert f"lost its lock. The one of {bucket / 'run'} was removed" in process.stderr.read()
    with held_elsewhere(bucket / "other", seconds=20) as process:
        object_store.tell("fail", 404, ".lock")
        _, said = process.communicate("")
        object_store.tell("fail")
        assert (process.returncode, "Traceback" in said) == (0, False), said


def test_the_last_try_is_before_the_end_of_the_lease(bucket, monkeypatch):
    lease, tried = leases.Lease(bucket / "run", 40.0, print), threading.Event()
    monkeypatch.setattr(lease, "_renew", lambda: (tried.set(), lease._done.set()))
    lease.until = time.time() + 0.2  # a quarter of the lease would be 10 s
    lease._thread.start()
    assert tried.wait(5)


def test_a_write_whose_answer_was_lost_is_known_as_its_own(bucket, object_store):
    lost = []
    object_store.tell("lose", 1, ".lock")
    with leases.held(bucket / "run", 1.0, print, lost.append):
        object_store.tell("lose", 1, ".lock")
        time.sleep(1.2)
        assert left_behind(bucket / "run")["until"] > time.time()
    assert lost == []


def test_a_lease_that_cannot_be_read_is_none(bucket):
    buckets.write(bucket / "run/.lock", b"[]")
    assert take(bucket / "run")[1] == []
