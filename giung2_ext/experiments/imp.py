"""Iterative magnitude pruning with rewinding, cycle by cycle.

Rewind point (a constant rate, `chain.rewind_ni` steps), dense cycle 000, then cycles that keep
`chain.pruning_ratio` of the survivors by global magnitude and restart from the rewind point under the
new mask (Frankle et al. 2020, https://arxiv.org/abs/1912.05671). Every run is the one that the same
`train.py` command computes, in the same folder; all trials and arms of a cycle train side by side, or
one after another where data is streamed.

    SAVE/[trial_i/]              the rewind point      SAVE/[trial_i/]ARM/      an arm's starting point
    SAVE/[trial_i/]000, 001, …   the tickets           SAVE/[trial_i/]ARM/001…  the arm's cycles
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from giung2_ext.core.allocate import check_fraction
from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.experiments import setup as setups
from giung2_ext.experiments.config import Config
from giung2_ext.experiments.evaluate import datasets_of, judge_best
from giung2_ext.experiments.feeding import is_streamed
from giung2_ext.experiments.progress import Progress, clock, density_text, percent
from giung2_ext.experiments.single import (
    Run,
    check_job,
    check_precision,
    results_of,
    settled,
    train,
)
from giung2_ext.storage import locks, paths, records
from giung2_ext.training import processes
from giung2_ext.training.sharding import read_sizes

ARMS = ("reinit",)  # controls: the ticket's masks on freshly initialised weights


class Chain(NamedTuple):
    """One sequence of cycles: a trial's tickets, or an arm of that trial."""

    base: epath.Path  # its rewind point; cycles are below it
    ticket_base: epath.Path  # the tickets whose masks it uses: `base` itself but for an arm
    seed: int
    rewind_ni: int

    @property
    def is_arm(self) -> bool:
        return self.base != self.ticket_base


def arm_seed(seed: int, arm: str) -> int:
    """31 bits folded from a trial's seed and an arm's name; it can be typed as --seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{arm}".encode()).digest()[:4]) >> 1


def plan_chains(config: Config, save: epath.Path) -> list[Chain]:
    """Trial i has seed S + i, an arm a seed folded from that and its name."""
    trials = config.chain.trials
    bases = [save / paths.trial(i) if trials > 1 else save for i in range(trials)]
    first = settled(bases[0], config).seed
    chains = []
    for i, base in enumerate(bases):
        chains.append(Chain(base, base, first + i, config.chain.rewind_ni))
        for arm in config.chain.arms:
            chains.append(Chain(base / arm, base, arm_seed(first + i, arm), 0))
    return chains


def rewind_run(config: Config, chain: Chain) -> Run:
    """`train.py --optim_ni=… --constant_lr=true --periodic_ckpt=true`."""
    run = settled(chain.base, config, chain.seed)
    run.optim.ni, run.optim.constant_lr, run.tickets.periodic = chain.rewind_ni, True, True
    return Run(chain.base, run)


def cycle_run(config: Config, chain: Chain, index: int) -> Run:
    """`train.py --matching_ckpt=… --previous_ckpt=… --pruning_ratio=…`."""
    folder = chain.base / paths.cycle(index)
    run = settled(folder, config, chain.seed)
    rewind_point = chain.base / paths.iteration(chain.rewind_ni)
    previous = chain.ticket_base / paths.cycle(index - 1) / paths.BEST
    run.start.matching_ckpt = os.fspath(rewind_point)
    run.start.previous_ckpt = os.fspath(previous if index else rewind_point)
    run.start.pruning_ratio = config.chain.pruning_ratio if index else 1.0
    return Run(folder, run)


def check_chain(config: Config) -> None:
    if config.start.matching_ckpt or config.start.previous_ckpt:
        raise Refusal("imp.py chains the checkpoints itself: leave out matching and previous_ckpt")
    if config.optim.ni < 1:
        raise Refusal("imp.py needs --optim_ni of at least 1: a cycle must train")
    if config.masks.criterion != "none":
        raise Refusal("imp.py prunes from dense: config.masks.criterion must be 'none'")
    check_fraction(config.chain.pruning_ratio, "pruning_ratio")
    for arm in config.chain.arms:
        if arm not in ARMS:
            raise unknown("arm", str(arm), ARMS)


def check_layout(config: Config, save: epath.Path) -> None:
    """One trial lives in the folder itself, several in folders of their own: never both."""
    first, alone = save / paths.trial(0), save / records.CONFIG
    other = alone if config.chain.trials > 1 else first
    if other.exists():
        raise Refusal(
            f"{save} holds a chain of {'one trial' if config.chain.trials > 1 else 'several trials'} "
            f"({other}); set config.chain.trials to go on with it, or choose another --save"
        )


def use_cpu_cores(members: int) -> None:
    """On a CPU, one JAX device a core, so that members run side by side."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not os.environ.get("JAX_NUM_CPU_DEVICES") and members > 1:
        try:
            jax.config.update("jax_num_cpu_devices", min(cores, members))
        except RuntimeError:  # the backend runs already: its devices are what they are
            return


