"""Programs that JAX has traced: interpreting them, and what is to know of the operations in them."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jax.extend import core as jex

CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2")
ELEMENTWISE = (
    *("add", "sub", "mul", "div", "rem", "neg", "abs", "sign", "max", "min", "clamp", "add_any", "square"),
    *("exp", "exp2", "expm1", "log", "log1p", "pow", "integer_pow", "sqrt", "rsqrt", "cbrt", "sin", "cos"),
    *("tan", "tanh", "logistic", "erf", "erfc", "floor", "ceil", "round", "is_finite", "reduce_precision"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "not", "select_n", "convert_element_type"),
    *("copy", "stop_gradient"),
)
REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min")
WINDOWS = ("reduce_window_sum", "reduce_window_max")


class Form(NamedTuple):
    """Which axes of its operands a product is about."""

    data: int  # the operand that is data; the other one is the kernel
    summed: int  # axis of the data
    row: int  # axes of the kernel
    column: int
    made: int  # axis of the result


def walk(
    program: Any,
    inputs: Sequence[Any],
    rule: Callable[[Any, list[Any]], list[Any]],
    constant: Callable[[Any], Any],
) -> list[Any]:
    """Interprets a program, and those that it calls, by `rule(equation, operands)`; returns its outputs."""
    jaxpr, consts = getattr(program, "jaxpr", program), getattr(program, "consts", ())
    given = (*map(constant, consts), *inputs)
    made = dict(zip((*jaxpr.constvars, *jaxpr.invars), given, strict=True))

    def read(atom: Any) -> Any:
        return constant(atom.val) if isinstance(atom, jex.Literal) else made[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if eqn.primitive.name in CALLS:
            called = eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]
            results = walk(called, operands, rule, constant)
        else:
            results = rule(eqn, operands)
        made.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def form_of(eqn: Any, data: Sequence[bool]) -> Form | None:
    """Of a product of data with a kernel that has one axis of inputs and one of outputs; else `None`."""
    name, params = eqn.primitive.name, eqn.params
    if name not in ("conv_general_dilated", "dot_general") or sorted(data) != [False, True]:
        return None
    first = list(data).index(True)
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        whole = params["feature_group_count"] == params["batch_group_count"] == 1 and not first
        axes = numbers.lhs_spec[1], numbers.rhs_spec[1], numbers.rhs_spec[0], numbers.out_spec[1]
        return Form(0, *axes) if whole else None
    summed, batched = params["dimension_numbers"]
    if batched[0] or len(summed[0]) != 1 or len(eqn.invars[1 - first].aval.shape) != 2:
        return None
    row = summed[1 - first][0]
    return Form(first, summed[first][0], row, 1 - row, 0 if first else len(eqn.outvars[0].aval.shape) - 1)


def untouched(params: Any) -> list[bool]:
    """The axes along which windows are single entries."""
    kinds = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    steps = zip(*(params[kind] for kind in kinds), params["padding"], strict=True)
    return [tuple(step[:-1]) == (1, 1, 1, 1) and tuple(step[-1]) == (0, 0) for step in steps]


def regrouped(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The sizes that a reshape makes of which, as few at a time as there can be; none is 1."""
    old, new = list(before), list(after)
    while old:
        some, made = [old.pop(0)], [new.pop(0)]
        while (gap := math.prod(some) - math.prod(made)) != 0:
            if gap < 0:
                some.append(old.pop(0))
            else:
                made.append(new.pop(0))
        yield some, made


def appended(params: Any) -> list[tuple[int, int] | None]:
    """How much a pad puts at the ends of each axis; `None` where it cuts, or pads within."""
    config = params["padding_config"]
    return [None if inner or low < 0 or high < 0 else (low, high) for low, high, inner in config]
