"""Many runs from one command: what they are, what is refused, and that nothing is lost or done twice."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from fakes import REPOSITORY
from sweeps import check_swept, swept

from giung2_ext.core.errors import Failure, Refusal
from giung2_ext.experiments import jobs, sweep, sweeping
from giung2_ext.storage import records

pytest.importorskip("submitit", reason="the extra [sweep] is not installed")
DIGITS = f"{REPOSITORY / 'configs/imp/digits.py'}:smoke"
DYNAMIC = f"{REPOSITORY / 'configs/dynamic/digits.py'}:smoke"
SCRIPTS = REPOSITORY / "scripts"


def planned(*words, save="save"):
    arguments = [f"--save={save}", f"--config={DIGITS}", *words]
    return sweeping.Sweep(arguments, SCRIPTS, str(REPOSITORY / "configs/imagenet2012.py")).entries


def test_every_config_meets_every_value_and_every_seed_in_a_folder_of_its_own():
    over = ("--over=config.optim.lr=0.1,0.2", "--over=batch_size=32,64")
    entries = planned(f"--config={DYNAMIC},method=set", "--seeds=0..1,7", *over, "--optim_ni=3")
    assert len({entry.folder for entry in entries}) == len(entries) == 2 * 2 * 2 * 3
    first, last = entries[0], entries[-1]
    assert first.name == "imp.digits.smoke__optim.lr=0.1__batch_size=32__seed=0"
    assert last.name == "dynamic.digits.smoke,method=set__optim.lr=0.2__batch_size=64__seed=7"
    assert (last.config.optim.lr, last.config.feed.batch_size, last.config.seed) == (0.2, 64, 7)
    assert {entry.config.optim.ni for entry in entries} == {3}
    assert first.command(SCRIPTS) == [
        *(sys.executable, str(SCRIPTS / "train.py"), f"--save=save/{first.name}", f"--config={DIGITS}"),
        *("--optim_ni=3", "--config.optim.lr=0.1", "--batch_size=32", "--seed=0"),
    ]


def test_an_argument_of_the_config_file_is_varied_like_a_flag():
    words = ["--save=s", f"--config={DYNAMIC}", "--over=density=0.05,0.1"]
    a, b = sweeping.Sweep(words, SCRIPTS, "").entries
    assert (a.config.masks.density, b.config.masks.density) == (0.05, 0.1)


def test_a_value_with_commas_stands_in_brackets():
    a, b = planned("--over=config.model.hidden=(300,100),(20,10)")
    assert (a.config.model.hidden, b.config.model.hidden) == ((300, 100), (20, 10))
    assert a.name == "imp.digits.smoke__model.hidden=300,100__seed=0"


def test_imp_has_its_own_flags():
    [entry] = planned("--script=imp", "--pruning_ratio=0.5")
    assert entry.config.chain.pruning_ratio == 0.5
    assert entry.command(SCRIPTS)[1].endswith("scripts/imp.py")


def test_a_name_is_short_and_holds_for_every_file_system_and_keeps_apart_what_differs():
    odd = [sweep.name_of("a/b.py", {"data_root": place}, 0) for place in ("/x y/z", "/x-y/z", "/x:y/z")]
    assert len(set(odd)) == 3
    names = [*odd, *(sweep.name_of("a/b.py", {"data_root": end * 300}, 0) for end in "yz")]
    assert len(set(names)) == 5
    assert all(len(name) <= sweep.LONGEST and set("/: ").isdisjoint(name) for name in names)
    for over in ({}, {"data_root": "/x y/z"}, {"data_root": "z" * 300}):  # runs that differ in their seed
        two = [sweep.name_of("a/b.py", over, seed) for seed in (1, 23)]
        heads = {name.partition(records.SEED)[0] for name in two}
        assert len(heads) == 1
        assert [name.partition(records.SEED)[2] for name in two] == ["1", "23"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--over=config.optim.lrr=0.1,0.2",),
            "lrr=0.1__seed=0: --config.optim.lrr: no field .*did you mean",
        ),
        (("--over=config.optim.ni=10,soon",), "ni=soon__seed=0: --config.optim.ni takes a whole number"),
        (
            ("--over=config.optim.momentum=0.9,1.5",),
            "momentum=1.5__seed=0: config.optim.momentum must be in",
        ),
        (("--optim_nii=3",), "unknown flag --optim_nii; did you mean optim_ni"),
        (("--seeds=0,0",), "two runs of this sweep are called imp.digits.smoke__seed=0"),
        (("--over=optim_lr=0.1,0.10",), "lr=0.1__seed=0 and .*lr=0.10__seed=0 compute the same"),
        (("--over=mesh=data:1,data:2",), "compute the same"),
        (("--over=optim_lr=0.1", "--over=optim_lr=0.2"), "gives optim_lr twice"),
        (("--over=optim_lr=0.1", "--optim_lr=0.2"), "--optim_lr is given twice"),
        (("--over=optim_lr=0.1", "--config.optim.lr=0.2"), "both set config.optim.lr"),
        (("--over=seed=1,2",), "say --seeds"),
        (("--seed=1",), "instead of --seed"),
        (("--over=optim_lr",), "--over takes a flag and its values"),
        (("--over=optim_lr=0.1,,0.2",), "--over takes a flag and its values"),
        (("--over=config.model.hidden=(300,100",), "--over takes a flag and its values"),
        (("--over=config.model.hidden=300,100)",), "--over takes a flag and its values"),
        (
            ("--script=imp", "--config.chain.trials=3", "--seeds=0,5,3"),
            "seed=3 and .*seed=5 share trials.*=0,3,6",
        ),
        (("--seeds=4..0",), "--seeds takes whole numbers and ranges"),
        (("--seeds=a",), "--seeds takes whole numbers and ranges"),
        (("--script=evaluate",), "known: imp, train"),
        (("--cluster=pbs",), "known: local, slurm"),
        (("--slurm.partition=x",), "is for --cluster=slurm"),
        (("--jobs=0",), "--jobs must be at least 1"),
        (("--config=nowhere.py",), "no config file nowhere.py"),
        (("--matching_ckpt=nowhere",), "no checkpoint at nowhere"),
        (("--script=imp", "--matching_ckpt=x"), "chains the checkpoints itself"),
        (("--script=imp", "--config.chain.arms=reinitt"), "reinit"),
    ],
)
def test_what_makes_no_sweep_is_refused_before_anything_is_touched(words, said, tmp_path):
    with pytest.raises(Refusal, match=said):
        planned(*words, save=str(tmp_path / "save"))
    assert not (tmp_path / "save").exists()


def test_a_folder_with_work_of_another_recipe_is_refused_and_a_finished_one_is_finished(train, tmp_path):
    sweep_of = [f"--save={tmp_path}", f"--config={DIGITS}", "--optim_ni=2", "--seeds=0..1"]
    one = sweeping.Sweep(sweep_of, SCRIPTS, "")
    train(one.entries[1].folder, f"--config={DIGITS}", "--optim_ni=2", "--seed=1")
    assert list(one.states().values()) == ["", "finished"]
    with pytest.raises(Refusal, match=r"another recipe .*optim\.lr"):
        sweep.is_finished(sweeping.Sweep([*sweep_of, "--optim_lr=0.5"], SCRIPTS, "").entries[1], status=1)
    with pytest.raises(Refusal, match=r"another recipe .*optim\.lr"):
        sweeping.Sweep([*sweep_of, "--optim_lr=0.5"], SCRIPTS, "").states()


def test_a_chain_is_finished_with_its_report(chain, tmp_path):
    words = ["--optim_ni=2", "--config.chain.cycles=0", "--config.chain.trials=1", "--config.chain.arms="]
    one = sweeping.Sweep([f"--save={tmp_path}", f"--config={DIGITS}", "--script=imp", *words], SCRIPTS, "")
    [entry] = one.entries
    assert not sweep.is_finished(entry)
    chain(entry.folder, f"--config={DIGITS}", *words, "--seed=0")
    assert not sweep.is_finished(entry)
    (entry.folder / "report").mkdir()
    (entry.folder / "report/report.md").write_text("")
    assert sweep.is_finished(entry)
    (entry.folder / "000/result.json").unlink()
    assert not sweep.is_finished(entry)


def test_results_of_a_run_that_did_not_end_well_are_not_the_end_of_it(train, tmp_path):
    """It may have been killed while it was judged: the same command finds out what is left to do."""
    sweep_of = [f"--save={tmp_path}", f"--config={DIGITS}", "--optim_ni=2"]
    one = sweeping.Sweep(sweep_of, SCRIPTS, "")
    [entry] = one.entries
    train(entry.folder, f"--config={DIGITS}", "--optim_ni=2", "--seed=0")
    assert one.states()[entry.name] == "finished"
    notes = sweep.Notes(one.save)
    for code, state in (("exit 1", ""), ("kill -9 $$", ""), ("true", "finished")):
        here = jobs.Here(tmp_path / "jobs", 1, 0)
        job = []
        list(
            here.run(
                {entry.name: errand(tmp_path, "log", code)},
                lambda name, number, job=job: job.append(number),
            )
        )
        notes.add(entry.name, job=job[0].job_id, jobs=str(here.folder), status=None)
        notes.write()
        assert one.states()[entry.name] == state


def test_a_folder_that_cannot_be_read_any_more_stops_no_other_run(tmp_path, capsys, monkeypatch):
    """The first run's folder is spoilt while it goes on; the second is run all the same."""
    one = sweeping.Sweep([f"--save={tmp_path / 's'}", f"--config={DIGITS}", "--seeds=0..1"], SCRIPTS, "")
    spoil = f"mkdir -p {one.entries[0].folder}; echo '{{' > {one.entries[0].folder}/config.json"
    codes = {0: spoil, 1: "exit 3"}
    monkeypatch.setattr(sweep.Entry, "command", lambda entry, _: ["bash", "-c", codes[entry.config.seed]])
    with pytest.raises(Failure, match="not all runs"):
        one.run()
    said = capsys.readouterr().out
    assert "seed=0: ended unfinished, and its folder cannot be read" in said
    assert "seed=1: failed with status 3" in said


