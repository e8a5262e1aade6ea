"""What reaches the products of a network: its values on one image, and which of them an image may change.

The values are those of one compiled pass. What an image may change is found from the weights alone, on
the host: it enters a product's output where a weight is not 0, and ends where something is multiplied by
0. Never too little is found; too much where a place of a channel is not changed and others are.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from giung2_ext.core import programs
from giung2_ext.core.channels import Labelling
from giung2_ext.core.programs import Form, form_of

Leaves = dict[str, np.ndarray]


class Seen(NamedTuple):
    """Of what a product sums over, one by one."""

    unused: np.ndarray  # bool: its weights are 0
    varies: np.ndarray  # bool: an image may change it
    low: np.ndarray  # its values on the one image
    high: np.ndarray


def observer(program: Any, network: Labelling, image: Any) -> Callable[[Leaves], list[Seen]]:
    """leaves -> what reaches every product of `program(*leaves, image)`; compiled once."""
    run = jax.jit(lambda leaves: _values(program, leaves, image))
    return lambda leaves: _look(program, network, leaves, jax.device_get(run(list(leaves.values()))), image)


def _values(program: Any, leaves: list[Array], image: Any) -> list[Array]:
    """What products sum over, and what scales data and is none, in the order of the program."""
    found = []

    def rule(eqn: Any, operands: list[Any]) -> list[Any]:
        values, data = ([operand[i] for operand in operands] for i in (0, 1))
        form = form_of(eqn, data)
        if form is not None:
            found.append(values[form.data])
        elif _scales(eqn, data):
            found.append(values[data.index(False)])
        results = eqn.primitive.bind(*values, **eqn.params)
        return [
            (result, any(data)) for result in (results if eqn.primitive.multiple_results else [results])
        ]

    programs.walk(
        program, [*((leaf, False) for leaf in leaves), (image, True)], rule, lambda value: (value, False)
    )
    return found


def _scales(eqn: Any, data: list[bool]) -> bool:
    return eqn.primitive.name == "mul" and sorted(data) == [False, True]


def _look(
    program: Any, network: Labelling, leaves: Leaves, values: list[np.ndarray], image: Any
) -> list[Seen]:
    """Walks with an array of bool for all that is made from the image and `None` for the rest."""
    seen: list[Seen] = []
    coming = iter(values)

    def rule(eqn: Any, operands: list[Any]) -> list[Any]:
        data = [operand is not None for operand in operands]
        shapes = [out.aval.shape for out in eqn.outvars]
        if not any(data):
            return [None] * len(shapes)
        form = form_of(eqn, data)
        if form is not None:
            used = _used(eqn, form, leaves.get(network.products[len(seen)].leaf))
            value, varies = (
                np.moveaxis(array, form.summed, 0).reshape(len(used), -1)
                for array in (next(coming), operands[form.data])
            )
            changed = np.asarray(varies.any(1))
            seen.append(Seen(np.asarray(~used.any(1)), changed, value.min(1), value.max(1)))
            return [_along(used[changed].any(0), form.made, shapes[0])]
        if _scales(eqn, data):
            return [np.logical_and(operands[data.index(True)], np.asarray(next(coming)) != 0)]
        return [_spread(eqn, operands, shape) for shape in shapes]

    programs.walk(program, [*[None] * len(leaves), np.ones(image.shape, bool)], rule, lambda value: None)
    return seen


def _used(eqn: Any, form: Form, leaf: np.ndarray | None) -> np.ndarray:
    """[inputs, outputs] of a kernel: whether there is a weight between them; always, of no leaf."""
    if leaf is None:
        shape = eqn.invars[1 - form.data].aval.shape
        return np.ones((shape[form.row], shape[form.column]), bool)
    kernel = np.moveaxis(leaf, (form.row, form.column), (0, 1))
    return (kernel != 0).any(tuple(range(2, kernel.ndim)))


def _along(vector: np.ndarray, axis: int, shape: tuple[int, ...]) -> np.ndarray:
    """Along one axis of an array that is the same along the others."""
    return np.broadcast_to(vector.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)


def _spread(eqn: Any, varying: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Where an image may change the result of what is no product."""
    name, params = eqn.primitive.name, eqn.params
    pairs = zip(eqn.invars, varying, strict=True)
    known = [np.zeros(atom.aval.shape, bool) if v is None else v for atom, v in pairs]
    first, axes = known[0], range(len(shape))
    if name in programs.ELEMENTWISE:
        return functools.reduce(np.logical_or, (np.broadcast_to(v, shape) for v in known))
    if name in ("reshape", "squeeze"):
        return first.reshape(shape)
    if name == "broadcast_in_dim":
        sizes = dict(zip(params["broadcast_dimensions"], first.shape, strict=True))
        return np.broadcast_to(first.reshape([sizes.get(i, 1) for i in axes]), shape)
    if name == "transpose":
        return first.transpose(params["permutation"])
    if name == "concatenate":
        return np.concatenate(known, params["dimension"])
    if name == "stack":
        return np.stack(known, params["axis"])
    if name == "slice":
        steps = params["strides"] or [1] * first.ndim
        bounds = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
        return first[tuple(slice(*bound) for bound in bounds)]
    if name == "pad":
        ends = [pair for pair in programs.appended(params) if pair is not None]
        if len(ends) == first.ndim:
            return np.pad(first, ends) | known[1]
    if name in programs.REDUCTIONS:
        return first.any(params["axes"])
    if name in programs.WINDOWS:  # anywhere along the axes that they move on
        moved = tuple(i for i, single in enumerate(programs.untouched(params)) if not single)
        return np.broadcast_to(first.any(moved, keepdims=True), shape)
    return np.full(shape, any(v.any() for v in known))
