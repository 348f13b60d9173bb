"""Run ONNX models: attention on gqa's kernels, every other operator by the reference evaluator of the package onnx."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gqa.arguments import AnyArray, Array
from gqa.shapes import check_int

if TYPE_CHECKING:
    from onnx.reference.op_run import OpRun


def reference_ops(*, num_threads: int | None = None) -> list[type[OpRun]]:
    """Operators for ``onnx.reference.ReferenceEvaluator(model, new_ops=gqa.onnx.reference_ops())``.

    Parameters
    ----------
    num_threads : int, optional
        For each call of an operator, as in :func:`gqa.attention`.

    Returns
    -------
    list of type
        Subclasses of onnx's OpRun: Attention (opsets 23, 24, 25), RotaryEmbedding and TensorScatter of ai.onnx,
        GroupQueryAttention and RotaryEmbedding of com.microsoft, FlexAttention of ai.onnx.preview.

    Raises
    ------
    ModuleNotFoundError
        Without the package onnx.

    Notes
    -----
    The evaluator does not hand them on to functions that a model itself defines; :func:`run` does.

    Examples
    --------
    >>> import gqa.onnx
    >>> [op.__name__ for op in gqa.onnx.reference_ops() if op.op_domain == "com.microsoft"]
    ['GroupQueryAttention', 'RotaryEmbedding']
    """
    num_threads = check_threads(num_threads)
    need_onnx()
    from gqa.onnx.models.evaluator import operators

    return operators(num_threads)


def run(model: Any, inputs: Mapping[str, AnyArray], *, num_threads: int | None = None) -> dict[str, Array]:
    """Run an ONNX model.

    Parameters
    ----------
    model : str, os.PathLike, bytes or onnx.ModelProto
        A file, the content of one, or a model.
    inputs : dict of str to ndarray
        By name, of the dtypes and shapes that the model declares.
    num_threads : int, optional
        For each call of an attention operator, as in :func:`gqa.attention`.

    Returns
    -------
    dict of str to ndarray
        The model's outputs by name.

    Raises
    ------
    ModuleNotFoundError
        Without the package onnx.
    OSError
        For a file that cannot be opened.
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
    >>> q, k = np.zeros((1, 2, 3, 4), np.float32), np.ones((1, 1, 5, 4), np.float32)
    >>> gqa.onnx.run(model, {"q": q, "k": k})["y"].max()
    np.float32(1.0)
    """
    num_threads = check_threads(num_threads)
    need_onnx()
    from gqa.onnx.models import loading

    return loading.evaluate(loading.load(model), inputs, num_threads)


def run_files(model_path: str, inputs_path: str, output_path: str) -> None:
    """Run the model in one file on the arrays of an .npz file, and write its outputs to another."""
    need_onnx()
    from gqa.onnx.models import loading

    model = loading.load(model_path)
    try:
        with open(inputs_path, "rb") as file:
            arrays = dict(np.load(file, allow_pickle=False).items())
    except (AttributeError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{inputs_path} is not an .npz file of arrays: {error}") from error
    outputs = loading.evaluate(model, loading.with_bfloat16(model, arrays))
    with zipfile.ZipFile(output_path, "w") as archive:  # np.savez has no room for an output of the name "file"
        for name, x in outputs.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, x, allow_pickle=False)


def check_threads(num_threads: Any) -> int | None:
    """num_threads as a number; raises unless it is None or at least 1."""
    return None if num_threads is None else check_int("num_threads", num_threads, 1)


def need_onnx() -> None:
    """ModuleNotFoundError without the package onnx."""
    try:
        import onnx.reference  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("ONNX models need the package onnx: pip install 'gqa[onnx]'") from error
