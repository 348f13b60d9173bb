"""ONNX models on the reference evaluator: loading one, checking its inputs, evaluating it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import onnx

from gqa.arguments import AnyArray, Array, as_array
from gqa.dtypes import dtype_named
from gqa.onnx.models.evaluator import Evaluator, evaluator_class


def load(model: Any) -> onnx.ModelProto:
    """The model in a file, in bytes, or itself; ValueError if it is none."""
    proto: onnx.ModelProto
    if isinstance(model, onnx.ModelProto):
        proto = model
    else:
        if not isinstance(model, (str, bytes, os.PathLike)):
            raise TypeError(f"model is a {type(model).__name__}, expected a path, bytes or onnx.ModelProto")
        source = "the bytes" if isinstance(model, bytes) else os.fspath(model)
        try:
            proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load_model(model)
        except OSError:
            raise
        except Exception as error:  # protobuf's own, whatever its version calls it
            raise ValueError(f"{source} cannot be read as an ONNX model: {error}") from error
    if not proto.HasField("graph"):
        raise ValueError("the model has no graph")
    return proto


def evaluator_of(
    model: onnx.ModelProto, num_threads: int | None = None, in_place: dict[int, Array] | None = None
) -> Evaluator:
    """What evaluates a model; ValueError if it has an operator that nothing can run."""
    try:
        return evaluator_class(num_threads, in_place)(model)
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(f"the model has an operator that cannot be run: {error}") from error


def evaluate(
    model: onnx.ModelProto, inputs: Mapping[str, AnyArray], num_threads: int | None = None
) -> dict[str, Array]:
    """The model's outputs by name."""
    arrays = checked_inputs(model, inputs)
    return outputs_of(evaluator_of(model, num_threads), arrays)


def outputs_of(evaluator: Evaluator, arrays: dict[str, Array]) -> dict[str, Array]:
    """The outputs by name."""
    return dict(zip(evaluator.output_names, evaluator.run(None, arrays)))


def checked_inputs(model: onnx.ModelProto, inputs: Mapping[str, AnyArray]) -> dict[str, Array]:
    """The inputs as arrays; raises if one is missing, unknown, or not as the model declares it."""
    constants = {x.name for x in model.graph.initializer} | {x.values.name for x in model.graph.sparse_initializer}
    declared = {x.name: x.type.tensor_type for x in model.graph.input}
    for name in inputs:
        if name not in declared:
            raise ValueError(f"the model has no input {name!r}, expected {', '.join(declared) or 'none'}")
    arrays = {}
    for name, tensor in declared.items():
        if name in inputs:
            arrays[name] = _checked_input(name, inputs[name], tensor)
        elif name not in constants:
            raise ValueError(f"input {name!r} is missing, the model takes {', '.join(declared)}")
    return arrays


def with_bfloat16(model: onnx.ModelProto, arrays: dict[str, Array]) -> dict[str, Array]:
    """The arrays of an .npz file, which holds bfloat16 as bytes without a type, typed where the model says so."""
    bfloat16 = {x.name for x in model.graph.input if x.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16}
    return {
        name: x.view(dtype_named("bfloat16")) if name in bfloat16 and x.dtype == "V2" else x
        for name, x in arrays.items()
    }


def _checked_input(name: str, given: Any, declared: onnx.TypeProto.Tensor) -> Array:
    """An input as an array; raises unless it is of the dtype and shape that the model declares, as far as it does."""
    x = as_array(f"input {name!r}", given)
    if declared.elem_type:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(declared.elem_type)
        if x.dtype != dtype:
            raise TypeError(f"input {name!r} has dtype {x.dtype}, expected {dtype}")
    if declared.HasField("shape"):
        sizes = [d.dim_value if d.HasField("dim_value") else None for d in declared.shape.dim]
        if len(sizes) != x.ndim or any(want not in (None, got) for want, got in zip(sizes, x.shape)):
            names = [d.dim_param or "?" if n is None else str(n) for n, d in zip(sizes, declared.shape.dim)]
            raise ValueError(f"input {name!r} has shape {x.shape}, expected ({', '.join(names)})")
    return x
