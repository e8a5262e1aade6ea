"""The runs of a ticket experiment: every trial's tickets and their controls, the arms.

Frankle & Carbin 2019 (https://arxiv.org/abs/1803.03635), Frankle et al. 2020 (…/1912.05671), Renda et al.
2020 (…/2003.02389), Zhou et al. 2019 (…/1905.01067). Every run is the one that a `train.py` command
computes, in the same folder. The runs of a round need nothing but earlier rounds: they train side by side.

    SAVE/[trial_i/]              the rewind point      SAVE/[trial_i/]ARM/      an arm's starting point
    SAVE/[trial_i/]000, 001, …   the tickets           SAVE/[trial_i/]ARM/001…  the arm's cycles
"""

import hashlib
import os
from typing import Any, NamedTuple

from etils import epath

from giung2_ext.core import allocate, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.experiments.config import Config
from giung2_ext.experiments.settling import settled
from giung2_ext.experiments.single import Run
from giung2_ext.storage import paths


class Arm(NamedTuple):
    """How an arm's cycle differs from the ticket of that cycle: by nothing where nothing is said."""

    fresh: bool = False  # on newly drawn weights, not on the rewind point's
    late: bool = False  # rewound to step `late_ni` of the dense run; prunes what it has trained itself
    carried: bool = False  # weights go on from its own cycle before, which it prunes: no rewinding
    at_once: bool = False  # pruned from the dense network in one go
    reseeded: bool = False  # batches in another order
    dense: bool = False  # it has a dense cycle too
    tuned: bool = False  # at a small constant rate
    ablation: str = "none"


ARMS = {
    "reinit": Arm(fresh=True),
    "random": Arm(fresh=True, ablation="shuffle"),  # randomly sampled sparse networks
    "shuffle": Arm(ablation="shuffle"),
    "signs": Arm(ablation="signs"),
    "one_shot": Arm(at_once=True),
    "no_rewind": Arm(carried=True),  # rates start afresh: under a schedule, learning-rate rewinding
    "finetune": Arm(carried=True, tuned=True),
    "late": Arm(late=True),
    "sibling": Arm(reseeded=True, dense=True),  # for instability.py
}


class Chain(NamedTuple):
    """One sequence of cycles: a trial's tickets, or an arm of that trial."""

    base: epath.Path  # where its cycles are; its own starting point too, if it has one
    ticket_base: epath.Path  # the trial's tickets: `base` itself but for an arm
    seed: int
    arm: Arm | None = None

    @property
    def point_base(self) -> epath.Path:
        """Where the weights are that its cycles start from."""
        own = self.arm is None or self.arm.fresh or self.arm.late
        return self.base if own else self.ticket_base

    @property
    def own_masks(self) -> bool:
        return self.arm is None or self.arm.carried or self.arm.late


class Planned(NamedTuple):
    run: Run
    chain: Chain
    cycle: int | None  # None: a starting point
    round: int


def arm_seed(seed: int, arm: str) -> int:
    """31 bits folded from a trial's seed and an arm's name; it can be typed as --seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{arm}".encode()).digest()[:4]) >> 1


def plan_chains(config: Config, save: epath.Path) -> list[Chain]:
    """Trial i has seed S + i; arms with weights or an order of their own have one folded from it."""
    trials = config.chain.trials
    bases = [save / paths.trial(i) if trials > 1 else save for i in range(trials)]
    first = settled(bases[0], config).seed
    chains = []
    for i, base in enumerate(bases):
        chains.append(Chain(base, base, first + i))
        for name in config.chain.arms:
            arm = ARMS[name]
            own = arm.fresh or arm.reseeded
            chains.append(Chain(base / name, base, arm_seed(first + i, name) if own else first + i, arm))
    return chains


def point_steps(config: Config, chain: Chain) -> int:
    """The step that a chain's cycles start from."""
    if chain.arm is None or chain.point_base == chain.ticket_base:
        return config.chain.rewind_ni
    return config.chain.late_ni if chain.arm.late else 0


def point_run(config: Config, chain: Chain) -> Run:
    """`train.py --optim_ni=… --constant_lr=true --periodic_ckpt=true`."""
    run = settled(chain.base, config, chain.seed)
    run.optim.ni, run.optim.constant_lr, run.tickets.periodic = point_steps(config, chain), True, True
    run.optim.milestones = ()
    return Run(chain.base, run)


def pruned_name(config: Config) -> str:
    """The ticket of a cycle whose weights are ranked."""
    return paths.LAST if config.chain.prune_from == "last" else paths.best(config.evaluation.select_by)


def parents(chain: Chain, index: int, by_layers: bool) -> tuple[epath.Path, epath.Path]:
    """The folders of a cycle's matching and previous checkpoints; `by_layers`: it has ratios of layers."""
    arm = chain.arm or Arm()
    if index == 0 or _independent(arm, by_layers):
        return chain.point_base, chain.point_base
    own = chain.own_masks and not (chain.arm and index == 1)  # an arm's first cycle prunes the dense ticket
    previous = (chain.base if own else chain.ticket_base) / paths.cycle(0 if arm.at_once else index - 1)
    return (previous if arm.carried else chain.point_base), previous


