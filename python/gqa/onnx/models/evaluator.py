"""gqa's operators for the reference evaluator of the package onnx, which must be installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from gqa.arguments import Array
from gqa.onnx.attention_operator import attention
from gqa.onnx.cache_operators import tensor_scatter
from gqa.onnx.group_query.operator import group_query_attention
from gqa.onnx.models.graphs import GraphModifier
from gqa.onnx.modified_attention import modified_attention
from gqa.onnx.rotary_operators import microsoft_rotary_embedding, rotary_embedding


class Operator(OpRun):  # type: ignore[misc, unused-ignore]  # of type Any where onnx is not installed
    """An operator whose missing inputs and outputs are None, and whose defaults are its function's."""

    op_schema = None
    num_threads: int | None = None

    def run(self, *inputs: Any, **context: Any) -> tuple[Any, ...]:
        inputs = tuple(x if name else None for name, x in zip(self.onnx_node.input, inputs))
        try:
            outputs = super().run(*inputs, **context)  # type: ignore[no-untyped-call, unused-ignore]
        except (TypeError, ValueError) as error:
            # OpRun raises a TypeError in place of another one, which is its cause.
            reason = error.__cause__ if isinstance(error, TypeError) and error.__cause__ else error
            name = f" {self.onnx_node.name!r}" if self.onnx_node.name else ""
            raise type(error)(f"{self.onnx_node.op_type}{name}: {reason}") from error
        return tuple(x if name else None for name, x in zip(self.onnx_node.output, outputs))

    def asks_for(self, output: int) -> bool:
        """Whether the node names that output."""
        return output < len(self.onnx_node.output) and self.onnx_node.output[output] != ""

    def given(self, outputs: tuple[Any, ...]) -> tuple[Array, ...]:
        """The outputs as OpRun wants them: something for each; ValueError if one that is asked for is missing."""
        for i, x in enumerate(outputs):
            if x is None and self.asks_for(i):
                raise ValueError(
                    f"{self.onnx_node.op_type} has no output {i}, {self.onnx_node.output[i]!r}, as its attributes are"
                )
        return tuple(np.empty(0) if x is None else x for x in outputs)


class Attention(Operator):
    op_domain = ""

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[Array, ...]:
        opset = self.run_params["opsets"][""]
        if opset >= 25 and self.asks_for(1) != self.asks_for(2):
            raise ValueError("Attention has one of the outputs present_key and present_value, expected both or neither")
        present = self.asks_for(1) or self.asks_for(2)
        return self.given(
            attention(
                *inputs, opset=opset, present=present, qk_matmul_output=self.asks_for(3), num_threads=self.num_threads,
                **attributes,
            )
        )  # fmt: skip


class FlexAttention(Operator):
    op_domain = "ai.onnx.preview"

    def _run(self, *inputs: Any, attributes: Any = None, bindings: Any = None, **given: Any) -> tuple[Array, ...]:
        for name in ("score_mod", "prob_mod"):
            if name in given:
                given[name] = GraphModifier(name, given[name], attributes)
        return (modified_attention(*inputs, num_threads=self.num_threads, **given),)


class GroupQueryAttention(Operator):
    op_domain = "com.microsoft"
    in_place: dict[int, Array] = {}  # noqa: RUF012  # pasts that may be written, by id; each session has its own

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[Array, ...]:
        past_key: Any
        key, past_key, past_value, total = (inputs[i] if i < len(inputs) else None for i in (1, 3, 4, 6))
        mine = all(x is not None and self.in_place.get(id(x)) is x for x in (past_key, past_value))
        if mine and key is not None and total is not None and int(np.ravel(total)[0]) <= past_key.shape[2]:
            attributes |= {"present_key": past_key, "present_value": past_value}
        return self.given(group_query_attention(*inputs, num_threads=self.num_threads, **attributes))


def _operator(domain: str, name: str, function: Callable[..., Any], *, threads: bool = True) -> type[Operator]:
    """The class of an operator whose inputs and attributes are the arguments of that function, and num_threads."""

    def _run(self: Operator, *inputs: Any, **attributes: Any) -> tuple[Array, ...]:
        outputs = function(*inputs, **attributes, **{"num_threads": self.num_threads} if threads else {})
        return self.given(outputs if isinstance(outputs, tuple) else (outputs,))

    return type(name, (Operator,), {"op_domain": domain, "_run": _run, "__module__": __name__})


OPERATORS: list[type[OpRun]] = [
    Attention,
    FlexAttention,
    GroupQueryAttention,
    _operator("com.microsoft", "RotaryEmbedding", microsoft_rotary_embedding),
    _operator("", "RotaryEmbedding", rotary_embedding),
    _operator("", "TensorScatter", tensor_scatter, threads=False),
]


def operators(num_threads: int | None = None, in_place: dict[int, Array] | None = None) -> list[type[OpRun]]:
    """The classes of all operators, which use so many threads and may write those pasts."""
    members = {"num_threads": num_threads, "in_place": {} if in_place is None else in_place, "__module__": __name__}
    return [type(op.__name__, (op,), members) for op in OPERATORS]


class Evaluator(ReferenceEvaluator):  # type: ignore[misc, unused-ignore]
    """A reference evaluator with these operators, in functions that the model defines as well."""

    operators = OPERATORS

    def __init__(self, proto: Any, **options: Any) -> None:
        super().__init__(proto, **{"new_ops": self.operators} | options)

    @property
    def opsets(self) -> dict[str, int]:
        """The versions that the model imports, and of com.microsoft the first, which ONNX Runtime assumes."""
        return {"com.microsoft": 1, **super().opsets}


def evaluator_class(num_threads: int | None, in_place: dict[int, Array] | None = None) -> type[Evaluator]:
    """An evaluator whose operators use so many threads; a class, since it makes others of its own for functions."""
    return type("Evaluator", (Evaluator,), {"operators": operators(num_threads, in_place)})


def graph_function(name: str, graph: onnx.GraphProto) -> GraphModifier:
    """A graph of one input and one output as a function; its nodes are of the newest opsets."""
    opsets = {"": onnx.defs.onnx_opset_version(), "ai.onnx.preview": 1, "com.microsoft": 1}
    return GraphModifier(name, Evaluator(graph, opsets=opsets))
