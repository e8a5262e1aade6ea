"""A chain's folders: do cycles descend from each other, under nested masks, from one rewind point?

The layout is `lottery`'s: where a cycle's parents lie follows from its arm and its number.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from giung2_ext.core import trees
from giung2_ext.experiments.doctor import run as runs_of
from giung2_ext.experiments.doctor import state
from giung2_ext.experiments.doctor.findings import Exam, listed
from giung2_ext.experiments.doctor.run import Run
from giung2_ext.experiments.doctor.ticket import Seen, key_of, masked
from giung2_ext.experiments.lottery import ARMS, Arm, Chain
from giung2_ext.storage import paths, records, tickets

Tree = Any
Runs = dict[epath.Path, Run]
SAME = ("model", "prunable_rule", "num_classes", "image_shape")


class Expected(NamedTuple):
    """The tickets that may be a parent, and how they are called in a finding."""

    tickets: list[Seen]
    called: str

    def find(self, digest: str | None) -> Seen | None:
        return next((seen for seen in self.tickets if digest and seen.key == key_of(digest)), None)


def cycles(base: epath.Path) -> list[epath.Path]:
    return sorted(base.glob("[0-9][0-9][0-9]"))


def is_chain(folder: epath.Path) -> bool:
    """Whether there are cycles below, one trial's or several, or only those of an arm."""
    bases = list(paths.trial_bases(folder).values())
    return any(cycles(base) or any(cycles(base / arm) for arm in ARMS) for base in bases)


def chains_below(folder: epath.Path) -> list[Chain]:
    """Every trial's tickets and arms, with no seed."""
    chains = []
    for base in paths.trial_bases(folder).values():
        chains.append(Chain(base, base, 0))
        chains += [Chain(base / name, base, 0, arm) for name, arm in ARMS.items() if (base / name).exists()]
    return chains


def examine(exam: Exam, folder: epath.Path) -> None:
    """All runs of a chain, each by itself and as its parents' child, and the states that they share."""
    chains = chains_below(folder)
    places = [place for chain in chains for place in (chain.base, *cycles(chain.base))]
    runs: Runs = {place: runs_of.read(exam, place) for place in places if runs_of.is_run(place)}
    for chain in chains:
        for place in cycles(chain.base):
            if place in runs:
                with exam.part(runs[place].where):
                    runs[place] = _check_cycle(exam, chain, int(place.name), runs)
        with exam.part(exam.place(chain.base)):
            _check_point(exam, chain, runs)
    _check_network(exam, list(runs.values()))
    for run in runs.values():
        runs_of.check(exam, run)
    shared = sorted((folder / paths.CHAIN_STATES).glob("*"))
    for place in [run.folder / paths.STATES for run in runs.values()] + shared:
        state.examine(exam, place, list(runs.values()))


def parents_of(chain: Chain, index: int, by_layers: bool = False) -> tuple[epath.Path, epath.Path]:
    """The folders of a cycle's matching and previous checkpoints; `by_layers`: it has ratios of layers."""
    arm = chain.arm or Arm()
    if index == 0 or (arm.fresh and arm.ablation == "shuffle" and by_layers):
        return chain.point_base, chain.point_base
    own = chain.own_masks and not (chain.arm and index == 1)
    before = paths.cycle(0 if arm.at_once else index - 1)
    previous = (chain.base if own else chain.ticket_base) / before
    return (previous if arm.carried else chain.point_base), previous


def _expected(runs: Runs, folder: epath.Path) -> Expected:
    """Of a cycle its best or last ticket, of a starting point any that it has kept."""
    run = runs.get(folder)
    found = [] if run is None else [seen for seen in run.names.values() if seen is not None]
    where = folder.name if run is None else run.where
    if not folder.name.isdigit():
        return Expected(found, f"starting point, a ticket of {where}")
    usual = (*paths.BESTS.values(), paths.LAST)
    return Expected([seen for seen in found if seen.name.name in usual], f"best or last ticket of {where}")


def _check_cycle(exam: Exam, chain: Chain, index: int, runs: Runs) -> Run:
    """The run, with the ticket whose mask it shrank."""
    run = runs[chain.base / paths.cycle(index)]
    by_layers = bool(run.recipe and run.recipe["start"]["layer_ratios"])
    folders = parents_of(chain, index, by_layers)
    wanted = {k: _expected(runs, f) for k, f in zip(("matching", "previous"), folders, strict=True)}
    everywhere = {seen.key: seen for other in runs.values() for seen in other.names.values() if seen}
    for where, seen in run.kinds(lambda seen: str(seen.meta.get("parents"))):
        for kind, which in wanted.items():
            digest = seen.meta.get("parents", {}).get(kind)
            _check_parent(exam, where, f"{kind} parent", digest, which, everywhere)
    named = [seen.meta.get("parents", {}) for seen in run.sound]
    found = [wanted["previous"].find(parents.get("previous")) for parents in named]
    sound = [seen for seen in [*found, *wanted["previous"].tickets] if seen is not None and seen.meta]
    run = run._replace(before=sound[0] if sound else None)
    if run.before is not None and run.fixed:
        _check_nested(exam, run, run.before)
    points = [wanted["matching"].find(parents.get("matching")) for parents in named]
    _check_rewound(exam, run, next((seen for seen in points if seen is not None and seen.meta), None))
    return run