class Story:
    """A chain being run: what remains, and a line for every stage that is done."""

    def __init__(self, config: Config, save: epath.Path, chains: Sequence[Chain], together: bool):
        self.config, self.save, self.chains = config, save, chains
        self.setups = setups.Setups(together)
        self.held = list(dict.fromkeys([save, *(chain.base for chain in chains)]))
        cycles = (config.chain.cycles + 1) * config.optim.ni
        self.members = 1 if together else len(chains)  # that train one after another
        self.progress = Progress(self.members * (cycles + config.chain.rewind_ni))
        self.datasets = datasets_of(config, self.progress.line)

    def stage(self, name: str, runs: Sequence[Run]) -> None:
        """Trains what is unfinished of one stage and says how it went."""
        results = results_of(runs)
        missing = [run for run, result in zip(runs, results, strict=True) if result is None]
        steps = runs[0].config.optim.ni
        began = time.monotonic()
        if missing:
            together = self.save / paths.CHAIN_STATES / name
            for some in [missing] if self.setups.together else [[run] for run in missing]:
                states = together if self.setups.together else some[0].folder / paths.STATES
                train(some, self.setups, states, self.progress, name, self.held)
            results = results_of(runs)
            spent = f"{clock(time.monotonic() - began)}, {self.progress.left()} left"
        else:
            self.progress.done += self.members * steps
            spent = "finished before"
        self.progress.line(self._line(name, steps, runs, results, spent))
        for run in runs if name.isdigit() else ():
            judged = judge_best(self.config, run.folder, self.datasets)
            if judged:
                whose = run.folder.relative_to(self.save) if len(runs) > 1 else name
                self.progress.line(f"{whose}: {' · '.join(judged)}")
        for run in runs:
            usual = next(c.seed for c in self.chains if run.folder in (c.base, c.base / name))
            if run.config.seed != usual:
                self.progress.line(f"{name}: {run.folder} was run with seed {run.config.seed}, not {usual}")

    def _line(self, name: str, steps: int, runs: Any, results: Any, spent: str) -> str:
        arms = {chain.base.name for chain in self.chains if chain.is_arm}

        def arm_of(run: Run) -> str:
            name = run.folder.parent.name
            return name if name in arms else ""

        tickets = [r for run, r in zip(runs, results, strict=True) if not arm_of(run)] or results
        select = tickets[0]["selected_on"]
        train_loss = [r["scores"]["last"].get("train", {}).get("loss") for r in tickets]
        parts = [f"{name:<8} {steps:>6,} steps"]
        if None not in train_loss:
            parts.append(f"loss {sum(train_loss) / len(train_loss):.4f}")
        for split in dict.fromkeys((select, "test")):
            parts.append(f"{split} {percent([r['scores']['best'][split]['accuracy'] for r in tickets])}")
        parts.append(f"density {density_text(tickets[0])}")
        for arm in sorted(arms):
            own = [r for run, r in zip(runs, results, strict=True) if arm_of(run) == arm]
            if own and len(own) < len(results):
                accuracy = percent([r["scores"]["best"]["test"]["accuracy"] for r in own])
                parts.append(f"{arm} test {accuracy}")
        return " · ".join([*parts, spent])


def run_chain(config: Config, save: str) -> epath.Path:
    """The whole chain below `save`; what is finished is skipped, what was interrupted continues."""
    check_chain(config)
    check_precision(config)
    folder = epath.Path(save)
    members = config.chain.trials * (1 + len(config.chain.arms))
    together = members > 1 and not is_streamed(config.data.name)
    if together:
        use_cpu_cores(members)
    check_job(folder, config)
    processes.agree(lambda: check_layout(config, folder))
    config = config.copy_and_resolve_references()
    if together and config.placement.mesh:
        read_sizes(config.placement.mesh)
        raise Refusal(
            f"--mesh={config.placement.mesh}: the {members} members of this chain (trials and arms) have a "
            "device each; cut one over several with --config.chain.trials=1 --config.chain.arms="
        )
    chains = plan_chains(config, folder)
    config.precision = rewind_run(config, chains[0]).config.precision  # one for the whole chain
    setups.check_config(config)
    setups.check_placement(config, together)
    story = Story(config, folder, chains, together)
    story.progress.line(
        f"imp · {config.model.name} on {config.data.name} · rewind point {config.chain.rewind_ni:,} steps, "
        f"dense cycle and {config.chain.cycles} cycles of {config.optim.ni:,} keeping "
        f"{config.chain.pruning_ratio:g} · {config.chain.trials} trial(s)"
        f"{''.join(f' + {arm}' for arm in config.chain.arms)} · seed {chains[0].seed} · "
        f"{config.precision} on {setups.describe_devices(config, together)} → {folder}"
    )
    with contextlib.ExitStack() as open_until_done:
        processes.agree(lambda: open_until_done.enter_context(locks.locked(story.held)))
        tickets = [chain for chain in chains if not chain.is_arm]
        arms = [chain for chain in chains if chain.is_arm]
        story.stage("rewind", [rewind_run(config, chain) for chain in tickets])
        if arms:
            story.stage("arms", [rewind_run(config, chain) for chain in arms])
        for index in range(config.chain.cycles + 1):
            members = chains if index else tickets
            runs = [cycle_run(config, chain, index) for chain in members]
            story.stage(paths.cycle(index), runs)
    return folder