def cycle_run(config: Config, chain: Chain, index: int) -> Run:
    """`train.py --matching_ckpt=… --previous_ckpt=… --pruning_ratio=…`."""
    arm, folder = chain.arm or Arm(), chain.base / paths.cycle(index)
    run = settled(folder, config, chain.seed)
    by_layers, point = bool(config.chain.layer_ratios), paths.iteration(point_steps(config, chain))
    run.start.matching_ckpt, run.start.previous_ckpt = (
        os.fspath(place / (point if place == chain.point_base else pruned_name(config)))
        for place in parents(chain, index, by_layers)
    )
    rounds = index if arm.at_once or _independent(arm, by_layers) else 1
    run.start.weights, run.start.scale_fan = "model", "none"  # drawn before the rewind point
    run.start.pruning_ratio = config.chain.pruning_ratio if index else 1.0
    run.start.layer_ratios = config.chain.layer_ratios if index else ""
    if arm.carried:
        run.start.batch_stats = "rewind"  # to where the weights are from
    run.start.rounds, run.start.ablation = rounds if index else 1, arm.ablation if index else "none"
    if arm.tuned:
        run.optim.lr, run.optim.constant_lr, run.optim.milestones = config.chain.finetune_lr, True, ()
    return Run(folder, run)


def _independent(arm: Arm, by_layers: bool) -> bool:
    """Random networks whose layers' counts follow from ratios alone wait for no ticket."""
    return arm.fresh and arm.ablation == "shuffle" and by_layers


def _round(config: Config, chain: Chain, index: int) -> int:
    arm = chain.arm or Arm()
    if _independent(arm, bool(config.chain.layer_ratios)):
        return config.chain.cycles + 1  # with the last tickets, so that the first are not kept waiting
    return min(index, 1) + 1 if arm.at_once else index + 1


def plan(config: Config, chains: list[Chain]) -> list[Planned]:
    """Every run, round by round; the tickets of a round first."""
    planned = []
    for chain in chains:
        if chain.point_base == chain.base:
            planned.append(Planned(point_run(config, chain), chain, None, 0))
        first = 0 if chain.arm is None or chain.arm.dense else 1
        for index in range(first, config.chain.cycles + 1):
            run = cycle_run(config, chain, index)
            planned.append(Planned(run, chain, index, _round(config, chain, index)))
    return sorted(planned, key=lambda p: (p.round, p.chain.arm is not None))


def check_counts(config: Config, masks: Any) -> None:
    """Refuses a chain whose cycles, so many of them, would leave nothing, or a layer without a ratio."""
    chain, sizes = config.chain, trees.map_present(lambda mask: mask.size, masks)
    if chain.cycles and chain.layer_ratios:
        allocate.pruned_counts(masks, sizes, chain.layer_ratios, config.start.rounding, chain.cycles)
    elif chain.cycles and (size := masking.size(masks)):
        allocate.keep_count(chain.pruning_ratio, size, "pruning_ratio", config.start.rounding, chain.cycles)


def check_chain(config: Config) -> None:
    """Refuses what makes no chain, before a folder is touched."""
    chain = config.chain
    if config.start.matching_ckpt or config.start.previous_ckpt:
        raise Refusal("imp.py chains the checkpoints itself: leave out matching and previous_ckpt")
    if config.start.layer_ratios or config.start.rounds != 1 or config.start.ablation != "none":
        raise Refusal(
            "imp.py says what each cycle starts from: set config.chain instead of layer_ratios, rounds or "
            "ablation of config.start (its rounding holds for every cycle)"
        )
    if config.optim.ni < 1:
        raise Refusal("imp.py needs --optim_ni of at least 1: a cycle must train")
    if config.masks.criterion != "none":
        raise Refusal("imp.py prunes from dense: config.masks.criterion must be 'none'")
    if config.start.rounding not in allocate.ROUNDINGS:
        raise unknown("config.start.rounding", config.start.rounding, allocate.ROUNDINGS)
    allocate.check_fraction(chain.pruning_ratio, "pruning_ratio")
    if chain.layer_ratios:
        allocate.read_ratios(chain.layer_ratios, "config.chain.layer_ratios")
        if chain.pruning_ratio != 1:
            raise Refusal(
                "config.chain.layer_ratios and --pruning_ratio both say how much is pruned: "
                "--pruning_ratio=1 leaves it to the first, --config.chain.layer_ratios= to the second"
            )
    elif chain.pruning_ratio == 1 and chain.cycles:
        raise Refusal(
            "--pruning_ratio=1 prunes nothing in any cycle: give a smaller one, or "
            "config.chain.layer_ratios, or config.chain.cycles=0"
        )
    if chain.prune_from not in ("best", "last"):
        raise unknown("config.chain.prune_from", chain.prune_from, ("best", "last"))
    for arm in chain.arms:
        if arm not in ARMS:
            raise unknown("arm", str(arm), ARMS)
    if len(set(chain.arms)) < len(chain.arms):
        raise Refusal(f"config.chain.arms names an arm twice: {', '.join(chain.arms)}")
    if "late" in chain.arms and not 0 < chain.late_ni <= config.optim.ni:
        raise Refusal(
            "the arm late rewinds to step config.chain.late_ni of the dense cycle: "
            f"in 1..{config.optim.ni}, got {chain.late_ni}"
        )
    if "late" in chain.arms and (chain.rewind_ni or not config.optim.constant_lr):
        raise Refusal(
            "the arm late is for tickets that rewind to step 0 at a constant rate "
            "(config.chain.rewind_ni=0, --constant_lr=true); else all rewind to config.chain.rewind_ni"
        )
    if "finetune" in chain.arms and chain.finetune_lr is None:
        raise Refusal("the arm finetune has a rate of its own: give --config.chain.finetune_lr=RATE")
