"""A run's folder: do its names, its recipe, its tickets and its result belong together?"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from giung2_ext.core.method import Method
from giung2_ext.experiments.building import build_method
from giung2_ext.experiments.config import Config, with_defaults
from giung2_ext.experiments.doctor import counts, ticket
from giung2_ext.experiments.doctor.findings import Exam, listed
from giung2_ext.experiments.doctor.seen import Seen, key_of
from giung2_ext.storage import paths, records

MADE = {"imported", "compacted", "like"}  # in the lineage of tickets that no run has trained


class Run(NamedTuple):
    where: str
    folder: epath.Path
    names: dict[str, Seen | None]  # its checkpoints; None: dangling
    recipe: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    method: Method | None = None
    before: Seen | None = None  # the ticket whose mask was shrunk, where it is known

    @property
    def sound(self) -> list[Seen]:
        return [seen for seen in self.names.values() if seen is not None and seen.meta is not None]

    @property
    def fixed(self) -> bool:
        """Whether one mask holds for the whole run, and weights are the parameters under it."""
        return self.method is not None and self.method.due is None and not self.method.latent

    def kinds(self, kind: Callable[[Seen], Any]) -> Iterator[tuple[str, Seen]]:
        """The first ticket of every kind; the place is the run where all are of one."""
        first: dict[Any, Seen] = {}
        for seen in self.sound:
            first.setdefault(kind(seen), seen)
        for seen in first.values():
            yield (self.where if len(first) == 1 else seen.where), seen


def is_run(folder: epath.Path) -> bool:
    return any((folder / name).exists() for name in (records.CONFIG, records.RESULT, paths.STATES)) or any(
        folder.glob("*.ckpt")
    )


def read(exam: Exam, folder: epath.Path) -> Run:
    """Reads everything that a run has written of itself, and examines its tickets."""
    where = exam.place(folder)
    exam.looked["run"] += 1
    names = {name.name: ticket.examine(exam, name) for name in sorted(folder.glob("*.ckpt"))}
    run = Run(where, folder, names)
    with exam.part(exam.place(folder / records.CONFIG)):
        recorded = records.recorded_recipe(folder)
        if recorded is not None:
            recipe = with_defaults(recorded)
            run = run._replace(recipe=recipe, method=build_method(Config(recipe)))
    for name in (records.CONFIG, records.RESULT):  # for other hosts to compare
        if (folder / name).exists():
            content = (folder / name).read_bytes()
            exam.digests[exam.place(folder / name)] = hashlib.sha256(content).hexdigest()
    with exam.part(exam.place(folder / records.RESULT)):
        return run._replace(result=records.read_result(folder))
    return run


def check(exam: Exam, run: Run) -> None:
    if run.result is not None:
        with exam.part(exam.place(run.folder / records.RESULT)):
            _check_result(exam, run, run.result)
    elif run.recipe is not None:
        exam.note(run.where, "is not finished: the command that began it goes on with it")
    aside = list((run.folder / paths.DAMAGED).glob("*"))
    if aside:
        exam.note(run.where, f"{len(aside)} damaged states were set aside in {paths.DAMAGED}/ before")
    if run.recipe is None:
        made = MADE.intersection(*({*seen.meta, *seen.meta.get("parents", {})} for seen in run.sound))
        if run.names and not made:
            exam.note(
                run.where, f"has no readable {records.CONFIG}: its tickets are compared with no recipe"
            )
        return
    with exam.part(run.where):
        _check_lineage(exam, run, run.recipe)
        _check_masks(exam, run)


def _check_result(exam: Exam, run: Run, result: Mapping[str, Any]) -> None:
    """result.json speaks of the tickets that the names stand for."""
    best, wrong = paths.best(result["selected_by"]), []
    for which, name in (("best", best), ("last", paths.LAST)):
        said = result["tickets"][which]
        if name not in run.names:
            missing = exam.place(run.folder / name)
            exam.fault(missing, "is missing, and the run is finished: restore it from a copy")
        seen = run.names.get(name)
        if seen is not None and key_of(said) != seen.key:
            wrong.append(f"its {which} ticket is {said[:16]}, {name} is {seen.digest[:16]}")
    last = run.names.get(paths.LAST)
    if last is not None and last.meta is not None and not wrong:
        for key in ("kept", "prunable", "parameters", "layers", "parents", "seed"):
            if key in result and result[key] != last.meta.get(key):
                wrong.append(f"{key} is {result[key]}, {paths.LAST} says {last.meta.get(key)}")
        if result["steps"] != last.meta.get("step"):
            wrong.append(f"it is of step {result['steps']}, {paths.LAST} of step {last.meta.get('step')}")
    _check_scores(exam, exam.place(run.folder / records.RESULT), result["scores"])
    if wrong:
        exam.fault(
            exam.place(run.folder / records.RESULT),
            f"is the result of other tickets than those beside it: {listed(wrong)}; tables made of it are "
            "wrong: restore the one of this run, or remove it and run the command again",
        )


def _check_scores(exam: Exam, where: str, scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Accuracies are the counts that stand beside them."""
    for which, split, own in records.miscounted(scores):
        counted = own["correct"] / own["seen"]
        exam.fault(
            where,
            f"says accuracy {own['accuracy']:.4f} of {which} on {split}, where {own['correct']:,} "
            f"of {own['seen']:,} are right ({counted:.4f}): it was edited: evaluate the ticket",
        )


