"""Operators that make shapes, ranges and tables, on arrays that are there: what indices in graphs are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from gqa.arguments import Array


class NotElementwise(Exception):
    """A graph is not one that computes every score by itself, as far as can be seen."""


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node by name; those of a function around it are not known here."""
    if any(
        x.ref_attr_name or x.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for x in node.attribute
    ):
        raise NotElementwise
    return {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute}


def _integers(x: Any) -> list[int]:
    return [int(n) for n in np.ravel(x)]


def _axes(inputs: Sequence[Any], attributes: dict[str, Any]) -> tuple[int, ...]:
    return tuple(_integers(inputs[1]) if len(inputs) > 1 else attributes.get("axes", ()))


def _constant(inputs: Sequence[Any], attributes: dict[str, Any], most: int) -> Array:
    ((name, value),) = attributes.items()
    if name == "value":
        array: Array = onnx.numpy_helper.to_array(value)
        return array
    dtypes = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if name not in dtypes:
        raise NotElementwise
    return np.array(value, dtypes[name])


def _constant_of_shape(inputs: Sequence[Any], attributes: dict[str, Any], most: int) -> Array:
    value = onnx.numpy_helper.to_array(attributes["value"]) if "value" in attributes else np.zeros(1, np.float32)
    return np.broadcast_to(value[0], _integers(inputs[0]))  # takes no memory


def _range(inputs: Sequence[Any], attributes: dict[str, Any], most: int) -> Array:
    start, limit, delta = (x.item() for x in inputs)
    _check(max(0, math.ceil((limit - start) / delta)), most)
    return np.arange(start, limit, delta, dtype=inputs[0].dtype)


def _cumulative_sum(inputs: Sequence[Any], attributes: dict[str, Any], most: int) -> Array:
    x, axis = inputs[0], int(np.ravel(inputs[1])[0])
    _check(x.size, most)
    x = np.flip(x, axis) if attributes.get("reverse", 0) else x
    total = np.cumsum(x, axis, dtype=x.dtype)
    total = total - x if attributes.get("exclusive", 0) else total
    return np.flip(total, axis) if attributes.get("reverse", 0) else total


def _slice(inputs: Sequence[Any], attributes: dict[str, Any], most: int) -> Array:
    x, starts, ends = inputs[0], *(_integers(y) for y in inputs[1:3])
    axes = _integers(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else range(len(starts))
    steps = _integers(inputs[4]) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps):
        index[axis] = slice(start, None if step < 0 and end < -x.shape[axis] else end, step)
    array: Array = x[tuple(index)]
    return array


def _reshape(inputs: Sequence[Any], attributes: dict[str, Any], most: int) -> Array:
    x, asked = inputs[0], _integers(inputs[1])
    array: Array = x.reshape(
        [x.shape[i] if n == 0 and not attributes.get("allowzero", 0) else n for i, n in enumerate(asked)]
    )
    return array


def _expand(inputs: Sequence[Any], attributes: dict[str, Any], most: int) -> Array | None:
    shape = np.broadcast_shapes(inputs[0].shape, tuple(_integers(inputs[1])))
    return np.broadcast_to(inputs[0], shape) if math.prod(shape) <= most else None


def _gather(inputs: Sequence[Any], attributes: dict[str, Any], most: int) -> Array | None:
    x, indices = inputs
    axis = attributes.get("axis", 0)
    return np.take(x, indices, axis) if x.size // max(x.shape[axis], 1) * indices.size <= most else None


def _check(size: int, most: int) -> None:
    if size > most:
        raise NotElementwise


# From inputs, attributes, and the most elements that an array may have; None if it would have more.
SHAPING: dict[str, Callable[[Sequence[Any], dict[str, Any], int], Array | None]] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "CumSum": _cumulative_sum,
    "Slice": _slice,
    "Shape": lambda x, a, most: np.array(x[0].shape, np.int64)[slice(a.get("start", 0), a.get("end"))],
    "Size": lambda x, a, most: np.array(x[0].size, np.int64),
    "Concat": lambda x, a, most: np.concatenate(x, a["axis"]),
    "Unsqueeze": lambda x, a, most: np.expand_dims(x[0], _axes(x, a)),
    "Squeeze": lambda x, a, most: np.squeeze(x[0], _axes(x, a) or None),
    "Reshape": _reshape,
    "Expand": _expand,
    "Transpose": lambda x, a, most: np.transpose(x[0], a.get("perm")),
    "Gather": _gather,
}
