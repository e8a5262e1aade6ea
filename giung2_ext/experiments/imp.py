"""Iterative magnitude pruning with rewinding, cycle by cycle, and its controls.

Rewind point (a constant rate, `chain.rewind_ni` steps), dense cycle 000, then cycles that keep
`chain.pruning_ratio` of the survivors by global magnitude, or `chain.layer_ratios` of every layer, and
restart from the rewind point under the new mask (Frankle et al. 2020, https://arxiv.org/abs/1912.05671).
What the runs are says `lottery`; all trials and arms of a round train side by side in one program, or one
after another where data is streamed.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Sequence

import jax
from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import setup as setups
from giung2_ext.experiments.bounds import check_config
from giung2_ext.experiments.config import Config, recipe
from giung2_ext.experiments.evaluate import datasets_of, judge_best
from giung2_ext.experiments.feeding import is_streamed
from giung2_ext.experiments.joining import check_job, check_place
from giung2_ext.experiments.lottery import Chain, Planned, check_chain, check_counts, plan, plan_chains
from giung2_ext.experiments.progress import Progress, clock, density_text, percent
from giung2_ext.experiments.recover import saved_recipes
from giung2_ext.experiments.settling import settled
from giung2_ext.experiments.single import Run, check_precision, results_of, train
from giung2_ext.experiments.start import check_start
from giung2_ext.storage import locks, paths, records
from giung2_ext.training import processes
from giung2_ext.training.sharding import read_sizes


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
    """A chain being run: what remains, and a line for every round that is done."""

    def __init__(self, config: Config, save: epath.Path, planned: Sequence[Planned], together: bool):
        self.config, self.save, self.planned = config, save, planned
        self.setups = setups.Setups(together)
        self.held = list(dict.fromkeys([save, *(p.chain.base for p in planned)]))
        groups: dict[tuple[int, str], list[Run]] = {}
        for p in planned:
            groups.setdefault((p.round, setups.shape_of(p.run.config)), []).append(p.run)
        self.groups = groups  # of a round, what can train in one program
        trainings = (ni_of(g) * (1 if together else len(g)) for g in groups.values())
        self.progress = Progress(sum(trainings))
        self.datasets = datasets_of(config, self.progress.line)

    def run(self) -> None:
        for number in sorted({p.round for p in self.planned}):
            self._run_round(number)

    def _run_round(self, number: int) -> None:
        """Trains what is unfinished of one round and says how it went."""
        began, name = time.monotonic(), "rewind" if number == 0 else paths.cycle(number - 1)
        worked = [self._train(name, group) for (own, _), group in self.groups.items() if own == number]
        spent = "finished before"
        if any(worked):
            spent = f"{clock(time.monotonic() - began)}, {self.progress.left()}"
        runs = [p for p in self.planned if p.round == number]
        self.progress.line(self._line(name, [p for p in runs if p.chain.arm is None], spent))
        for p in runs:
            if p.cycle is not None:
                self._judge(p.run, len(runs) > 1)
            if p.run.config.seed != p.chain.seed:
                self.progress.line(
                    f"{name}: {p.run.folder} was run with seed {p.run.config.seed}, not {p.chain.seed}"
                )

    def _train(self, name: str, group: Sequence[Run]) -> bool:
        """Trains what is unfinished of a group; says whether it had to."""
        missing = [run for run, result in zip(group, results_of(group), strict=True) if result is None]
        steps, parts = ni_of(group), self._parts(name, missing)
        if self.setups.together and missing:
            self.progress.total += (len(parts) - 1) * steps
        else:
            self.progress.done += (1 if self.setups.together else len(group) - len(missing)) * steps
        if self.setups.together and len(parts) > 1:
            told = " + ".join(str(len(part)) for _, part in parts)
            self.progress.line(f"{name}: {len(missing)} members, {told} at a time")
        for states, part in parts:
            train(part, self.setups, states, self.progress, name, self.held)
        return bool(missing)

    def _parts(self, name: str, missing: Sequence[Run]) -> list[tuple[epath.Path, list[Run]]]:
        """What trains side by side, and where its state is: what was begun so, the rest as it fits."""
        if not self.setups.together:
            return [(run.folder / paths.STATES, [run]) for run in missing]
        folder, left, parts = self.save / paths.CHAIN_STATES, list(missing), []
        begun = processes.agree(
            lambda: {place.name: saved_recipes(place) for place in sorted(folder.glob(f"{name}*"))}
        )
        for place, recipes in begun.items():
            own = [run for run in left if recipe(run.config) in recipes]
            left = [run for run in left if run not in own]
            parts += [(folder / place, own)] if own else []
        names = (f"{name}.{i}" if i else name for i in itertools.count())
        free = (each for each in names if each not in begun)
        most = self.setups.most(left[0].config, len(left)) if left else 1
        return parts + [(folder / next(free), left[at : at + most]) for at in range(0, len(left), most)]

    def _judge(self, run: Run, several: bool) -> None:
        judged = judge_best(self.config, run.folder, self.datasets)
        if judged:
            whose = run.folder.relative_to(self.save) if several else run.folder.name
            self.progress.line(f"{whose}: {' · '.join(judged)}")

    def _line(self, name: str, own: Sequence[Planned], spent: str) -> str:
        tickets = [result for result in results_of([p.run for p in own]) if result is not None]
        select = tickets[0]["selected_on"]
        train_loss = [r["scores"]["last"].get("train", {}).get("loss") for r in tickets]
        parts = [f"{name:<8} {ni_of([own[0].run]):>6,} steps"]
        if None not in train_loss:
            parts.append(f"loss {sum(train_loss) / len(train_loss):.4f}")
        for split in dict.fromkeys((select, "test")):
            parts.append(f"{split} {percent([r['scores']['best'][split]['accuracy'] for r in tickets])}")
        if tickets[0]["selected_by"] == "loss" and own[0].cycle is not None:
            parts.append(f"mean early stop {sum(r['best_step'] for r in tickets) / len(tickets):,.0f}")
        parts.append(f"density {density_text(tickets[0])}")
        for arm in self.config.chain.arms if own[0].cycle is not None else ():
            same = [p for p in self.planned if p.cycle == own[0].cycle and p.chain.base.name == arm]
            results = [result for result in results_of([p.run for p in same]) if result is not None]
            if same and not results:
                parts.append(f"{arm} later")
            elif results:
                accuracies = [r["scores"]["best"]["test"]["accuracy"] for r in results]
                parts.append(f"{arm} test {percent(accuracies)}")
        return " · ".join([*parts, spent])


def ni_of(group: Sequence[Run]) -> int:
    return group[0].config.optim.ni


def side_by_side(config: Config) -> int:
    """How many members, trials and their arms, train in one program on a device each; 1: none do."""
    return 1 if is_streamed(config.data.name) else config.chain.trials * (1 + len(config.chain.arms))


def prepare(
    config: Config, folder: epath.Path, start: bool = True
) -> tuple[Config, list[Chain], list[Planned]]:
    """What is decided and checked before anything is computed; without `start` no folder is touched."""
    check_chain(config)
    check_precision(config)
    members = side_by_side(config)
    use_cpu_cores(members)
    check_place(folder, config)
    if start:
        check_job(folder, config)
    processes.agree(lambda: check_layout(config, folder))
    config = config.copy_and_resolve_references()
    if members > 1 and config.placement.mesh:
        read_sizes(config.placement.mesh)
        raise Refusal(
            f"--mesh={config.placement.mesh}: the {members} members of this chain (trials and arms) have a "
            "device each; cut one over several with --config.chain.trials=1 --config.chain.arms="
        )
    chains = plan_chains(config, folder)
    config.precision = settled(chains[0].base, config).precision  # one for the whole chain
    planned = plan(config, chains)
    for p in planned:
        check_config(p.run.config)
        check_start(p.run.config)
    setups.check_setup(config, members > 1)
    return config, chains, planned


def run_chain(config: Config, save: str) -> epath.Path:
    """The whole chain below `save`; what is finished is skipped, what was interrupted continues."""
    folder = epath.Path(save)
    config, chains, planned = prepare(config, folder)
    together = side_by_side(config) > 1
    story = Story(config, folder, planned, together)
    story.progress.line(describe(config, chains, together, folder))
    check_counts(config, story.setups.dense_masks(planned[0].run.config))
    with contextlib.ExitStack() as open_until_done:
        lock = locks.locked(story.held, config.placement.lease, story.progress.line)
        processes.agree(lambda: open_until_done.enter_context(lock))
        story.run()
    return folder


def describe(config: Config, chains: Sequence[Chain], together: bool, folder: epath.Path) -> str:
    chain = config.chain
    return (
        f"imp · {config.model.name} on {config.data.name} · rewind point {chain.rewind_ni:,} steps, "
        f"dense cycle and {chain.cycles} cycles of {config.optim.ni:,} keeping "
        f"{chain.layer_ratios or f'{chain.pruning_ratio:g}'} · {chain.trials} trial(s)"
        f"{''.join(f' + {arm}' for arm in chain.arms)} · seed {chains[0].seed} · "
        f"{config.precision} on {setups.describe_devices(config, together)} → {folder}"
    )