COMPARED = {
    "seed": "seed",
    "parents.matching": "start.matching_ckpt",
    "parents.previous": "start.previous_ckpt",
    "pruning_ratio": "start.pruning_ratio",
    "pruning.layer_ratios": "start.layer_ratios",
    "pruning.rounding": "start.rounding",
    "pruning.rounds": "start.rounds",
    "pruning.ablation": "start.ablation",
    "prunable_rule": "masks.prunable",
    "precision": "precision",
}
CHOICES = ("model", "data", "method", "masks")
"""Of a ticket's lineage and of the recipe, what must agree; choices are compared option by option"""


def _check_lineage(exam: Exam, run: Run, recipe: Mapping[str, Any]) -> None:
    """Tickets carry the lineage that the recipe gives them."""
    wanted = records.flatten(recipe)

    def differences(seen: Seen) -> list[str]:
        found = records.flatten(seen.meta)
        pairs = {key: field for key, field in COMPARED.items() if key in found or field.endswith("_ckpt")}
        pairs |= {key: key for key in found if key.partition(".")[0] in CHOICES}
        return [
            f"{field} is {found.get(key)}, the recipe's {wanted.get(field)}"
            for key, field in pairs.items()
            if found.get(key) != wanted.get(field)
        ]

    for where, seen in run.kinds(lambda seen: tuple(differences(seen))):
        other = differences(seen)
        if other:
            exam.fault(
                where,
                f"holds a ticket of another run than {records.CONFIG} tells of: {listed(other)}; "
                "put the run's own ticket back, or train it again in another folder",
            )


def _check_masks(exam: Exam, run: Run) -> None:
    """One mask where it is fixed, and as many weights in it as the recipe says."""
    assert run.recipe is not None
    assert run.method is not None
    before = run.before.layers if run.before is not None else None
    if run.fixed and len({seen.mask for seen in run.sound}) > 1:
        names = listed([f"{seen.name.name} keeps {sum(seen.layers.values()):,}" for seen in run.sound])
        exam.fault(
            run.where,
            f"{run.recipe['method']['name']} trains under one mask, and the tickets have several "
            f"({names}): train this run again",
        )
    moving = run.method.settled is not None  # with the step
    for where, seen in run.kinds(lambda seen: (seen.mask, seen.meta.get("step") if moving else 0)):
        step = seen.meta.get("step") or 0
        wanted = counts.expected(run.recipe, run.method, step, seen.shapes, before)
        counts.check(exam, where, wanted, seen.layers)
        counts.check_structure(exam, where, counts.structure_of(run.recipe, run.method, step), seen.masks())
