"""Many runs from one command: configs × values of flags × seeds, each in a folder of its own name.

Everything is read and checked before anything starts. A folder is named after what makes its run another
one than its neighbours, so the same command finds them again: finished ones are skipped, the others go on.
"""

import hashlib
import itertools
import json
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.experiments import flags, imp, jobs, lottery
from giung2_ext.experiments.bounds import check_config
from giung2_ext.experiments.config import Config
from giung2_ext.experiments.settling import settled
from giung2_ext.experiments.single import Run, check_precision, results_of
from giung2_ext.experiments.start import check_parents, check_start
from giung2_ext.storage import paths, records

TABLES = {"train": flags.FLAGS, "imp": flags.IMP_FLAGS}
NAMED = ("save", "config", "seed")  # what the sweep itself gives to every run
LONGEST, DIGITS = 160, 10  # characters of a name, and of a seed in it at most


class Entry(NamedTuple):
    """One run of a sweep: `scripts/SCRIPT.py` with these flags, in this folder."""

    name: str
    folder: epath.Path
    script: str
    words: tuple[str, ...]  # without --save
    config: Config

    def command(self, scripts: pathlib.Path) -> list[str]:
        script = os.fspath(scripts / f"{self.script}.py")
        return [sys.executable, script, f"--save={os.fspath(self.folder)}", *self.words]


def read_seeds(text: str) -> list[int]:
    """`0..4` is 0, 1, 2, 3, 4; `0,3,10..12` is 0, 3, 10, 11, 12."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        if not first.isdecimal() or (dots and not last.isdecimal()) or (dots and int(last) < int(first)):
            raise Refusal(
                f"--seeds takes whole numbers and ranges such as 0..4 or 0,3,10..12, got {text!r}"
            )
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def read_over(text: str) -> tuple[str, list[str]]:
    """`NAME=V1,V2,…`: a flag and its values; commas within brackets belong to a value."""
    name, equals, values = text.removeprefix("--").partition("=")
    listed = re.findall(r"(?:[^,(\[]|\([^)]*\)|\[[^\]]*\])+", values)
    whole = re.sub(r"\([^()\[]*\)|\[[^\[\]]*\]", "x", values)  # what is in brackets: one value
    if not name or not equals or "" in whole.split(",") or set("()[]") & {*whole}:
        raise Refusal(
            "--over takes a flag and its values, --over=config.optim.lr=0.1,0.2 or --over=density=0.1,0.05 "
            f"(a value with commas in brackets: (300,100)); got {text!r}"
        )
    if name in NAMED:
        instead = {"seed": "--seeds=0..4", "config": "--config=FILE, once for each"}.get(name, "--save=DIR")
        raise Refusal(f"--over={name}: the sweep names every run's {name} itself; say {instead}")
    return name, listed


def name_of(config: str, values: dict[str, str], seed: int) -> str:
    """`imp.digits.smoke__optim.lr=0.1__seed=0`; where a sign cannot stand, a few of its digest's digits."""
    file, _, given = config.partition(":")
    path = pathlib.PurePath(file)
    head = [path.parent.name, path.stem] if path.parent.name not in ("", "configs") else [path.stem]
    parts = [".".join([*head, *([given] if given else [])])]
    parts += [f"{flag.removeprefix('config.')}={value}" for flag, value in values.items()]
    name, last = "__".join(parts), f"{records.SEED}{seed}"
    clean = re.sub(r"[^\w.=,+-]", "-", re.sub(r"[()\[\] ]", "", name))
    room = LONGEST - len(records.SEED) - DIGITS
    if len(clean) > room or re.search(r"[^\w.=,+()\[\] -]", name):
        clean = f"{clean[: room - 7]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return clean + last


def expand(
    save: str,
    script: str,
    configs: Sequence[str],
    seeds: Sequence[int],
    overs: Sequence[str],
    passed: Sequence[str],
    default_config: str,
) -> list[Entry]:
    """Every run, its flags read and checked; `passed` are flags that all of them get."""
    if script not in TABLES:
        raise unknown("value of --script", script, TABLES)
    varied = [read_over(text) for text in overs]
    twice = {name for name, _ in varied if [n for n, _ in varied].count(name) > 1}
    if twice:
        raise Refusal(f"--over gives {', '.join(sorted(twice))} twice: write all values after one of them")
    grid = itertools.product(configs, itertools.product(*(values for _, values in varied)), seeds)
    entries = []
    for config, values, seed in grid:
        chosen = dict(zip((name for name, _ in varied), values, strict=True))
        name = name_of(config, chosen, seed)
        words = [
            f"--config={config}",
            *passed,
            *(f"--{n}={v}" for n, v in chosen.items()),
            f"--seed={seed}",
        ]
        try:
            read = _read(script, words, default_config)
        except Refusal as error:
            raise Refusal(f"{name}: {error}") from error
        entries.append(Entry(name, epath.Path(save) / name, script, tuple(words), read))
    _refuse_twins(entries)
    return entries


