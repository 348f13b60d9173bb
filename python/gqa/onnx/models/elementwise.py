"""Graphs of modifiers that compute every score by itself, as score programs: no array of all scores is made for them.

A graph sees the whole tensor of scores, and builds the indices of its axes from its shape, with Range, CumSum and the
like. Here each of its values is either an array, as long as that is small (shapes, ranges, tables), or lazy: a shape,
and how its element at given indices comes about. The element of the output at (b, h, i, j) then is the program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from gqa.arguments import Array
from gqa.onnx.models.element_operators import ARITHMETIC, FLOATS, KINDS, WHOLES, cast_to, operator_of
from gqa.onnx.models.shaping import SHAPING, NotElementwise, attributes_of
from gqa.scores import lowering
from gqa.scores.graph import FLOAT, WHOLE, Graph
from gqa.scores.program import Plan, Program
from gqa.scores.symbols import CapturedArray, Symbol
from gqa.shapes import Shape

_INT32 = -(2**31), 2**31 - 1
Element = Callable[[Sequence[Any]], Any]  # from an index for each axis, a Symbol or an int, to the element
Bounds = tuple[int, int]


class Lazy:
    """A tensor that is not there: its elements are made from their indices. bounds: of whole numbers."""

    def __init__(self, shape: Shape, dtype: np.dtype[Any], make: Element, bounds: Bounds = _INT32) -> None:
        self.shape, self.dtype, self.bounds = tuple(shape), dtype, bounds
        self._make, self._made = make, dict[Any, Any]()

    def at(self, indices: Sequence[Any]) -> Any:
        """The element at these indices; made once, as several values may ask for it."""
        key = tuple(("symbol", i.number) if isinstance(i, Symbol) else int(i) for i in indices)
        if key not in self._made:
            self._made[key] = self._make(indices)
        return self._made[key]


def program_of(graph: onnx.GraphProto, shape: Shape, dtype: np.dtype[Any]) -> Program | None:
    """The program of a modifier for scores of that shape (B, Hq, S, T) and dtype; None unless it is elementwise."""
    g = Graph()
    score = Symbol(g, g.put("score", FLOAT))
    where = [Symbol(g, g.put(name, WHOLE)) for name in ("b", "h", "q_idx", "kv_idx")]
    if 0 in shape:
        return None
    try:
        with np.errstate(all="ignore"):
            number = lowering.cast(g, g.lift(_Walk(g, graph, shape, dtype, score, where).result().at(where)), FLOAT)
    except (NotElementwise, KeyError, RecursionError, TypeError, ValueError):
        return None  # where something is wrong with the graph, the reference evaluator says what
    plan = Plan(g, {} if number == score.number else {"score": number})
    return Program(plan, plan.arrays_of([]))


class _Walk:
    """One pass over the nodes of a graph."""

    def __init__(
        self, g: Graph, graph: onnx.GraphProto, shape: Shape, dtype: np.dtype[Any], score: Symbol, where: list[Symbol]
    ) -> None:
        self.g, self.graph, self.shape, self.dtype = g, graph, shape, dtype
        self.most = max(*shape, shape[0] * shape[1], 1024)  # elements of an array that is made
        self.values: dict[str, Array | Lazy | None] = {"": None}
        for x in graph.initializer:
            self.values[x.name] = onnx.numpy_helper.to_array(x)
        (name,) = (x.name for x in graph.input if x.name not in self.values)

        def at(indices: Sequence[Any]) -> Any:
            """Of the scores, those of other rows and keys are not at hand."""
            for index, axis, size in zip(indices, where, shape):
                if size > 1 and not (isinstance(index, Symbol) and index.number == axis.number):
                    raise NotElementwise
            return score

        self.values[name] = Lazy(shape, dtype, at)

    def result(self) -> Lazy:
        for node in self.graph.node:
            if len(node.output) != 1 or node.domain not in ("", "ai.onnx"):
                raise NotElementwise
            self.values[node.output[0]] = self.value(node)
        result = self.lazy(self.values[self.graph.output[0].name])
        if result.shape != self.shape or result.dtype != self.dtype:
            raise NotElementwise
        return result

    def value(self, node: onnx.NodeProto) -> Array | Lazy:
        """The output of a node."""
        inputs = [self.values[name] for name in node.input]
        attributes = attributes_of(node)
        if node.op_type == "Shape" and isinstance(inputs[0], Lazy):
            return np.array(inputs[0].shape, np.int64)[slice(attributes.get("start", 0), attributes.get("end"))]
        if node.op_type in SHAPING and not any(isinstance(x, Lazy) for x in inputs):
            made = SHAPING[node.op_type](inputs, attributes, self.most)
            if made is not None:
                return made
        if node.op_type in _VIEWS:
            return _VIEWS[node.op_type](self, inputs, attributes)
        return self.elementwise(node.op_type, inputs, attributes)

    def elementwise(self, name: str, inputs: Sequence[Array | Lazy | None], attributes: dict[str, Any]) -> Array | Lazy:
        """An operator that computes each element from those of its inputs at the same place."""
        given = [x for x in inputs if x is not None]
        function, dtype = operator_of(name, [x.dtype for x in given], attributes, [x is not None for x in inputs])
        shape = np.broadcast_shapes(*(x.shape for x in given))
        if not any(isinstance(x, Lazy) for x in given) and math.prod(shape) in [math.prod(x.shape) for x in given]:
            with np.errstate(all="ignore"):
                return np.asarray(function(*given)).astype(dtype)
        operands = [self.lazy(x) for x in given]

        def at(indices: Sequence[Any]) -> Any:
            return function(*(x.at(_aligned(indices, x.shape)) for x in operands))

        bounds = _bounds(name, operands, attributes) if dtype.name in WHOLES else _INT32
        if self.dtype == np.float32 and not (_INT32[0] <= bounds[0] and bounds[1] <= _INT32[1]):
            raise NotElementwise  # whole numbers have 32 bits there
        if dtype.kind == "f" and dtype != self.dtype:
            raise NotElementwise  # it would be rounded otherwise
        return Lazy(shape, dtype, at, bounds)

    def lazy(self, x: Array | Lazy | None) -> Lazy:
        """A value whose elements can be asked for."""
        if isinstance(x, Lazy):
            return x
        if x is None or x.dtype.name not in KINDS:
            raise NotElementwise
        axes = [axis for axis, (size, stride) in enumerate(zip(x.shape, x.strides)) if size > 1 and stride != 0]
        if not axes:
            number = x[(0,) * x.ndim]
            bounds = (int(number), int(number)) if x.dtype.name in WHOLES else _INT32
            return Lazy(x.shape, x.dtype, lambda indices: number, bounds)
        bounds = (int(x.min()), int(x.max())) if x.dtype.name in WHOLES else _INT32
        if steps := _progression(x, axes):
            start, step = steps
            cast = float if x.dtype.name in FLOATS else int

            def counted(indices: Sequence[Any]) -> Any:
                index = indices[axes[0]]
                return cast_to(cast, index) * step + start

            return Lazy(x.shape, x.dtype, counted, bounds)
        table = CapturedArray(self.g, x[tuple(slice(None) if i in axes else 0 for i in range(x.ndim))], "a constant")
        return Lazy(x.shape, x.dtype, lambda indices: table[tuple(indices[axis] for axis in axes)], bounds)


def _aligned(indices: Sequence[Any], shape: Shape) -> list[Any]:
    """The indices of an operand that is broadcast: the last ones, and 0 where it has a single element."""
    last = list(indices)[len(indices) - len(shape) :]
    return [0 if size == 1 else index for index, size in zip(last, shape)]


def _progression(x: Array, axes: list[int]) -> tuple[Any, Any] | None:
    """(start, step) if the numbers along the only axis rise evenly by a whole step, exactly."""
    if len(axes) != 1 or x.dtype == bool:
        return None
    numbers = x[tuple(slice(None) if axis in axes else 0 for axis in range(x.ndim))]
    start, step = numbers[0].item(), (numbers[1] - numbers[0]).item()
    if not (float(start).is_integer() and float(step).is_integer()) or abs(numbers).max() >= 2**24:
        return None
    return (start, step) if np.array_equal(numbers, start + step * np.arange(len(numbers))) else None


def _bounds(name: str, x: Sequence[Lazy], attributes: dict[str, Any]) -> Bounds:
    """The least and the largest number that an operator on whole numbers may give, or wider."""
    if name in ("Add", "Sub", "Mul"):
        rule = ARITHMETIC[name]
        corners = [rule(a, b) for a in x[0].bounds for b in x[1].bounds]
        return min(corners), max(corners)
    if name == "Where":
        return min(x[1].bounds[0], x[2].bounds[0]), max(x[1].bounds[1], x[2].bounds[1])
    if name == "Cast" and x[0].dtype.name in FLOATS:
        return _INT32
    if name == "Cast" and x[0].dtype == bool:
        return 0, 1
    most = max(abs(end) for operand in x for end in operand.bounds)
    return -most, most  # of the others, none gives more than its operands


# ---- operators that rearrange axes ---------------------------------------------------------------------------------


def _reshaped(walk: _Walk, inputs: Sequence[Array | Lazy | None], shape: Shape) -> Lazy:
    """The same elements in a shape that has other axes of a single element."""
    x = walk.lazy(inputs[0])
    long = [axis for axis, size in enumerate(shape) if size != 1]
    if [shape[axis] for axis in long] != [size for size in x.shape if size != 1]:
        raise NotElementwise

    def at(indices: Sequence[Any]) -> Any:
        rest = iter([indices[axis] for axis in long])
        return x.at([next(rest) if size != 1 else 0 for size in x.shape])

    return Lazy(shape, x.dtype, at, x.bounds)


def _array(x: Array | Lazy | None) -> list[int]:
    if not isinstance(x, np.ndarray):
        raise NotElementwise
    return [int(n) for n in x.ravel()]


def _axes(inputs: Sequence[Array | Lazy | None], attributes: dict[str, Any]) -> list[int]:
    return _array(inputs[1]) if len(inputs) > 1 else list(attributes.get("axes", ()))


def _unsqueeze(walk: _Walk, inputs: Sequence[Array | Lazy | None], attributes: dict[str, Any]) -> Lazy:
    axes = _axes(inputs, attributes)
    return _reshaped(walk, inputs, np.expand_dims(_hollow(walk.lazy(inputs[0]).shape), tuple(axes)).shape)


def _squeeze(walk: _Walk, inputs: Sequence[Array | Lazy | None], attributes: dict[str, Any]) -> Lazy:
    axes = tuple(_axes(inputs, attributes)) or None
    return _reshaped(walk, inputs, np.squeeze(_hollow(walk.lazy(inputs[0]).shape), axes).shape)


def _reshape(walk: _Walk, inputs: Sequence[Array | Lazy | None], attributes: dict[str, Any]) -> Lazy:
    old = walk.lazy(inputs[0]).shape
    asked = [old[i] if n == 0 and not attributes.get("allowzero", 0) else n for i, n in enumerate(_array(inputs[1]))]
    return _reshaped(walk, inputs, _hollow(old).reshape(asked).shape)


def _hollow(shape: Shape) -> Array:
    """An array of that shape without memory for its elements."""
    return np.broadcast_to(np.zeros((), bool), shape)


def _expand(walk: _Walk, inputs: Sequence[Array | Lazy | None], attributes: dict[str, Any]) -> Lazy:
    x = walk.lazy(inputs[0])
    shape = np.broadcast_shapes(x.shape, tuple(_array(inputs[1])))
    return Lazy(shape, x.dtype, lambda indices: x.at(_aligned(indices, x.shape)), x.bounds)


def _transpose(walk: _Walk, inputs: Sequence[Array | Lazy | None], attributes: dict[str, Any]) -> Lazy:
    x = walk.lazy(inputs[0])
    order = attributes.get("perm") or list(range(len(x.shape)))[::-1]
    shape = tuple(x.shape[axis] for axis in order)
    return Lazy(shape, x.dtype, lambda indices: x.at([indices[order.index(i)] for i in range(len(order))]), x.bounds)


def _gather(walk: _Walk, inputs: Sequence[Array | Lazy | None], attributes: dict[str, Any]) -> Lazy:
    x, where = walk.lazy(inputs[0]), walk.lazy(inputs[1])
    axis, axes = attributes.get("axis", 0) % len(x.shape), len(where.shape)
    size = x.shape[axis]

    def at(indices: Sequence[Any]) -> Any:
        index = where.at(indices[axis : axis + axes])
        if where.bounds[0] < 0:
            index = np.where(index < 0, index + size, index)
        return x.at([*indices[:axis], index, *indices[axis + axes :]])

    return Lazy((*x.shape[:axis], *where.shape, *x.shape[axis + 1 :]), x.dtype, at, x.bounds)


_VIEWS: dict[str, Callable[[_Walk, Sequence[Array | Lazy | None], dict[str, Any]], Lazy]] = {
    "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Reshape": _reshape, "Expand": _expand, "Transpose": _transpose,
    "Gather": _gather,
}  # fmt: skip
