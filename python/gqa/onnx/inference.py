"""Shapes and dtypes of the operators' outputs without any data."""

from __future__ import annotations

from typing import Any

from gqa.onnx.attention_schema import infer as infer_attention
from gqa.onnx.group_query.shapes import infer as infer_group_query_attention
from gqa.onnx.modified_attention import infer as infer_flex_attention
from gqa.shapes import Shape, check_int

OPERATORS = {
    ("", "Attention"): infer_attention,
    ("com.microsoft", "GroupQueryAttention"): infer_group_query_attention,
    ("ai.onnx.preview", "FlexAttention"): infer_flex_attention,
}


def infer_shapes(
    op_type: str, shapes: dict[str, Shape], dtypes: dict[str, Any], attrs: dict[str, Any], *, domain: str = ""
) -> dict[str, tuple[Shape, str]]:
    """The shapes and dtypes of an operator's outputs, from shapes and dtypes alone.

    Parameters
    ----------
    op_type : {"Attention", "GroupQueryAttention", "FlexAttention"}
    shapes : dict of str to tuple of int
        By input name, for the inputs that are given.
    dtypes : dict of str to dtype
        By input name.
    attrs : dict
        The operator's attributes; for Attention also opset, present and qk_matmul_output as arguments of
        :func:`gqa.onnx.attention`; for GroupQueryAttention also the value of total_sequence_length.
    domain : {"", "com.microsoft", "ai.onnx.preview"}
        Where the operator is defined.

    Returns
    -------
    dict
        ``{output name: (shape, dtype name)}``: the presents always; qk_matmul_output where attrs hold it or
        qk_matmul_output_mode; output_qk where qk_output is 1 or 2.

    Raises
    ------
    TypeError, ValueError
        What the operator's function would raise before it looks at values; ValueError for an unknown operator, and
        where a shape depends on a total_sequence_length that attrs do not hold.

    Examples
    --------
    >>> import gqa.onnx
    >>> shapes = {"Q": (2, 9, 4, 8), "K": (2, 3, 6, 8), "V": (2, 3, 6, 5)}
    >>> gqa.onnx.infer_shapes("Attention", shapes, dict.fromkeys(shapes, "float16"), {})["Y"]
    ((2, 9, 4, 5), 'float16')
    """
    if (domain, op_type) not in OPERATORS:
        known = ", ".join(f"{name} in {where!r}" for where, name in OPERATORS)
        raise ValueError(f"there is no operator {op_type!r} in domain {domain!r} here, expected {known}")
    shapes = {name: tuple(check_int(f"the shape of {name}", n, 0) for n in shape) for name, shape in shapes.items()}
    if missing := [name for name in shapes if name not in dtypes]:
        raise TypeError(f"{missing[0]} has a shape but no dtype")
    return OPERATORS[domain, op_type](shapes, {name: dtypes[name] for name in shapes}, attrs)
