"""Kills a chain at random moments and checks that nothing is lost.

    python scripts/torture.py --save=DIR [--kills=20] [--seed=0] [--config=FILE] [--within=SECONDS]
        [--processes=2 --devices=4 --flags="--config.chain.trials=1 …"]

Runs the chain once undisturbed in DIR/calm, then in DIR/killed_N with SIGKILLs at random moments,
restarting with the same command (a new folder when a chain has come to its end). With several processes
(of so many CPU devices each) a random one is killed, and the others must end by themselves. After every
kill each checkpoint name must resolve to a ticket whose digest is right; at every end all tickets must be
the calm ones, bit for bit. Exits with 1 if not.
"""

import os
import pathlib
import random
import shlex
import signal
import socket
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
    "processes": "1",
    "devices": "1",
    "flags": "",
}
LOST_AFTER = 10  # seconds until the others notice: config.placement.lost_after and joined_within
PATIENCE = 60  # for them to end after that, on a machine that is busy
LONGEST = 3600  # seconds that an undisturbed chain may take


class Job:
    """One command in one process, or in several that make up a job."""

    def __init__(self, words: list[str], processes: int, devices: int, log: pathlib.Path):
        self.log = log
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.running = []
        for index in range(processes):
            own = {"JAX_PROCESS_ID": str(index), "JAX_NUM_PROCESSES": str(processes)}
            own |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_CPU_DEVICES": str(devices)}
            with self.output(index).open("w") as out:
                self.running.append(
                    subprocess.Popen(
                        words,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        env=os.environ | (own if processes > 1 else {}),
                    )
                )

    def output(self, index: int) -> pathlib.Path:
        return self.log.with_suffix(f".{index}.log")

    def said(self, index: int = 0) -> str:
        return self.output(index).read_text(errors="replace")

    def ends_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        try:
            for process in self.running:
                process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def finish(self) -> None:
        """To its own end, which must come."""
        if not self.ends_within(LONGEST):
            self.end()
            raise Failure(f"the job hangs: not done after {LONGEST} s; it says {self.said()[-2000:]}")
        self.check()

    def end(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()

    def kill(self, index: int) -> float:
        """Kills one process; the others must end by themselves. Returns how long that took."""
        self.check()  # one that has crashed by itself is not to be counted as killed
        began = time.monotonic()
        self.running[index].send_signal(signal.SIGKILL)
        if not self.ends_within(LOST_AFTER + PATIENCE):
            self.end()
            raise Failure(f"the job outlived process {index} by {LOST_AFTER + PATIENCE} s")
        return time.monotonic() - began

    def check(self) -> None:
        for index, process in enumerate(self.running):
            if process.poll() not in (None, 0):
                raise Failure(
                    f"process {index} ended with {process.returncode}: {self.said(index)[-2000:]}"
                )


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
    numbers = ("kills", "seed", "processes", "devices")
    kills, seed, processes, devices = (flags.convert(given[n], int, False, n) for n in numbers)
    draw = random.Random(seed)
    root = pathlib.Path(given["save"])
    root.mkdir(parents=True, exist_ok=True)

    def start(folder: pathlib.Path) -> Job:
        words = [sys.executable, str(pathlib.Path(__file__).with_name("imp.py")), "--seed=0"]
        words += [f"--config={given['config']}", f"--save_every={given['save_every']}", f"--save={folder}"]
        if processes > 1:
            words += [f"--config.placement.{name}={LOST_AFTER}" for name in ("lost_after", "joined_within")]
        return Job([*words, *shlex.split(given["flags"])], processes, devices, root / "output")

    began = time.monotonic()
    job = start(root / "calm")
    job.finish()
    calm_seconds = time.monotonic() - began
    print(f"undisturbed: {calm_seconds:.0f} s", flush=True)

    calm = digests(root / "calm")
    longest = float(given["within"] or calm_seconds * 0.7)
    done = rounds = continued = 0
    slowest = 0.0
    killed = root / "killed_0"
    while True:
        job = start(killed)
        moment = draw.uniform(0.5, longest) if done < kills else LONGEST
        finished = job.ends_within(moment)
        if done >= kills:
            job.finish()
        elif not finished:
            victim = draw.randrange(processes)
            took = job.kill(victim)
            slowest = max(slowest, took)
        continued += job.said().count("continuing from step")
        if "is damaged" in job.said():
            raise Failure(f"a state was found damaged after a kill: {job.said()[-2000:]}")
        if not finished:
            done += 1
            which = f" of process {victim}, the job ended {took:.1f} s later" if processes > 1 else ""
            resolve = f"{len(digests(killed))} names resolve"
            print(f"kill {done:>2} after {moment:5.1f} s{which}: {resolve}", flush=True)
            continue
        job.check()
        compare(calm, digests(killed))
        rounds += 1
        print(f"chain {rounds} is complete: all {len(calm)} names are bit-identical", flush=True)
        if done >= kills:
            break
        killed = root / f"killed_{rounds}"
    down = (
        f", a job of {processes} was down {slowest:.1f} s after a kill at the latest"
        if processes > 1
        else ""
    )
    print(
        f"{done} kills in {rounds} chain(s), {continued} continuations within a cycle{down}: nothing lost, "
        f"{len(calm)} tickets as if undisturbed"
    )


def compare(calm: dict[str, str], found: dict[str, str]) -> None:
    names = calm.keys() | found.keys()
    different = sorted(name for name in names if calm.get(name) != found.get(name))
    if different:
        raise Failure(f"{len(different)} of {len(calm)} names differ, first {different[0]}")


if __name__ == "__main__":
    command.guarded(main)
