"""Graphs of one input and one output, as attributes of a node hold them, as functions of an array and as programs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from gqa.arguments import Array
from gqa.onnx.models.elementwise import program_of
from gqa.scores.program import Program
from gqa.shapes import Shape


class GraphModifier:
    """The function that an evaluator of a graph computes; ValueError unless its input is all it depends on."""

    def __init__(self, name: str, graph: Any, attributes: Any = None) -> None:
        proto = graph.proto_
        constants = {x.name for x in proto.initializer}
        inputs = [x for x in proto.input if x.name not in constants]
        if len(inputs) != 1 or len(proto.output) != 1:
            raise ValueError(f"{name} has {len(inputs)} inputs and {len(proto.output)} outputs, expected one of each")
        if outside := captured(proto):
            raise ValueError(f"{name} uses {outside[0]!r} from outside of its graph, expected nothing but its input")
        self._name, self._graph, self._attributes = name, graph, attributes
        self._input, self._declared = inputs[0].name, inputs[0].type.tensor_type.elem_type
        self._programs: dict[tuple[Shape, str], Program | None] = {}

    def __call__(self, x: Array) -> Array:
        """What becomes of a whole array."""
        self._check(x.dtype)
        result: Array = self._graph.run(None, {self._input: x}, attributes=self._attributes)[0]
        return result

    def program(self, shape: Shape, dtype: np.dtype[Any]) -> Program | None:
        """The same for each score of a tensor of that shape and dtype by itself, or None if the graph is not so."""
        self._check(dtype)
        key = shape, dtype.name
        if key not in self._programs:
            if len(self._programs) >= 16:
                self._programs.clear()
            self._programs[key] = program_of(self._graph.proto_, shape, dtype)
        return self._programs[key]

    def _check(self, dtype: np.dtype[Any]) -> None:
        if self._declared and onnx.helper.tensor_dtype_to_np_dtype(self._declared) != dtype:
            declared = onnx.TensorProto.DataType.Name(self._declared)
            raise TypeError(f"{self._name} takes {declared}, but softmax_precision is {dtype}")


def captured(graph: Any, outside: frozenset[str] = frozenset()) -> list[str]:
    """The names that a graph uses but neither takes, holds nor computes; `outside` are those it may use besides."""
    known = {"", *outside, *(x.name for part in (graph.input, graph.initializer) for x in part)}
    known |= {x.values.name for x in graph.sparse_initializer}
    missing = []
    for node in graph.node:
        missing += [name for name in node.input if name not in known]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                missing += captured(inner, frozenset(known))
        known |= set(node.output)
    return missing + [x.name for x in graph.output if x.name not in known]


def names_used(graph: onnx.GraphProto) -> list[str]:
    """Every name that a node reads or the graph gives, as often as that happens, those of inner graphs included."""
    names = [x.name for x in graph.output]
    for node in graph.node:
        names += node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                names += names_used(inner)
    return names
