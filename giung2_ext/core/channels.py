"""Which entries of a network's leaves are one channel, read off its traced program.

Every entry along every axis of every leaf has a label. Labels meet where arrays are joined place by
place, and where a product sums over them; what met is one channel. All its entries can be taken out of
all leaves together: a network built that much smaller computes what this one does without the channel.
Channel 0 is what must stay: the image and its pixels, the logits, and whatever enters an operation that
is not known here to keep channels apart. A flattened map has each channel in many rows of its dense
layer; the zeros that a shortcut appends are 0, and so are the channels that they are added to.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from giung2_ext.core import programs, trees
from giung2_ext.core.programs import Form

Tree = Any
Axes = tuple[np.ndarray, ...]  # labels along each axis


class Product(NamedTuple):
    """A convolution or matrix product of data with a kernel."""

    leaf: str  # "" where the kernel is not a leaf as it is
    row: int  # the kernel's axis of inputs
    rows: np.ndarray  # what it sums over
    columns: np.ndarray  # what it makes


class Labelling(NamedTuple):
    size: int  # how many numbers there are
    of: dict[str, Axes]  # the channels of every leaf
    products: list[Product]  # in the order in which they are made


def trace(program: Any, leaves: Tree) -> Labelling:
    """The channels of `program(*leaves, image)`, traced on one image."""
    labels = _Labels()
    named = trees.named_leaves(leaves)
    of = {name: labels.fresh(leaf.shape) for name, leaf in named.items()}
    image = program.in_avals[-1].shape
    inputs = [_Array(axes, leaf=name) for name, axes in of.items()]
    inputs.append(_Array(_stay(image), data=True))
    outputs = programs.walk(program, inputs, labels.rule, lambda value: _Array(_stay(np.shape(value))))
    labels.keep(*(axis for output in outputs for axis in output.axes))
    channel = labels.settle()
    products = [p._replace(rows=channel[p.rows], columns=channel[p.columns]) for p in labels.products]
    channels = {name: tuple(channel[axis] for axis in axes) for name, axes in of.items()}
    return Labelling(labels.count, channels, products)


class _Array(NamedTuple):
    axes: Axes
    data: bool = False  # made from the image
    leaf: str = ""  # the leaf that it is, if it is one


def _stay(shape: Sequence[int]) -> Axes:
    return tuple(np.zeros(size, int) for size in shape)


class _Labels:
    """Hands out labels and notes which of them meet."""

    def __init__(self) -> None:
        self.count = 1
        self.met: list[tuple[np.ndarray, np.ndarray]] = []
        self.products: list[Product] = []

    def fresh(self, shape: Sequence[int]) -> Axes:
        ends = self.count + np.cumsum([0, *shape])
        self.count = int(ends[-1])
        return tuple(np.arange(a, b) for a, b in itertools.pairwise(ends))

    def keep(self, *axes: np.ndarray) -> None:
        self.met += [(axis, np.zeros_like(axis)) for axis in axes]

    def settle(self) -> np.ndarray:
        """The channel of every label: the lowest label that it met, through any others."""
        channel = np.arange(self.count)
        a, b = (np.concatenate(side) for side in zip(*self.met, strict=True))
        while (channel[a] != channel[b]).any():
            low = np.minimum(channel[a], channel[b])
            np.minimum.at(channel, channel[a], low)
            np.minimum.at(channel, channel[b], low)
            while (channel != channel[channel]).any():
                channel = channel[channel]
        return channel

    def rule(self, eqn: Any, operands: list[_Array]) -> list[_Array]:
        name, data = eqn.primitive.name, [operand.data for operand in operands]
        shapes = [out.aval.shape for out in eqn.outvars]
        form = programs.form_of(eqn, data)
        if name == "convert_element_type":
            return operands
        if form is not None:
            axes = self._product(eqn, form, operands)
        elif name in programs.ELEMENTWISE:
            axes = self._elementwise(shapes[0], operands)
        elif name in RULES:
            axes = RULES[name](self, eqn.params, shapes[0], operands)
        else:
            self.keep(*(axis for operand in operands for axis in operand.axes))
            return [_Array(_stay(shape), any(data)) for shape in shapes]
        return [_Array(tuple(axes), any(data))]

    def _product(self, eqn: Any, form: Form, operands: list[_Array]) -> list[np.ndarray]:
        data, kernel = operands[form.data], operands[1 - form.data]
        rows, columns = kernel.axes[form.row], kernel.axes[form.column]
        self.met.append((data.axes[form.summed], rows))
        if not kernel.leaf:
            self.keep(rows, columns)
        self.products.append(Product(kernel.leaf, form.row, rows, columns))
        left = [axis for i, axis in enumerate(data.axes) if i != form.summed]
        if eqn.primitive.name == "dot_general":
            return [*left[: form.made], columns, *left[form.made :]]
        places = (axis for i, axis in enumerate(kernel.axes) if i not in (form.row, form.column))
        self.keep(*left, *places)
        axes = list(_stay(eqn.outvars[0].aval.shape))
        axes[form.made] = columns
        return axes

    def _elementwise(self, shape: Sequence[int], operands: list[_Array]) -> list[np.ndarray]:
        """Operands have the result's axes, some perhaps of size 1, or are numbers."""
        found = []
        for i, size in enumerate(shape):
            axes = [operand.axes[i] for operand in operands if operand.axes]
            whole = [axis for axis in axes if len(axis) == size]
            self.keep(*(axis for axis in axes if len(axis) != size))
            self.met += [(whole[0], other) for other in whole[1:]]
            found.append(np.minimum.reduce(whole))
        return found

    def _where(self, same: Sequence[bool], axes: Axes, shape: Sequence[int]) -> list[np.ndarray]:
        """Axes that are the `same` keep their labels; of others all entries stay, before and after."""
        self.keep(*(axis for axis, as_is in zip(axes, same, strict=True) if not as_is))
        after = _stay(shape)
        return [axis if as_is else new for axis, as_is, new in zip(axes, same, after, strict=True)]

    def _broadcast(self, params: Any, shape: Any, operands: list[_Array]) -> list[np.ndarray]:
        """New axes have labels of their own; one of size 1 stays, as it can lose nothing."""
        axes = [axis if len(axis) > 1 else np.zeros(1, int) for axis in self.fresh(shape)]
        for place, axis in zip(params["broadcast_dimensions"], operands[0].axes, strict=True):
            if len(axis) == shape[place]:
                axes[place] = axis
            else:
                self.keep(axis)
        return axes

    def _reshape(self, params: Any, shape: Any, operands: list[_Array]) -> list[np.ndarray]:
        """Axes may be joined where at most one of them has channels; axes of size 1 stay."""
        self.keep(*(axis for axis in operands[0].axes if len(axis) == 1))
        old = [axis for axis in operands[0].axes if len(axis) > 1]
        found: list[np.ndarray] = []
        for before, new in programs.regrouped(
            [len(axis) for axis in old], [size for size in shape if size > 1]
        ):
            many, old = old[: len(before)], old[len(before) :]
            if len(new) > 1 or sum(bool(axis.any()) for axis in many) > 1:
                self.keep(*many)
                found += _stay(new)
            else:
                found.append(np.stack(np.meshgrid(*many, indexing="ij")).max(0).reshape(-1))
        rest = iter(found)
        return [np.zeros(1, int) if size == 1 else next(rest) for size in shape]

    def _reduce(self, params: Any, shape: Any, operands: list[_Array]) -> list[np.ndarray]:
        gone, axes = params["axes" if "axes" in params else "dimensions"], operands[0].axes
        self.keep(*(axes[i] for i in gone))
        return [axis for i, axis in enumerate(axes) if i not in gone]

    def _transpose(self, params: Any, shape: Any, operands: list[_Array]) -> list[np.ndarray]:
        return [operands[0].axes[i] for i in params["permutation"]]

    def _slice(self, params: Any, shape: Any, operands: list[_Array]) -> list[np.ndarray]:
        axes = operands[0].axes
        return self._where([len(axis) == size for axis, size in zip(axes, shape, strict=True)], axes, shape)

    def _pad(self, params: Any, shape: Any, operands: list[_Array]) -> list[np.ndarray]:
        """What is appended stays, so that as much is appended to fewer channels."""
        outer = programs.appended(params)
        axes = (
            axis if ends is None else np.pad(axis, ends)
            for axis, ends in zip(operands[0].axes, outer, strict=True)
        )
        return self._where([ends is not None for ends in outer], tuple(axes), shape)

    def _concatenate(self, params: Any, shape: Any, operands: list[_Array]) -> list[np.ndarray]:
        columns = list(zip(*(operand.axes for operand in operands), strict=True))
        for i, column in enumerate(columns):
            if i != params["dimension"]:
                self.met += [(column[0], other) for other in column[1:]]
        return [
            np.concatenate(column) if i == params["dimension"] else np.minimum.reduce(column)
            for i, column in enumerate(columns)
        ]

    def _stack(self, params: Any, shape: Any, operands: list[_Array]) -> list[np.ndarray]:
        axis, one = params["axis"], [size for i, size in enumerate(shape) if i != params["axis"]]
        found = self._elementwise(one, operands)
        return [*found[:axis], np.zeros(shape[axis], int), *found[axis:]]

    def _window(self, params: Any, shape: Any, operands: list[_Array]) -> list[np.ndarray]:
        return self._where(programs.untouched(params), operands[0].axes, shape)


RULES: dict[str, Callable[[_Labels, Any, Any, list[_Array]], list[np.ndarray]]] = {
    "broadcast_in_dim": _Labels._broadcast,
    "reshape": _Labels._reshape,
    "squeeze": _Labels._reduce,
    "transpose": _Labels._transpose,
    "slice": _Labels._slice,
    "pad": _Labels._pad,
    "concatenate": _Labels._concatenate,
    "stack": _Labels._stack,
    **dict.fromkeys(programs.REDUCTIONS, _Labels._reduce),
    **dict.fromkeys(programs.WINDOWS, _Labels._window),
}
