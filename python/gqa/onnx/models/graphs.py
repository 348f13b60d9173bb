"""Graphs of one input and one output, as attributes of a node hold them, as functions of an array."""

from __future__ import annotations

from typing import Any

import onnx

from gqa.arguments import Array
from gqa.onnx.modified_attention import Modifier


def function_of(name: str, graph: Any, attributes: Any = None) -> Modifier:
    """The function that an evaluator of a graph computes; ValueError unless its input is all it depends on."""
    proto = graph.proto_
    constants = {x.name for x in proto.initializer}
    inputs = [x for x in proto.input if x.name not in constants]
    if len(inputs) != 1 or len(proto.output) != 1:
        raise ValueError(f"{name} has {len(inputs)} inputs and {len(proto.output)} outputs, expected one of each")
    if outside := captured(proto):
        raise ValueError(f"{name} uses {outside[0]!r} from outside of its graph, expected nothing but its input")
    declared = inputs[0].type.tensor_type.elem_type

    def function(x: Array) -> Array:
        if declared and onnx.helper.tensor_dtype_to_np_dtype(declared) != x.dtype:
            raise TypeError(
                f"{name} takes {onnx.TensorProto.DataType.Name(declared)}, but softmax_precision is {x.dtype}"
            )
        result: Array = graph.run(None, {inputs[0].name: x}, attributes=attributes)[0]
        return result

    return function


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