SAVES = "trap 'echo saved; exit 75' TERM; echo ready; while true; do sleep 0.1; done"


def errand(tmp_path, name, code):
    return jobs.Errand(["bash", "-c", code], str(tmp_path / f"{name}.log"))


def test_runs_of_this_machine_get_devices_of_their_own_and_all_that_fit_run_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    here = jobs.Here(tmp_path / "jobs", 2, 2)
    code = "echo $CUDA_VISIBLE_DEVICES; while [ $(ls *.log | wc -l) -lt 2 ]; do sleep 0.05; done; exit 3"
    monkeypatch.chdir(tmp_path)
    ended = list(here.run({name: errand(tmp_path, name, code) for name in "ab"}, lambda name, job: None))
    assert sorted(ended) == [("a", 3), ("b", 3)]
    assert [sweep.last_line(tmp_path / f"{name}.log") for name in "ab"] == ["4,5", "6,7"]
    with pytest.raises(Refusal, match="each need 6 devices, and CUDA_VISIBLE_DEVICES=4,5,6,7 names 4"):
        jobs.Here(tmp_path / "jobs", 3, 2)
    assert jobs.Here(tmp_path / "jobs", 1, 0)._devices_of(0) == "4,5,6,7"  # as they are
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if not list(pathlib.Path("/dev").glob("nvidia[0-9]*")):
        with pytest.raises(Refusal, match="--gpus=1: this machine has no NVIDIA GPU"):
            jobs.Here(tmp_path / "jobs", 1, 1)


