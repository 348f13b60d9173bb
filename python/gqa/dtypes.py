"""The element types of gqa, by name, so that bfloat16 needs no import."""

from __future__ import annotations

from typing import Any

import numpy as np

FLOATS = ("float32", "float64", "float16", "bfloat16")


def name_of(dtype: Any, name: str = "the array") -> str:
    """The name of a dtype given as a NumPy dtype, a scalar type or a name; TypeError if its bytes are swapped."""
    if isinstance(dtype, str) and dtype in FLOATS:
        return dtype
    if dtype is None:  # to NumPy, float64
        raise TypeError(f"{name} has dtype None, expected {', '.join(FLOATS)}")
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{dtype!r}, given for {name}, is no dtype that NumPy knows") from None
    if not dtype.isnative:
        raise TypeError(f"{name} has dtype {dtype.str!r}, expected native byte order")
    return str(dtype.name)


def dtype_named(name: str) -> np.dtype[Any]:
    """The NumPy dtype of that name; bfloat16 comes from the package ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("bfloat16 needs the package ml_dtypes: pip install 'gqa[bfloat16]'") from error
    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


def require_float(name: str, dtype: str) -> None:
    """Raise TypeError unless `dtype` is one of `FLOATS`."""
    if dtype not in FLOATS:
        hint = ", or an int8 array wrapped by gqa.Quantized" if dtype == "int8" else ""
        raise TypeError(f"{name} has dtype {dtype}, expected {', '.join(FLOATS)}{hint}")


def compute_dtype(*dtypes: str) -> str:
    """The type attention computes in: float64 if any argument is, else float32."""
    return "float64" if "float64" in dtypes else "float32"
