"""Names always resolve, and a write is whole or not there."""

import os
import signal
import subprocess
import sys

import pytest
from etils import epath
from fakes import REPOSITORY

from giung2_ext.core.errors import Refusal
from giung2_ext.storage import paths

IMPORTS = """
import resource, sys
from etils import epath
from giung2_ext.storage import paths
folder = epath.Path(sys.argv[1])
"""


def start_python(code, folder):
    command = [sys.executable, "-c", IMPORTS + code, os.fspath(folder)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def folder(tmp_path):
    """A run's folder with two tickets."""
    for name in ("one", "two"):
        (tmp_path / "run/tickets" / name).mkdir(parents=True)
        (tmp_path / "run/tickets" / name / "content").write_text(name)
    return epath.Path(tmp_path / "run")


@pytest.mark.parametrize(
    "write",
    [
        "paths.write_bytes(folder / 'file', bytes(9000))",
        "paths.write_directory(folder / 'new', {'small': bytes(10), 'big': bytes(9000)})",
    ],
)
def test_a_write_that_fails_midway_leaves_no_trace(write, tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    code = f"""
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    {write}
except OSError as error:
    print(error.errno)
"""
    with start_python(code, tmp_path) as process:
        assert process.stdout.read() == "27\n"  # EFBIG: the limit was hit
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_readers_see_one_version_whole_and_a_killed_writer_leaves_one(tmp_path):
    code = """
for number in range(10**9):
    paths.write_bytes(folder / "file", b"ab"[number % 2 :][:1] * 300_000)
    if number == 0:
        print("ready", flush=True)
"""
    with start_python(code, tmp_path) as writer:
        writer.stdout.readline()
        seen = [(tmp_path / "file").read_bytes() for _ in range(150)]
        writer.kill()
    assert writer.returncode == -signal.SIGKILL
    seen.append((tmp_path / "file").read_bytes())
    assert {(len(content), len(set(content))) for content in seen} == {(300_000, 1)}
    paths.sweep_temporaries(epath.Path(tmp_path))
    assert os.listdir(tmp_path) == ["file"]


def test_a_directory_is_seen_with_all_its_files_or_not_at_all(tmp_path):
    code = """
files = {f"{i:02d}": bytes(1000) for i in range(30)}
for number in range(10**9):
    paths.write_directory(folder / f"{number:06d}", files)
    if number == 0:
        print("ready", flush=True)
"""
    with start_python(code, tmp_path) as writer:
        writer.stdout.readline()
        seen = {len(os.listdir(max(tmp_path.glob("[0-9]*")))) for _ in range(100)}
        writer.kill()
    assert seen == {30}
    assert {len(os.listdir(path)) for path in tmp_path.glob("[0-9]*")} == {30}


def test_a_directory_replaces_what_was_there_with_exactly_its_files(tmp_path):
    target = epath.Path(tmp_path) / "made"
    paths.write_directory(target, {"a": b"1", "b": b"2"})
    paths.write_directory(target, {"b": b"3"})
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {"b": b"3"}
    assert os.listdir(tmp_path) == ["made"]


def test_a_name_always_resolves_while_it_is_moved(folder):
    paths.point(folder / "last.ckpt", folder / "tickets/one")
    code = """
print("ready", flush=True)
look = lambda: (paths.resolve(folder / "last.ckpt") / "content").read_text()
seen = set()
while not (folder / "stop").exists():
    seen.add(look())
print(look(), *seen)
"""
    with start_python(code, folder) as reader:
        reader.stdout.readline()
        for i in range(300):
            paths.point(folder / "last.ckpt", folder / "tickets" / ("two", "one")[i % 2])
        paths.point(folder / "last.ckpt", folder / "tickets/two")
        (folder / "stop").touch()
        found = reader.stdout.read().split()
    assert reader.returncode == 0
    assert found[0] == "two"
    assert set(found) <= {"one", "two"}
    assert sorted(p.name for p in folder.iterdir()) == ["last.ckpt", "stop", "tickets"]


def test_names_hold_when_the_whole_folder_moves(folder):
    paths.point(folder / "last.ckpt", folder / "tickets/one")
    (folder / "iter_000000.ckpt").write_text(paths.POINTER + "tickets/two")  # the object-store form
    moved = folder.parent / "elsewhere"
    os.rename(folder, moved)
    assert paths.resolve(moved / "last.ckpt") == moved / "tickets/one"
    assert paths.resolve(moved / "iter_000000.ckpt") == moved / "tickets/two"
    assert paths.resolve(moved / "tickets/one") == moved / "tickets/one"


def test_what_is_no_checkpoint_is_refused_with_what_is_there(folder):
    with pytest.raises(Refusal, match=r"no checkpoint at .*best_acc\.ckpt; .*run has no \.ckpt"):
        paths.resolve(folder / "best_acc.ckpt")
    paths.point(folder / "last.ckpt", folder / "tickets/one")
    paths.point(folder / "gone.ckpt", folder / "tickets/gone")
    for missing in ("best_acc.ckpt", "gone.ckpt"):
        with pytest.raises(Refusal, match=rf"no checkpoint at .*{missing}; .*run has: .*last\.ckpt"):
            paths.resolve(folder / missing)
    (folder / "weights.ckpt").write_bytes(b"\x80torch")
    with pytest.raises(Refusal, match="not a ticket of this suite"):
        paths.resolve(folder / "weights.ckpt")


def test_a_name_does_not_take_the_place_of_a_directory(folder):
    (folder / "last.ckpt").mkdir()
    with pytest.raises(OSError, match=r"last\.ckpt"):
        paths.point(folder / "last.ckpt", folder / "tickets/one")
    assert sorted(p.name for p in folder.iterdir()) == ["last.ckpt", "tickets"]


def test_what_a_killed_writer_left_is_swept_and_nothing_else(folder):
    (folder / ".result.json.0123abcd.tmp").write_text("half")
    (folder / "tickets/.three.0123abcd.tmp").mkdir()
    (folder / "tickets/.three.0123abcd.tmp/arrays.npz").write_text("half")
    os.symlink("tickets/one", folder / ".last.ckpt.0123abcd.tmp")  # killed between link and rename
    (folder / "000").mkdir()
    for kept in (".lock", "notes.tmp", "000/.result.json.0123abcd.tmp"):
        (folder / kept).write_text("kept")
    paths.sweep_temporaries(folder)
    assert sorted(p.name for p in folder.iterdir()) == [".lock", "000", "notes.tmp", "tickets"]
    assert sorted(p.name for p in (folder / "tickets").iterdir()) == ["one", "two"]
    assert (folder / "tickets/one/content").read_text() == "one"
    assert (folder / "000/.result.json.0123abcd.tmp").exists()  # a child is another run


def test_names_sort_as_their_numbers_do():
    for name, most in ((paths.iteration, 999_999), (paths.cycle, 999)):
        numbers = [0, 7, 10, most // 9, most]
        assert sorted(map(name, numbers)) == [name(n) for n in numbers]
    assert paths.iteration(16_000) == "iter_016000.ckpt"
