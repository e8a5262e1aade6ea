"""The scripts as processes: what a person sees, and what bad input and bad luck do."""

import contextlib
import csv
import errno
import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
from fakes import REPOSITORY

import giung2_ext.data.sources
from giung2_ext.core import discovery
from giung2_ext.core import masks as masking
from giung2_ext.experiments import command
from giung2_ext.storage.tickets import read_ticket

DIGITS = f"--config={REPOSITORY / 'configs/imp/digits.py'}:smoke"
DYNAMIC = f"--config={REPOSITORY / 'configs/dynamic/digits.py'}:smoke"


def one_line(done, status=2):
    assert done.returncode == status, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.stdout
    return lines[0]


def test_the_whole_story_is_told_once_and_quietly(script, tmp_path):
    done = script("imp", DIGITS, "--save=digits", "--seed=0", "--optim_ni=40")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # piped: no bar, no warning, nothing from the libraries
    lines = done.stdout.splitlines()
    assert len(set(filter(None, lines))) == len(list(filter(None, lines)))
    for cycle in ("000", "001", "002"):
        assert sum(line.startswith(f"{cycle} ") for line in lines) == 1
        assert sum(line.startswith(f"|   {cycle} |") for line in lines) == 1
    report = tmp_path / "digits/report"
    assert f"report: {report.relative_to(tmp_path)}/" in done.stdout
    for name in ("report.md", "table.md", "table.csv", "table.tex"):
        assert (report / name).stat().st_size > 100
    assert (report / "report.html").stat().st_size > 500_000
    for figure in ("accuracy_by_density", "layer_densities", "mask_overlap"):
        assert (report / f"figures/{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert (report / f"figures/{figure}.pdf").read_bytes().startswith(b"%PDF")
    again = script("report", "digits")
    assert again.returncode == 0, again.stderr
    table = [line for line in lines if line.startswith("|")]
    assert [line for line in again.stdout.splitlines() if line.startswith("|")] == table
    judged = script("evaluate", "--ckpt=digits/trial_0/002/best_acc.ckpt", "--split=test")
    assert judged.returncode == 0, judged.stderr
    assert "32,128 of 50,200 prunable (0.6400)" in judged.stdout


@pytest.mark.parametrize("out", ["/proc/y", "s3://bucket/x"])
def test_a_place_that_cannot_be_is_one_line(out, script, train, tmp_path):
    train(tmp_path / "run", DIGITS, "--optim_ni=2")
    said = one_line(script("report", "run", f"--out={out}"), 2 if "proc" in out else 1)
    assert "cannot read or write" in said if "proc" in out else "expected a directory or gs://" in said


@pytest.mark.parametrize("name", ["train", "imp"])
def test_without_its_images_a_run_is_refused_before_a_folder_is_made(name, script, tmp_path):
    done = script(name, DIGITS, "--data_name=mnist", f"--data_root={tmp_path}", "--save=run")
    assert "no train-images-idx3-ubyte" in one_line(done)
    assert not (tmp_path / "run").exists()


def test_the_digits_chain_tells_the_story_of_the_tickets(script, tmp_path):
    """The claims of the README, on the real chain: 3 trials, 18 pruned cycles, re-initialised controls."""
    config = f"--config={REPOSITORY / 'configs/imp/digits.py'}"
    done = script("imp", config, "--save=digits", "--seed=0")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "digits/report/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    kept = [int(row["weights left"]) for row in rows]
    assert kept == [50200, *(k * 4 // 5 for k in kept[:-1])]
    dense = float(rows[0]["test %"])
    assert all(float(row["test %"]) > dense - 1 for row in rows if float(row["density"]) >= 0.2)
    assert float(rows[-1]["test %"]) - float(rows[-1]["reinit test %"]) >= 4
    assert float(rows[0]["test % at iteration 0"]) < 25 < float(rows[7]["test % at iteration 0"])
    for trial in range(3):
        masks = [read_ticket(tmp_path / f"digits/trial_{trial}/{n:03d}/last.ckpt").masks for n in range(19)]
        assert all(bool(masking.nested(b, a)) for a, b in itertools.pairwise(masks))


SOURCES = ", ".join(discovery.names(giung2_ext.data.sources))
BAD = {
    ("train",): "--save=DIR is required (if a command spans lines",
    ("train", "--save=x"): "data 'imagenet2012' needs --data_root=DIR, or $TFDS_DATA_DIR",
    ("train", "--save=x", "--data_name=imagenet"): f"unknown data source 'imagenet'; known: {SOURCES}",
    ("train", "--save=x", DIGITS, "--constant_lr", "true"): "write --constant_lr=true",
    ("imp", "--save=x", DIGITS, "--optim_nii=3"): "did you mean optim_ni?",
    ("evaluate",): "--ckpt=PATH of a ticket is required",
    ("evaluate", "--ckpt=nowhere"): "no checkpoint at nowhere",
    ("report", "nowhere"): "there is no folder nowhere",
    ("train", "--save=x", DYNAMIC, "--method=rpg", "--config.method.rank_in=all"): "known: grow, loss",
    ("convert",): "usage: python scripts/convert.py FILE --to=DIR",
    ("convert", "nowhere", "--to=x"): "no checkpoint at nowhere",
    ("report",): "usage: python scripts/report.py DIR",
}


@pytest.mark.parametrize("words", BAD, ids=lambda w: " ".join(w[:1] + w[-1:]))
def test_bad_input_is_one_clear_line(words, script):
    name, *arguments = words
    assert BAD[words] in one_line(script(name, *arguments))


def test_a_directory_in_use_is_refused(script, tmp_path):
    from etils import epath

    from giung2_ext.storage import locks

    with locks.locked([epath.Path(tmp_path / "run")]):
        message = one_line(script("train", DIGITS, "--save=run"))
    assert f"run is in use by process {os.getpid()}" in message


def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(script, tmp_path):
    """A file-size limit of this process stands for the full disk: the same failure of write()."""
    flags = (DIGITS, "--save=run", "--seed=1", "--optim_ni=40", "--config.evaluation.every=10")
    limit = ("bash", "-c", 'ulimit -f 146; exec "$@"', "_")  # KiB, less than a ticket's arrays
    message = one_line(script("train", *flags, under=limit), status=1)
    assert "cannot read or write (File too large)" in message
    assert not list((tmp_path / "run").glob("*.ckpt"))
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert script("train", *flags).returncode == 0
    assert read_ticket(tmp_path / "run/last.ckpt").meta["step"] == 40


@contextlib.contextmanager
def small_disk(place, size):
    """A file system of its own, that can be filled or made read-only; gone when this process is."""
    place.mkdir()
    mounted = 'mount -t tmpfs -o "size=$1" tmpfs "$0" && echo mounted && cat; umount -l "$0"'
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    command = ["setsid", "sh", "-c", mounted, str(place), size]
    with subprocess.Popen(command, **pipes) as holder:
        if holder.stdout.readline() != "mounted\n":
            pytest.skip("needs the right to mount a small file system (2026-11-21: root only)")
        yield place
    assert holder.returncode == 0


@pytest.mark.parametrize("filled_by", ["tickets.periodic=true", "placement.save_every=10"])
def test_a_truly_full_disk_is_told_the_same_way(filled_by, script, tmp_path):
    with small_disk(tmp_path / "small", "900k") as place:
        often = ("--config.tickets.every=10", "--config.evaluation.every=10", f"--config.{filled_by}")
        done = script("train", DIGITS, f"--save={place / 'run'}", "--seed=1", "--optim_ni=100", *often)
        assert "No space left on device" in one_line(done, status=1)
        names = list((place / "run").glob("*.ckpt"))
        assert names
        assert all(read_ticket(name) for name in names)


def test_a_read_only_folder_is_told_and_the_run_goes_on_once_it_can_be_written(script, tmp_path):
    with small_disk(tmp_path / "small", "50m") as place:
        words = (DIGITS, f"--save={place / 'run'}", "--seed=1", "--optim_ni=2000000")
        process = start("train", *words)
        wait_for(process, place / "run/metrics.jsonl")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
        assert process.returncode == 75
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        message = one_line(script("train", *words), status=1)
        assert "cannot read or write (Read-only file system)" in message
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        [state] = (place / "run/states").iterdir()
        process = start("train", *words)
        assert (
            f"continuing from step {int(state.name):,}" in [process.stdout.readline() for _ in range(2)][1]
        )
        process.kill()
        process.communicate()


def start(name, *words, cwd=None):
    command = [sys.executable, str(REPOSITORY / f"scripts/{name}.py"), *words]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=cwd, env=environment, **pipes)


def wait_for(process, path):
    while process.poll() is None and not path.exists():
        time.sleep(0.1)


def steps_in(folder):
    return sorted(int(entry.name) for entry in folder.glob("*") if entry.name.isdigit())


@pytest.mark.parametrize(("number", "status", "said"), [
    (signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "told to stop (SIGTERM)"),
])  # fmt: skip
def test_a_run_that_is_told_to_stop_saves_first_and_goes_on_from_there(number, status, said, tmp_path):
    words = (DIGITS, "--save=run", "--optim_ni=2000000", "--save_every=never")
    process = start("train", *words, cwd=tmp_path)
    wait_for(process, tmp_path / "run/metrics.jsonl")
    time.sleep(2)
    process.send_signal(number)
    began = time.monotonic()
    _, errors = process.communicate(timeout=120)
    assert time.monotonic() - began < 30
    assert process.returncode == status
    [step] = steps_in(tmp_path / "run/states")
    assert errors.strip() == (
        f"error: {said}; saved at step {step:,}; the same command goes on from the newest saved state"
    )
    again = start("train", *words, cwd=tmp_path)
    assert f"continuing from step {step:,}" in [again.stdout.readline() for _ in range(2)][1]
    again.kill()
    again.communicate()


def test_a_signal_before_the_first_step_ends_the_process_at_once(tmp_path):
    process = start("train", DIGITS, "--save=run", "--optim_ni=2000000", cwd=tmp_path)
    wait_for(process, tmp_path / "run/.lock")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75
    assert errors.splitlines()[-1].startswith("error: told to stop (SIGTERM); ")


def test_kills_at_random_moments_lose_nothing(script):
    """The full form is `scripts/torture.py --kills=20` with the digits config."""
    done = script("torture", "--save=t", "--kills=3", f"{DIGITS}", "--save_every=20", "--seed=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills in" in done.stdout
    assert "nothing lost" in done.stdout


@pytest.mark.parametrize(
    "words",
    [["status", "."], ["train", "--help"]],
    ids=["status", "train"],
)
def test_a_reader_who_has_enough_gets_no_traceback(words, tmp_path):
    """As with `| head`: the pipe is closed before there is a line."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(REPOSITORY / f"scripts/{words[0]}.py"), *words[1:]]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_pipe_of_somebody_else_that_breaks_is_not_taken_for_the_readers():
    def work():
        raise BrokenPipeError(errno.EPIPE, "a connection")

    with pytest.raises(BrokenPipeError):
        command.guarded(work)