def test_what_runs_when_a_sweep_is_left_is_told_to_save(tmp_path):
    here, log = jobs.Here(tmp_path / "jobs", 1, 0), tmp_path / "a.log"
    going = here.run({"a": errand(tmp_path, "a", SAVES), "b": errand(tmp_path, "b", "exit 0")}, print)

    def once_it_is_ready():
        while not log.exists() or "\nready" not in log.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGALRM)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        threading.Thread(target=once_it_is_ready).start()
        with pytest.raises(KeyboardInterrupt):
            list(going)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not (tmp_path / "b.log").exists()
    assert sweep.last_line(log) == "saved"


def test_a_command_is_told_to_stop_even_while_it_is_being_started(tmp_path, monkeypatch):
    started = subprocess.Popen

    def told_meanwhile(*words, **options):
        process = started(*words, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(subprocess, "Popen", told_meanwhile)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert errand(tmp_path, "a", "exec sleep 5")() == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)


CHECKPOINTED = """
import os, signal, sys, threading, time
from giung2_ext.experiments.jobs import Errand
one = Errand(["bash", "-c", sys.argv[1]], sys.argv[2])
def on_time(number, frame):
    again = one.checkpoint()
    print(again.function.words == one.words, one._process.poll(), flush=True)
    os._exit(0)
signal.signal(signal.SIGUSR2, on_time)
def later():
    while one._process is None or "\\nready" not in open(sys.argv[2]).read():
        time.sleep(0.05)
    time.sleep(0.5)  # until it waits
    os.kill(one._process.pid, signal.SIGUSR2)  # SLURM signals every process of a job
    os.kill(os.getpid(), signal.SIGUSR2)
open(sys.argv[2], "w").close()
threading.Thread(target=later).start()
one()
"""


def test_a_command_whose_time_is_up_saves_before_it_is_queued_again(tmp_path):
    command = [sys.executable, "-c", CHECKPOINTED, SAVES, str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert done.stdout == "True 75\n", done.stderr
    assert sweep.last_line(tmp_path / "log") == "saved"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("90", 90), ("90:00", 90), ("1:30:00", 90), ("2-12", 3600), ("1-00:30", 1470), ("1-0:0:59", 1440)],
)
def test_times_of_slurm_are_read_in_minutes(text, wanted):
    assert jobs.minutes(text) == wanted


@pytest.mark.parametrize("text", ["", "0", "soon", "1:2:3:4", "-5", "0:30"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(Refusal, match=r"--slurm\.time"):
        jobs.minutes(text)


def test_eight_runs_of_which_one_is_killed_are_all_finished_by_the_same_command_again(tmp_path):
    check_swept(tmp_path, *swept(tmp_path, 4, "--jobs=2"))


def test_without_submitit_a_sweep_is_refused_before_a_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    one = sweeping.Sweep([f"--save={tmp_path / 's'}", f"--config={DIGITS}"], SCRIPTS, "")
    with pytest.raises(Refusal, match="sweeps need submitit: pip install"):
        one.run()
    assert not (tmp_path / "s").exists()
