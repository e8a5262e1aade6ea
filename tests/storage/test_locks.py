"""One process a directory; real processes hold the locks."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest
from etils import epath
from fakes import REPOSITORY

from giung2_ext.core.errors import Refusal
from giung2_ext.storage.locks import holder, locked

HOLD = """
import sys
from etils import epath
from giung2_ext.core.errors import Refusal
from giung2_ext.storage.locks import locked
try:
    with locked([epath.Path(folder) for folder in sys.argv[1:]]):
        print("held", flush=True)
        sys.stdin.read()
except Refusal:
    print("refused", flush=True)
"""


def start_holder(*folders):
    command = [sys.executable, "-c", HOLD, *map(os.fspath, folders)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    return subprocess.Popen(command, cwd=REPOSITORY, text=True, **pipes)


@contextlib.contextmanager
def held_elsewhere(*folders):
    with start_holder(*folders) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def run(tmp_path):
    return epath.Path(tmp_path) / "save/run"


def test_where_no_folder_can_be_is_said():
    with (
        pytest.raises(Refusal, match=r"/proc/run cannot be made \(No such file or directory\)"),
        locked([epath.Path("/proc/run")]),
    ):
        pass


def is_free(folder):
    try:
        with locked([folder]):
            return True
    except Refusal:
        return False


def test_a_second_process_is_refused_with_the_pid_of_the_holder(run):
    with held_elsewhere(run) as process:
        for _ in range(2):  # being refused neither breaks the lock nor hides its holder
            with (
                pytest.raises(Refusal, match=rf"in use by process {process.pid} on .*choose another"),
                locked([run]),
            ):
                pass


def test_a_lock_dies_with_its_holder(run):
    with held_elsewhere(run) as process:
        assert not is_free(run)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert is_free(run)


def test_a_lock_ends_with_its_block_even_by_an_error(run):
    def fail():
        with locked([run]):
            assert not is_free(run)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert is_free(run)
    assert run.is_dir()  # made for the lock


def test_parents_and_children_are_locked_by_themselves(run):
    with held_elsewhere(run):
        assert is_free(run / "000")
        assert is_free(run.parent)
    with held_elsewhere(run / "000"):
        assert is_free(run)


def test_several_locks_are_held_all_or_none(run):
    first, second = run / "000", run / "001"
    with held_elsewhere(second):
        with pytest.raises(Refusal, match="001 is in use"), locked([first, second]):
            pass
        assert is_free(first)
    with locked([first, second]):
        assert not is_free(first)
        assert not is_free(second)


def test_of_many_at_once_exactly_one_gets_in(run):
    processes = [start_holder(run) for _ in range(5)]
    try:
        answers = sorted(process.stdout.readline() for process in processes)
    finally:
        for process in processes:
            process.communicate()
    assert answers == ["held\n"] + 4 * ["refused\n"]


def test_a_child_process_does_not_carry_the_lock_on(run):
    command = [sys.executable, "-c", "import sys; print('ready', flush=True); sys.stdin.read()"]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with contextlib.ExitStack() as after:
        with locked([run]):
            child = after.enter_context(subprocess.Popen(command, close_fds=False, **pipes))
            child.stdout.readline()
        assert child.poll() is None
        assert is_free(run)


def test_who_holds_a_lock_is_told_to_those_who_ask_and_asking_keeps_nobody_out(run):
    assert holder(run) is None
    assert not run.exists()  # asking makes no folder
    with held_elsewhere(run) as process:
        assert holder(run).startswith(f"{process.pid} on ")
        assert holder(run / "000") is None
    process.wait()
    assert holder(run) is None
    with open(run / ".lock") as file:  # one who asks, much slower than they are
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Timer(0.1, lambda: fcntl.flock(file, fcntl.LOCK_UN)).start()
        assert holder(run) is None
        assert is_free(run)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_refused(number, run, monkeypatch):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(Refusal, match="no locks on this file system"), locked([run]):
        pass
