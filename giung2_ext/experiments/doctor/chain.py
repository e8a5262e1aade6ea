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
from giung2_ext.experiments.doctor.seen import Seen, key_of, masked
from giung2_ext.experiments.lottery import ARMS, Chain, parents
from giung2_ext.storage import paths, records, tickets

Tree = Any
Runs = dict[epath.Path, Run]
SAME = ("model", "prunable_rule", "num_classes", "image_shape")


class Expected(NamedTuple):
    """The tickets that may be a parent, and how they are called in a finding."""

    tickets: list[Seen]
    called: str
    kept: list[Seen]  # of the same run, those that imp.py takes no cycle from too

    def find(self, digest: str | None) -> Seen | None:
        """The first of that digest, rather one of the usual ones."""
        return next((s for s in self.tickets + self.kept if digest and s.key == key_of(digest)), None)


def is_chain(folder: epath.Path) -> bool:
    """Whether there are cycles below, one trial's or several, or only those of an arm."""
    bases = list(paths.trial_bases(folder).values())
    return any(paths.cycles(base) or any(paths.cycles(base / arm) for arm in ARMS) for base in bases)


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
    places = [place for chain in chains for place in (chain.base, *paths.cycles(chain.base))]
    runs: Runs = {place: runs_of.read(exam, place) for place in places if runs_of.is_run(place)}
    for chain in chains:
        for place in paths.cycles(chain.base):
            if place in runs:
                with exam.part(runs[place].where):
                    runs[place] = _check_cycle(exam, chain, int(place.name), runs)
        with exam.part(exam.place(chain.base)):
            _check_point(exam, chain, runs)
    _check_network(exam, list(runs.values()))
    for run in runs.values():
        runs_of.check(exam, run)
    shared = sorted((folder / paths.CHAIN_STATES).glob("*"))
    for run in runs.values():
        state.examine(exam, run.folder / paths.STATES, [run])
    for place in shared:
        state.examine(exam, place, list(runs.values()))
    _note_unseen(exam, folder, list(runs.values()))


def _note_unseen(exam: Exam, folder: epath.Path, runs: Sequence[Run]) -> None:
    """What could not be looked at is said."""
    fixed = [run for run in runs if run.fixed and paths.is_cycle(run.folder)]
    unseen = [run.where for run in fixed if paths.iteration(0) not in run.names]
    if unseen:
        exam.note(
            exam.place(folder),
            f"whether weights were rewound cannot be seen in {listed(unseen)}: no ticket of step 0 "
            "is there (--periodic_ckpt=true keeps it)",
        )


def _expected(runs: Runs, folder: epath.Path, bases: Sequence[epath.Path]) -> Expected:
    """Of a cycle its best or last ticket, of a starting point, in a base, any that it has kept."""
    run = runs.get(folder)
    found = [] if run is None else [seen for seen in run.names.values() if seen is not None]
    where = folder.name if run is None else run.where
    if folder in bases:
        return Expected(found, f"starting point, a ticket of {where}", [])
    names = (*paths.BESTS.values(), paths.LAST)
    usual = [seen for seen in found if seen.name.name in names]
    return Expected(usual, f"best or last ticket of {where}", found)


def _check_cycle(exam: Exam, chain: Chain, index: int, runs: Runs) -> Run:
    """The run, with the ticket whose mask it shrank."""
    run = runs[chain.base / paths.cycle(index)]
    by_layers = bool(run.recipe and run.recipe["start"]["layer_ratios"])
    folders = parents(chain, index, by_layers)
    bases = (chain.base, chain.point_base, chain.ticket_base)
    wanted = {k: _expected(runs, f, bases) for k, f in zip(("matching", "previous"), folders, strict=True)}
    everywhere = {seen.key: seen for other in runs.values() for seen in other.names.values() if seen}
    for where, seen in run.kinds(lambda seen: str(seen.meta.get("parents"))):
        for kind, which in wanted.items():
            _check_parent(exam, where, f"{kind} parent", _parents(seen).get(kind), which, everywhere)
    named = [_parents(seen) for seen in run.sound]
    found = [wanted["previous"].find(own.get("previous")) for own in named]
    sound = [seen for seen in [*found, *wanted["previous"].tickets] if seen is not None and seen.meta]
    run = run._replace(before=sound[0] if sound else None)
    if run.before is not None and run.fixed:
        _check_nested(exam, run, run.before)
    points = [wanted["matching"].find(own.get("matching")) for own in named]
    _check_rewound(exam, run, next((seen for seen in points if seen is not None and seen.meta), None))
    return run


def _parents(seen: Seen) -> dict[str, str]:
    """Digests; where no previous checkpoint was named, the matching one is that too."""
    found = (seen.meta or {}).get("parents", {})
    return {"previous": found["matching"]} | found if "matching" in found else found


def _check_parent(
    exam: Exam, where: str, kind: str, digest: str | None, wanted: Expected, everywhere: Mapping[str, Seen]
) -> None:
    found = wanted.find(digest)
    if found is not None:
        exam.looked["parent"] += 1
        if found not in wanted.tickets:
            exam.note(where, f"its {kind} is {found.where}, not the {wanted.called}")
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
    exam.looked["rewinding"] += 1
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
    for place in paths.cycles(chain.base):
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
