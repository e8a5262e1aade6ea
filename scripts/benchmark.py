"""Measures this suite against rivals that do the same work, in one run on one machine.

    python scripts/benchmark.py NAME [--data_root=DIR] [--json] [--smoke] [--repeats=N]

Every contender is compiled and its result checked before the clock starts; then they take turns, and
the medians are compared: a ratio above 1 means that ours is faster. `--json` prints one object as the
last line; `--smoke` shrinks the problem to try it out. NAME is a file in scripts/benchmarks; `input` and
`evaluate` want a DIR with folders of JPEGs.
"""

import importlib
import json
import os
import pathlib
import pkgutil
import statistics
import sys
import time

import jax

from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.experiments.command import guarded
from giung2_ext.storage import records

FOUND = pkgutil.iter_modules([str(pathlib.Path(__file__).with_name("benchmarks"))])
NAMES = [info.name for info in FOUND if not info.name.startswith("_")]


def measure(contenders, repeats):
    """{name: [seconds]}: the contenders in turn, after one unmeasured turn each."""
    seconds = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def machine():
    devices = jax.devices()
    here = records.environment()
    cores = f"{len(os.sched_getaffinity(0))} cores, " if hasattr(os, "sched_getaffinity") else ""
    name = f"{cores}{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {here['platform']}"
    return {"machine": name, **{key: here[key] for key in ("python", "packages", "commit")}}


def run(name, smoke, repeats, data_root):
    """A module's `make(smoke, data_root)` gives parts: contenders (ours first), aims, notes and (unit,
    how many a turn). Ratios are those of one part."""
    try:
        benchmark = importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        raise Refusal(f"{name} needs the package {error.name}, which is not installed") from error
    parts = []
    print(f"{'SMOKE, a small problem. ' if smoke else ''}{benchmark.__doc__.splitlines()[0]}")
    for part in benchmark.make(smoke, data_root):
        parts.append(run_part(smoke, repeats, *part))
    where = machine()
    versions = f"Python {where['python']}, jax {where['packages']['jax']}"
    print(f"{where['machine']}, {versions}, {repeats} repeats")
    return {"name": name, "smoke": smoke, "parts": parts, **where}


def run_part(smoke, repeats, contenders, aims, notes, per):
    unit, amount = per
    aims = {} if smoke else aims  # they are for the full size
    seconds = measure(contenders, repeats)
    middle = {contender: statistics.median(values) for contender, values in seconds.items()}
    ours = next(iter(contenders))
    ratios = {rival: middle[rival] / middle[ours] for rival in contenders if rival != ours}
    met = {rival: {"aim": aim, "met": ratios[rival] >= aim} for rival, aim in aims.items()}
    print(f"{'':<28} {'median s':>10} {unit + '/s':>14} {'ratio':>8}  aim")
    for contender in contenders:
        ratio = f"{ratios[contender]:.3f}" if contender in ratios else "1"
        aim = ""
        if contender in met:
            aim = f">= {aims[contender]:.3f} {'met' if met[contender]['met'] else 'NOT met'}"
        rate = f"{amount / middle[contender]:,.0f}"
        print(f"{contender:<28} {middle[contender]:>10.4f} {rate:>14} {ratio:>8}  {aim}".rstrip())
    for note in notes:
        print(note() if callable(note) else note)
    return {"ratios": ratios, "aims": met, "seconds": middle}


def main():
    words = sys.argv[1:]
    if "--help" in words:
        print(f"{__doc__}\nnames: {', '.join(NAMES)}")
        return
    flags = [word for word in words if word.startswith("--")]
    names = [word for word in words if not word.startswith("--")]
    repeats, data_root = 5, None
    for flag in flags:
        key, _, value = flag.partition("=")
        if key == "--repeats" and value.isdigit() and int(value):
            repeats = int(value)
        elif key == "--data_root" and value:
            data_root = value
        elif flag not in ("--json", "--smoke"):
            raise Refusal(f"unknown flag {flag}; known: --data_root=DIR, --json, --smoke, --repeats=N")
    if len(names) != 1:
        raise Refusal(f"usage: python scripts/benchmark.py NAME [--json]; names: {', '.join(NAMES)}")
    if names[0] not in NAMES:
        raise unknown("benchmark", names[0], NAMES)
    result = run(names[0], "--smoke" in flags, repeats, data_root)
    if "--json" in flags:
        print(json.dumps(result))


if __name__ == "__main__":
    guarded(main)
