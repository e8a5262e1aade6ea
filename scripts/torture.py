"""Kills a chain at random moments and checks that nothing is lost.

    python scripts/torture.py --save=DIR [--kills=20] [--seed=0] [--config=FILE] [--within=SECONDS]

Runs the chain once undisturbed in DIR/calm, then in DIR/killed_N with SIGKILLs at random moments,
restarting with the same command (a new folder when a chain has come to its end). After every kill each
checkpoint name must resolve to a ticket whose digest is right; at every end all tickets must be the
calm ones, bit for bit. Exits with 1 if not.
"""

import pathlib
import random
import signal
import subprocess
import sys
import time

from giung2_ext.core.errors import Failure, Refusal
from giung2_ext.experiments import command, flags
from giung2_ext.storage.tickets import read_ticket

OWN = {
    "save": None,
    "kills": "20",
    "seed": "0",
    "config": "configs/imp/digits.py",
    "within": None,
    "save_every": "400",
}


def digests(folder: pathlib.Path) -> dict[str, str]:
    """{name: digest} of every checkpoint name below a folder, each read and verified."""
    return {
        str(name.relative_to(folder)): read_ticket(name).digest for name in sorted(folder.rglob("*.ckpt"))
    }


def main():
    if "--help" in sys.argv:
        print(__doc__.strip())
        return
    given = flags.parse_own(sys.argv[1:], OWN)
    if not given["save"]:
        raise Refusal("--save=DIR is required")
    kills, seed = (flags.convert(given[name], int, False, name) for name in ("kills", "seed"))
    draw = random.Random(seed)
    root = pathlib.Path(given["save"])
    imp = pathlib.Path(__file__).with_name("imp.py")

    def chain(folder: pathlib.Path) -> list[str]:
        saves = f"--save_every={given['save_every']}"
        return [
            sys.executable,
            str(imp),
            f"--config={given['config']}",
            "--seed=0",
            saves,
            f"--save={folder}",
        ]

    began = time.monotonic()
    subprocess.run(chain(root / "calm"), check=True, stdout=subprocess.DEVNULL)
    calm_seconds = time.monotonic() - began
    print(f"undisturbed: {calm_seconds:.0f} s", flush=True)

    calm = digests(root / "calm")
    longest = float(given["within"] or calm_seconds * 0.7)
    done = rounds = continued = 0
    killed = root / "killed_0"
    while True:
        moment = draw.uniform(0.5, longest) if done < kills else None
        process = subprocess.Popen(chain(killed), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            said, errors = process.communicate(timeout=moment)
            continued += said.count("continuing from step")
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            continued += process.communicate()[0].count("continuing from step")
            done += 1
            print(f"kill {done:>2} after {moment:5.1f} s: {len(digests(killed))} names resolve", flush=True)
            continue
        if process.returncode != 0:
            raise Failure(f"the chain ended with {process.returncode}: {errors}")
        compare(calm, digests(killed))
        rounds += 1
        print(f"chain {rounds} is complete: all {len(calm)} names are bit-identical", flush=True)
        if done >= kills:
            break
        killed = root / f"killed_{rounds}"
    print(
        f"{done} kills in {rounds} chain(s), {continued} continuations within a cycle: nothing lost, "
        f"{len(calm)} tickets as if undisturbed"
    )


def compare(calm: dict[str, str], found: dict[str, str]) -> None:
    names = calm.keys() | found.keys()
    different = sorted(name for name in names if calm.get(name) != found.get(name))
    if different:
        raise Failure(f"{len(different)} of {len(calm)} names differ, first {different[0]}")


if __name__ == "__main__":
    command.guarded(main)
