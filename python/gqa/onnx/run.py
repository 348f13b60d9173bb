"""Run ONNX models: attention on gqa's kernels, every other operator by the reference evaluator of the package onnx."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from gqa.arguments import Array, as_array
from gqa.dtypes import dtype_named


def reference_ops() -> list[type]:
    """Operators for ``onnx.reference.ReferenceEvaluator(model, new_ops=gqa.onnx.reference_ops())``.

    Returns
    -------
    list of type
        Subclasses of onnx's OpRun: Attention (opsets 23, 24, 25) and RotaryEmbedding of ai.onnx, GroupQueryAttention and
        RotaryEmbedding of com.microsoft, FlexAttention of ai.onnx.preview.

    Raises
    ------
    ModuleNotFoundError
        Without the package onnx.

    Examples
    --------
    >>> import gqa.onnx
    >>> [op.__name__ for op in gqa.onnx.reference_ops() if op.op_domain == "com.microsoft"]
    ['GroupQueryAttention', 'RotaryEmbedding']
    """
    from gqa.onnx.evaluator import OPERATORS

    return list(OPERATORS)


def run(model: Any, inputs: dict[str, Array]) -> dict[str, Array]:
    """Run an ONNX model.

    Parameters
    ----------
    model : str, os.PathLike, bytes or onnx.ModelProto
        A file, the content of one, or a model.
    inputs : dict of str to ndarray
        By name, of the dtypes and shapes that the model declares.

    Returns
    -------
    dict of str to ndarray
        The model's outputs by name.

    Raises
    ------
    ModuleNotFoundError
        Without the package onnx.
    TypeError
        For an input of a wrong type or dtype.
    ValueError
        For missing or unknown inputs, a shape that does not fit, an operator that cannot be run, or a file that is no
        ONNX model.

    Examples
    --------
    >>> import gqa.onnx, numpy as np, onnx.parser
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 10, opset_import: ["": 23]>
    ...     g (float[1, 2, 3, 4] q, float[1, 1, 5, 4] k) => (float[1, 2, 3, 4] y) { y = Attention(q, k, k) }
    ... ''')
    >>> gqa.onnx.run(model, {"q": np.zeros((1, 2, 3, 4), np.float32), "k": np.ones((1, 1, 5, 4), np.float32)})["y"].max()
    np.float32(1.0)
    """
    from gqa.onnx.evaluator import OPERATORS, ReferenceEvaluator, onnx

    model = _loaded(model, onnx)
    constants = {x.name for x in model.graph.initializer} | {x.values.name for x in model.graph.sparse_initializer}
    declared = {x.name: x.type.tensor_type for x in model.graph.input}
    for name in inputs:
        if name not in declared:
            raise ValueError(f"the model has no input {name!r}, expected {', '.join(declared) or 'none'}")
    for name, tensor in declared.items():
        if name in inputs:
            _check_input(name, inputs[name], tensor, onnx)
        elif name not in constants:
            raise ValueError(f"input {name!r} is missing, the model takes {', '.join(declared)}")
    try:
        evaluator = ReferenceEvaluator(model, new_ops=list(OPERATORS))
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(f"the model has an operator that cannot be run: {error}") from error
    return dict(zip(evaluator.output_names, evaluator.run(None, inputs)))


def main(model_path: str, inputs_path: str, output_path: str) -> None:
    """Run the model in one file on the arrays of an .npz file, and write its outputs to another.

    An .npz file holds bfloat16 as bytes without a type; they are read as bfloat16 where the model declares it.
    """
    from gqa.onnx.evaluator import onnx

    model = _loaded(model_path, onnx)
    arrays = np.load(inputs_path, allow_pickle=False)
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise ValueError(f"{inputs_path} is not an .npz file")
    with arrays:
        inputs = {name: arrays[name] for name in arrays.files}
    for x in model.graph.input:
        if (
            x.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16
            and x.name in inputs
            and inputs[x.name].dtype == "V2"
        ):
            inputs[x.name] = inputs[x.name].view(dtype_named("bfloat16"))
    outputs: dict[str, Any] = run(model, inputs)
    with open(output_path, "wb") as file:
        np.savez(file, **outputs)


def _loaded(model: Any, onnx: Any) -> Any:
    """The model as onnx.ModelProto."""
    if not isinstance(model, onnx.ModelProto):
        if not isinstance(model, (str, bytes, os.PathLike)):
            raise TypeError(f"model is a {type(model).__name__}, expected a path, bytes or onnx.ModelProto")
        source = "the bytes" if isinstance(model, bytes) else os.fspath(model)
        try:
            model = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load_model(model)
        except OSError:
            raise
        except Exception as error:  # protobuf's own, whatever its version calls it
            raise ValueError(f"{source} cannot be read as an ONNX model: {error}") from error
    if not model.HasField("graph"):
        raise ValueError("the model has no graph")
    return model


def _check_input(name: str, x: Any, declared: Any, onnx: Any) -> None:
    """Raise unless the array is of the dtype and shape that the model declares, as far as it does."""
    x = as_array(f"input {name!r}", x)
    if declared.elem_type:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(declared.elem_type)
        if x.dtype != dtype:
            raise TypeError(f"input {name!r} has dtype {x.dtype}, expected {dtype}")
    if declared.HasField("shape"):
        sizes = [d.dim_value if d.HasField("dim_value") else None for d in declared.shape.dim]
        if len(sizes) != x.ndim or any(want not in (None, got) for want, got in zip(sizes, x.shape)):
            names = [d.dim_param or "?" if n is None else str(n) for n, d in zip(sizes, declared.shape.dim)]
            raise ValueError(f"input {name!r} has shape {x.shape}, expected ({', '.join(names)})")
