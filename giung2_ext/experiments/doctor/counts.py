"""How many weights a recipe says that a mask keeps, where its settings determine it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from giung2_ext.core import allocate, structure, trees
from giung2_ext.core.method import Method
from giung2_ext.experiments.doctor.findings import Exam, listed
from giung2_ext.methods import rpg

Tree = Any
Recipe = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


class Expected(NamedTuple):
    counts: int | dict[str, int]  # of all layers together, or of every one
    why: str


def _every(shapes: Shapes) -> Tree:
    """All-True masks that take no memory."""
    return trees.nest({leaf: np.broadcast_to(np.True_, shape) for leaf, shape in shapes.items()})


def _named(tree: Tree) -> dict[str, int]:
    return {leaf: int(count) for leaf, count in trees.named_leaves(tree).items()}


def _patterned(shapes: Shapes, pattern: str) -> dict[str, int]:
    kept, of = structure.parse(pattern)
    return {leaf: int(np.prod(shape)) // of * kept for leaf, shape in shapes.items()}


def expected(
    recipe: Recipe, method: Method, step: int, shapes: Shapes, before: Mapping[str, int] | None
) -> Expected | None:
    """`before` is what the ticket keeps whose mask was shrunk, if it is known."""
    if method.settled is None:
        found = _start(recipe, shapes, before)
        moves = recipe["method"].get("threshold") == "global"  # scores compete with those of other layers
        if found and moves and isinstance(found.counts, dict):
            return Expected(sum(found.counts.values()), found.why)
        return found
    dense = recipe["masks"]["criterion"] == "none" and recipe["start"]["matching_ckpt"] is None
    return _final(recipe, shapes) if dense and method.settled(step) else None


def _start(recipe: Recipe, shapes: Shapes, before: Mapping[str, int] | None) -> Expected | None:
    """What the first mask keeps."""
    start, rule = recipe["start"], recipe["masks"]
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    if rule["criterion"] != "none":
        return _chosen(rule, shapes, size)
    if start["matching_ckpt"] is None:
        return Expected({leaf: int(np.prod(shape)) for leaf, shape in shapes.items()}, "nothing prunes it")
    if before is None:
        return None
    how = (start["rounding"], start["rounds"])
    if start["layer_ratios"]:
        alive = trees.nest({leaf: np.int32(count) for leaf, count in before.items()})
        counts = allocate.pruned_counts(_every(shapes), alive, start["layer_ratios"], *how)
        return Expected(_named(counts), _rule(f"layer_ratios={start['layer_ratios']}", start, before))
    ratio, alive_now = start["pruning_ratio"], sum(before.values())
    if ratio == 1:
        return Expected(dict(before), "nothing is pruned of its parent's mask")
    if start["legacy_scores"]:
        return None  # ties stay
    kept = allocate.keep_count(ratio, alive_now, "pruning_ratio", *how)
    return Expected(kept, _rule(f"pruning_ratio={ratio:g}", start, before))


def _rule(ratio: str, start: Mapping[str, Any], before: Mapping[str, int]) -> str:
    often = f", {start['rounds']} times" if start["rounds"] > 1 else ""
    return f"{ratio}{often}, rounding={start['rounding']}, of the {sum(before.values()):,} of its parent"


def _chosen(rule: Mapping[str, Any], shapes: Shapes, size: int) -> Expected:
    if rule["structure"] != "none":
        return Expected(_patterned(shapes, rule["structure"]), f"masks.structure={rule['structure']}")
    why = f"masks.density={rule['density']:g} ({rule['allocation']}) of {size:,}"
    if rule["allocation"] == "global":
        return Expected(allocate.keep_count(rule["density"], size, "density"), why)
    return Expected(_named(allocate.layer_counts(_every(shapes), rule["density"], rule["allocation"])), why)


def _final(recipe: Recipe, shapes: Shapes) -> Expected | None:
    """What is left of a dense start when a method has come to its density."""
    options, size = recipe["method"], sum(int(np.prod(shape)) for shape in shapes.values())
    why = f"method.density={options.get('density', 1):g} of {size:,}"
    if options["name"] == "rpg":
        times = rpg.make_times(recipe["optim"]["ni"], options["every"], options["stop"], options["ramp"])
        counts = rpg.kept_counts(size, options["density"], times, options["off_by_one"])
        return Expected(int(counts[-1]), why)
    if options["name"] not in ("gradual", "ste"):
        return None
    if options["structure"] != "none":
        return Expected(sum(_patterned(shapes, options["structure"]).values()), why)
    return Expected(allocate.keep_count(options["density"], size, "density"), why)


def structure_of(recipe: Recipe, method: Method, step: int) -> str:
    """The n:m pattern that a mask of this step has, or none."""
    if method.settled is None:
        rule = recipe["masks"]
        fixed = method.due is None and not method.latent and rule["criterion"] != "none"
        return rule["structure"] if fixed else "none"
    return recipe["method"].get("structure", "none") if method.settled(step) else "none"


def check_structure(exam: Exam, where: str, pattern: str, masks: Mapping[str, np.ndarray]) -> None:
    """Every group of m keeps n."""
    if pattern == "none":
        return
    kept, _ = structure.parse(pattern)
    wrong = {
        leaf: int(np.count_nonzero(structure.grouped(mask, pattern).sum(-2) != kept))
        for leaf, mask in masks.items()
    }
    told = listed([f"{count:,} of {leaf}" for leaf, count in wrong.items() if count])
    if told:
        exam.fault(
            where,
            f"its mask is not {pattern} everywhere: another number of weights than {kept} is kept in some "
            f"groups ({told}); what computes it so would be wrong: train this run again",
        )


def check(exam: Exam, where: str, wanted: Expected | None, layers: Mapping[str, int]) -> None:
    """Compares what a mask keeps with what it should."""
    if wanted is None:
        return
    if isinstance(wanted.counts, int):
        kept = sum(layers.values())
        if kept == wanted.counts:
            return
        told = f"keeps {kept:,} weights, expected {wanted.counts:,}"
    else:
        names = sorted(wanted.counts.keys() | layers.keys())
        wrong = [name for name in names if layers.get(name) != wanted.counts.get(name)]
        if not wrong:
            return
        told = "keeps another number of weights: " + listed(
            [f"{layers.get(n, 0):,} of {n}, expected {wanted.counts.get(n, 0):,}" for n in wrong]
        )
    exam.fault(where, f"{told} ({wanted.why}): this mask is not the recipe's; train this run again")