def _read(script: str, words: list[str], default_config: str) -> Config:
    """The config of a run's flags, with every check that needs neither data nor devices."""
    config, _ = flags.parse(words, {"save": None}, default_config, TABLES[script])
    check_config(config)
    check_precision(config)
    if script == "imp":
        lottery.check_chain(config)
    else:
        check_start(config)
        check_parents(config)
    return config


def _refuse_twins(entries: Sequence[Entry]) -> None:
    names: set[str] = set()
    seen: dict[str, str] = {}
    chains: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.name in names:
            raise Refusal(
                f"two runs of this sweep are called {entry.name}: name each config and value once"
            )
        names.add(entry.name)
        plain = entry.config.to_dict()
        for section in ("placement", "judge", *(() if entry.script == "imp" else ("chain",))):
            del plain[section]
        key = json.dumps(plain, sort_keys=True)
        if key in seen:
            raise Refusal(f"{seen[key]} and {entry.name} compute the same: leave one of them out")
        seen[key] = entry.name
        del plain["seed"]
        if entry.script == "imp":
            chains.setdefault(json.dumps(plain, sort_keys=True), []).append(entry)
    for alike in chains.values():
        _refuse_shared_trials(sorted(alike, key=lambda entry: entry.config.seed))


def _refuse_shared_trials(chains: Sequence[Entry]) -> None:
    """Of chains that differ in their seeds alone."""
    for one, other in itertools.pairwise(chains):
        n = one.config.chain.trials
        if other.config.seed - one.config.seed < n:
            raise Refusal(
                f"{one.name} and {other.name} share trials: trial i of a chain has the chain's seed + i, "
                f"and each has {n} trials; take seeds {n} apart: --seeds=0,{n},{2 * n}"
            )


def is_finished(entry: Entry, status: int | None = 0) -> bool:
    """Whether nothing is left to do; a folder that holds work of another recipe is refused.

    `status` is that of the run's last job: what did not end well may have results and not yet all.
    """
    if not entry.folder.exists():
        return False
    if entry.script == "train":
        [result] = results_of([Run(entry.folder, settled(entry.folder, entry.config))])
        return result is not None and status == 0
    imp.check_layout(entry.config, entry.folder)
    config = entry.config.copy_and_resolve_references()
    chains = lottery.plan_chains(config, entry.folder)
    config.precision = settled(chains[0].base, config).precision
    every = lottery.plan(config, chains)  # parents before children: a missing result ends the search
    done = all(results_of([planned.run]) != [None] for planned in every)
    return done and status == 0 and (entry.folder / paths.REPORT / "report.md").exists()


def score(entry: Entry) -> str:
    """What a finished run has to say for itself, in a few words."""
    result = records.read_result(entry.folder)
    if result is None or entry.script == "imp":
        return "finished"
    return f"finished · test {100 * result['scores']['best']['test']['accuracy']:.2f}%"


class Notes:
    """sweep.json: the runs of a sweep, how each is started, its last job, and how that ended."""

    def __init__(self, save: epath.Path):
        self.save, self.path = save, save / records.SWEEP
        self.runs: dict[str, Any] = (records.read_json(self.path) or {}).get("runs", {})

    def add(self, name: str, **what: Any) -> None:
        self.runs[name] = self.runs.get(name, {}) | what

    def status(self, name: str) -> int | None:
        """How a run's last job ended, be it while no sweep looked on: 0 where there was none."""
        run = self.runs.get(name, {})
        if "job" not in run:
            return 0
        status: int | None = run.get("status")
        return jobs.status_in(run["jobs"], run["job"], run.get("tasks", 1)) if status is None else status

    def write(self) -> None:
        self.save.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"runs": self.runs}, indent=1) + "\n"
        paths.write_bytes(self.path, content.encode())


def last_line(log: pathlib.Path) -> str:
    """Of a log, without its empty lines; nothing where there is none."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    said = [line for line in lines if line.strip() and not line.startswith("$ ")]
    return said[-1].strip() if said else ""
