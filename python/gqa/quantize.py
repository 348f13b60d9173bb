"""int8 storage for keys and values: one scale per token and head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gqa.arguments import as_array, dtype_name
from gqa.dtypes import require_float


@dataclass(frozen=True, eq=False)
class Quantized:
    """An int8 array with one float32 scale for each of its rows: x ~ data * scale[..., None].

    Accepted wherever attention takes k, v, past_key or past_value; the kernel reads the int8 data in place.

    Attributes
    ----------
    data : ndarray of int8, shape (..., channels)
    scale : ndarray of float32, shape (...)
    """

    data: np.ndarray[Any, Any]
    scale: np.ndarray[Any, Any]

    def __post_init__(self) -> None:
        data, scale = as_array("data", self.data), as_array("scale", self.scale)
        if data.dtype != np.int8 or scale.dtype != np.float32:
            raise TypeError(f"Quantized has data of {data.dtype} and scale of {scale.dtype}, expected int8 and float32")
        if data.ndim == 0 or scale.shape != data.shape[:-1]:
            raise ValueError(
                f"scale has shape {scale.shape}, expected {data.shape[:-1]} as data {data.shape} less the last axis"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scale.nbytes

    def __getitem__(self, key: Any) -> Quantized:
        """The same rows of data and scale; the last axis cannot be indexed."""
        return Quantized(self.data[key], self.scale[key])

    def dequantize(self) -> np.ndarray[Any, Any]:
        """The float32 array that this stands for."""
        return self.data * self.scale[..., None]


def quantize(x: np.ndarray[Any, Any], *, dtype: str = "int8") -> Quantized:
    """Quantise an array to int8 with one scale per row: symmetric, rounding half to even.

    Parameters
    ----------
    x : ndarray, shape (..., channels)
        float32, float64, float16 or bfloat16; finite.
    dtype : {"int8"}

    Returns
    -------
    Quantized
        scale = max|x| / 127 over each row (0 for a row of zeros), data = round(x / scale).

    Raises
    ------
    TypeError
        If x holds no floats.
    ValueError
        If x holds NaN or infinity, or dtype is not "int8".

    Examples
    --------
    >>> import gqa, numpy as np
    >>> q = gqa.quantize(np.array([[1.0, -0.5], [0.0, 0.0]], np.float32))
    >>> q.data
    array([[127, -64],
           [  0,   0]], dtype=int8)
    """
    if dtype != "int8":
        raise ValueError(f"dtype is {dtype!r}, expected 'int8'")
    x = as_array("x", x)
    require_float("x", dtype_name("x", x))
    if x.ndim == 0:
        raise ValueError("x has shape (), expected at least one axis")
    x = x.astype(np.float32 if x.dtype.itemsize < 8 else np.float64)
    scale = np.max(np.abs(x), axis=-1, initial=0.0) / 127
    if not np.isfinite(scale).all():
        raise ValueError("x holds NaN or infinity, which int8 cannot represent")
    scale = scale.astype(np.float32)
    data = np.rint(x / np.where(scale == 0, np.float32(1), scale)[..., None])
    return Quantized(np.clip(data, -127, 127).astype(np.int8), scale)