def _check_parent(
    exam: Exam, where: str, kind: str, digest: str | None, wanted: Expected, everywhere: Mapping[str, Seen]
) -> None:
    if wanted.find(digest) is not None:
        exam.looked["parent"] += 1
        return
    other = everywhere.get(key_of(digest)) if digest else None
    if digest is None:
        told = "is not recorded"
    elif other is not None:
        told = f"is {other.where} ({digest[:16]})"
    else:
        told = f"{digest[:16]} is not here"
    known = (
        listed([f"{seen.name.name} is {seen.digest[:16]}" for seen in wanted.tickets]) or "there is none"
    )
    exam.fault(
        where,
        f"its {kind} {told}, expected the {wanted.called} ({known}): restore that ticket, or train this "
        "cycle and those after it again",
    )


def _check_nested(exam: Exam, run: Run, outer: Seen) -> None:
    """Nothing comes back that the parent's mask had pruned."""
    for where, seen in run.kinds(lambda seen: seen.mask):
        if seen.meta.get("pruning", {}).get("ablation") == "shuffle":
            continue
        if seen.shapes != outer.shapes:
            exam.fault(where, f"has masks of other layers or shapes than {outer.where}: train it again")
            continue
        back = {
            leaf: int(np.bitwise_count(own & ~outer.packed[leaf]).sum())
            for leaf, own in seen.packed.items()
        }
        parts = [f"{count:,} of {leaf}" for leaf, count in back.items() if count]
        if parts:
            exam.fault(
                where,
                f"its mask keeps weights that {outer.where} has pruned ({listed(parts)}): masks of a chain "
                "are nested; train this cycle and those after it again",
            )


def _check_rewound(exam: Exam, run: Run, point: Seen | None) -> None:
    """The ticket of step 0 is the rewind point under the mask, bit for bit."""
    start = run.names.get(paths.iteration(0))
    if start is None or start.meta is None or point is None or not run.fixed:
        return
    pruning, drawn = start.meta.get("pruning", {}), start.meta.get("weights", {})
    as_it_was = {"weights": "model", "scale_fan": "none"}
    if pruning.get("ablation") == "signs" or (drawn and drawn != as_it_was):
        return
    begun, source = tickets.read_ticket(start.name), tickets.read_ticket(point.name)
    masks = {leaf: mask for leaf, _, mask in masked(begun.params, begun.masks)}
    wanted = trees.named_leaves(source.params)
    wrong = {}
    for leaf, weight in trees.named_leaves(begun.params).items():
        same = np.where(masks.get(leaf, np.True_), wanted[leaf], np.zeros((), weight.dtype))
        if same.tobytes() != weight.tobytes():
            wrong[leaf] = int(np.count_nonzero(same != weight))
    if wrong:
        told = listed([f"{count:,} of {leaf}" for leaf, count in wrong.items()])
        exam.fault(
            start.where,
            f"should be {point.where} under its mask, bit for bit, and is not ({told} differ): this cycle "
            "was not rewound to where it says; train it again",
        )


def _check_point(exam: Exam, chain: Chain, runs: Runs) -> None:
    """All cycles start from the same weights."""
    if chain.arm is not None and chain.arm.carried:
        return
    first: dict[str, str] = {}
    for place in cycles(chain.base):
        for seen in runs[place].sound if place in runs else []:
            first.setdefault(seen.meta.get("parents", {}).get("matching") or "none", seen.where)
    if len(first) > 1:
        told = listed([f"{where} from {digest[:16]}" for digest, where in first.items()])
        exam.fault(
            exam.place(chain.base),
            f"its cycles start from different weights ({told}): rewind all to one ticket",
        )


def _check_network(exam: Exam, runs: Sequence[Run]) -> None:
    """One network and one rule for what is prunable, along the whole chain."""
    sound = [run.sound[0] for run in runs if run.sound]
    reference = {key: sound[0].meta.get(key) for key in SAME} if sound else {}
    for seen in sound[1:]:
        lines = records.difference(reference, {key: seen.meta.get(key) for key in SAME})
        if lines:
            exam.fault(
                seen.where,
                f"is of another network than {sound[0].where}: {listed(lines)}; a chain has one network: "
                "train it in a folder of its own",
            )
