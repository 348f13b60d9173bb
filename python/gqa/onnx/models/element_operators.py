"""Operators of ONNX that compute each element from those at the same place: on arrays, numbers and symbols alike."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from gqa.onnx.models.shaping import NotElementwise

FLOATS, WHOLES = ("float32", "float64"), ("int32", "int64")


def _truncated_quotient(x: Any, y: Any) -> Any:
    """The division of integers of ONNX, towards zero."""
    quotient = np.abs(x) // np.abs(y)
    return np.where((x < 0) ^ (y < 0), -quotient, quotient)


ARITHMETIC: dict[str, Callable[..., Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Pow": operator.pow,
}  # fmt: skip
_COMPARING: dict[str, Callable[..., Any]] = {
    "Less": operator.lt, "LessOrEqual": operator.le, "Greater": operator.gt, "GreaterOrEqual": operator.ge,
    "Equal": operator.eq, "And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor, "Not": np.logical_not,
    "IsNaN": np.isnan,
}  # fmt: skip
_UNARY: dict[str, Callable[..., Any]] = {
    "Identity": lambda x: x, "Neg": operator.neg, "Abs": np.abs, "Sign": np.sign, "Exp": np.exp, "Log": np.log,
    "Tanh": np.tanh, "Sqrt": np.sqrt, "Floor": np.floor, "Ceil": np.ceil, "Sin": np.sin, "Cos": np.cos,
    "Reciprocal": lambda x: 1.0 / x, "Sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)), "Relu": lambda x: np.maximum(x, 0),
}  # fmt: skip
_REPEATED: dict[str, Callable[[Any, Any], Any]] = {"Min": np.minimum, "Max": np.maximum, "Sum": operator.add}
KINDS = {"float32": float, "float64": float, "int32": int, "int64": int, "bool": bool}


def operator_of(
    name: str, dtypes: list[np.dtype[Any]], attributes: dict[str, Any], given: list[bool]
) -> tuple[Callable[..., Any], np.dtype[Any]]:
    """What an operator does to elements, and the dtype of its result."""
    whole = dtypes[0].name in WHOLES
    if any(dtype.name not in KINDS for dtype in dtypes):
        raise NotElementwise
    if name in ARITHMETIC:
        if name == "Pow" and whole:
            raise NotElementwise
        return ARITHMETIC[name], dtypes[0]
    if name in _COMPARING:
        return _COMPARING[name], np.dtype(bool)
    if name in _UNARY:
        return _UNARY[name], dtypes[0]
    if name == "Div":
        return (_truncated_quotient if whole else operator.truediv), dtypes[0]
    if name == "Mod" and whole and not attributes.get("fmod", 0):
        return operator.mod, dtypes[0]
    if name in _REPEATED:
        return functools.partial(_reduced, _REPEATED[name]), dtypes[0]
    if name == "Where":
        return np.where, dtypes[1]
    if name == "Clip" and not attributes:
        return (lambda x, *ends: _clipped(x, given, ends)), dtypes[0]
    if name == "Cast":
        dtype = onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])
        if dtype.name not in KINDS:
            raise NotElementwise
        return functools.partial(cast_to, KINDS[dtype.name]), dtype
    raise NotElementwise


def cast_to(kind: type, x: Any) -> Any:
    """A number, an array or a symbol as one of the kinds float, int and bool."""
    return x.astype(kind) if hasattr(x, "astype") else kind(x)


def _reduced(function: Callable[[Any, Any], Any], *x: Any) -> Any:
    return functools.reduce(function, x)


def _clipped(x: Any, given: list[bool], ends: Sequence[Any]) -> Any:
    low, high = iter(ends), iter(ends[-1:])
    x = np.maximum(x, next(low)) if len(given) > 1 and given[1] else x
    return np.minimum(x, next(high)) if len(given) > 2 and given[2] else x
