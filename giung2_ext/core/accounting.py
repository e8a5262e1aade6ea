"""What a network costs: weights and FLOPs of an example, dense and sparse, leaf by leaf.

Read off the traced program: every convolution and matrix product is charged to the one parameter it
was made from, two operations for each use of each of its weights; products of two activations
(attention) belong to none. A sparse leaf costs its kept fraction, a leaf without a mask its whole;
additions, normalisations and nonlinearities are not counted, as in the literature. Uses at padded
borders count, so ResNet-50 at 224x224 has 4.09e9 multiply-adds.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from giung2_ext.core import programs, trees

Tree = Any
DATA = "data"  # made from the example; other values are a parameter's name, or `None` for constants


class Uses(NamedTuple):
    of: Mapping[str, int]
    """How often each weight of a parameter is used in a product, for one example"""
    unowned: int
    """Multiply-adds between activations"""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One parameter leaf under its mask; `None` in `kept` where it is not prunable."""

    name: str
    shape: tuple[int, ...]
    size: int
    kept: int | None
    flops: int  # dense, of one example
    flops_kept: int


class Totals(NamedTuple):
    """Weights or FLOPs, dense and sparse, by two denominators."""

    prunable: int  # of the leaves with a mask
    kept: int  # of those, what their masks keep
    all: int  # of the whole network
    all_kept: int


def uses(forward: Callable[[Tree, Any], Any], params: Tree, example: Any) -> Uses:
    """Traces `forward(params, example)`, where `example` is a batch of one; shapes suffice."""
    closed = jax.make_jaxpr(forward)(params, example)
    named = trees.named_leaves(params)
    inputs: list[str | None] = [*named, *[DATA] * (len(closed.jaxpr.invars) - len(named))]
    found: dict[str | None, int] = {}

    def rule(eqn: Any, operands: list[str | None]) -> list[str | None]:
        if _opaque(eqn):
            raise NotImplementedError(f"cannot count a network with a {eqn.primitive.name}")
        if DATA in operands and (work := _multiply_adds(eqn)):
            owner = next((operand for operand in operands if operand not in (DATA, None)), None)
            found[owner] = found.get(owner, 0) + work
        return [_blend(eqn, operands)] * len(eqn.outvars)

    programs.walk(closed, inputs, rule, lambda value: None)
    sizes = {name: math.prod(leaf.shape) for name, leaf in named.items()}
    for name, work in found.items():
        if name is not None and work % sizes[name]:
            raise NotImplementedError(f"cannot count a network that uses {name!r} in part")
    of = {name: found.pop(name) // sizes[name] for name in named if name in found}
    return Uses(of, sum(found.values()))


def _opaque(eqn: Any) -> bool:
    """Whether it runs a program of its own, not once: a loop, a branch, a part on every device."""
    name = eqn.primitive.name
    within = {"jaxpr", "call_jaxpr"}.intersection(eqn.params)
    return name in ("scan", "while", "cond") or (bool(within) and not name.startswith("reduce"))


def _blend(eqn: Any, operands: list[str | None]) -> str | None:
    """What an example goes into is data; else the largest parameter that went in (cast, masked, scaled)."""
    if DATA in operands:
        return DATA
    sized = sorted(zip(operands, eqn.invars, strict=True), key=lambda pair: -math.prod(pair[1].aval.shape))
    return next((operand for operand, _ in sized if operand is not None), None)


def _multiply_adds(eqn: Any) -> int:
    shapes = [atom.aval.shape for atom in eqn.invars]
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return math.prod(eqn.outvars[0].aval.shape) * math.prod(shapes[0][axis] for axis in contracted)
    if eqn.primitive.name == "conv_general_dilated":
        out_axis = eqn.params["dimension_numbers"].rhs_spec[0]
        return math.prod(eqn.outvars[0].aval.shape) * math.prod(shapes[1]) // shapes[1][out_axis]
    return 0


def layers(params: Tree, kept: Mapping[str, int], used: Uses) -> list[Layer]:
    """Every leaf, in flattening order; `kept` has the surviving weights of the prunable ones."""
    rows = []
    for name, leaf in trees.named_leaves(params).items():
        size, each, count = math.prod(leaf.shape), 2 * used.of.get(name, 0), kept.get(name)
        alive = size if count is None else count
        rows.append(Layer(name, leaf.shape, size, count, each * size, each * alive))
    return rows


def totals_of(prunable: int, kept: int, everything: int) -> Totals:
    return Totals(prunable, kept, everything, everything - prunable + kept)


def totals(rows: list[Layer], used: Uses) -> tuple[Totals, Totals]:
    """(weights, FLOPs of one example)."""
    masked = [row for row in rows if row.kept is not None]
    weights = totals_of(
        sum(row.size for row in masked),
        sum(row.kept or 0 for row in masked),
        sum(row.size for row in rows),
    )
    flops = totals_of(
        sum(row.flops for row in masked),
        sum(row.flops_kept for row in masked),
        sum(row.flops for row in rows) + 2 * used.unowned,
    )
    return weights, flops


class Span(NamedTuple):
    """Steps of a run under one mask."""

    steps: int  # that do not end in an update of the mask
    updates: int
    kept: Mapping[str, int]


def spans(steps: int, moves: Sequence[Mapping[str, Any]], kept: Mapping[str, int]) -> list[Span]:
    """Of a run of `steps` steps that ends with `kept`, from what its updates did (`masks.jsonl`)."""
    found, at = [], 0
    for row in moves:
        before = {name: now - grown + dropped for name, (now, grown, dropped, _) in row["layers"].items()}
        found.append(Span(row["step"] - at - 1, 1, before))
        at = row["step"]
    return [*found, Span(steps - at, 0, kept)]


def training(params: Tree, used: Uses, spanned: Sequence[Span], dense_grads: str) -> tuple[int, int]:
    """FLOPs of training on one example a step: (sparse, dense), as Evci et al. 2020 count them.

    A step is a forward pass and twice as much backward; where gradients of pruned weights are needed (in
    all steps, or due ones, `Method.dense_grads`) a third of it is dense. Selections and decompositions are
    not counted.
    """
    dense = sum(row.flops for row in layers(params, {}, used)) + 2 * used.unowned
    total = 0
    for steps, updates, kept in spanned:
        sparse = sum(row.flops_kept for row in layers(params, kept, used)) + 2 * used.unowned
        exact, grown = 3 * sparse, 2 * sparse + dense
        total += steps * (grown if dense_grads == "all" else exact)
        total += updates * (exact if dense_grads == "no" else grown)
    return total, 3 * dense * sum(steps + updates for steps, updates, _ in spanned)


def describe_training(sparse: int, dense: int) -> str:
    return f"FLOPs of training: {sparse:.3g} ({sparse / dense:.4f} of a dense network's)"


def _describe(totals: Totals, prunable: str) -> str:
    return (
        f"{totals.kept:,} of {totals.prunable:,} {prunable} ({totals.kept / totals.prunable:.4f}), "
        f"{totals.all_kept:,} of all {totals.all:,} ({totals.all_kept / totals.all:.4f})"
    )


def describe_weights(weights: Totals) -> str:
    """What is left, and the density by both denominators."""
    return f"weights: {_describe(weights, 'prunable')}"


def describe_flops(flops: Totals) -> str:
    """What is left, and the fraction by both denominators."""
    return f"FLOPs of an image: {_describe(flops, 'in prunable layers')}"
