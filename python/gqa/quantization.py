"""int8 storage for keys and values: one scale per token and head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gqa import _core
from gqa.arguments import AnyArray, Array, as_array, dtype_name
from gqa.dtypes import require_float

# A subnormal scale would be too coarse itself, and 0 could not divide: rows of zeros take the least scale too.


@dataclass(frozen=True, eq=False)
class Quantized:
    """An int8 array with one float32 scale for each of its rows: x ~ data * scale[..., None].

    Accepted wherever attention takes k, v, past_key or past_value; the kernel reads the int8 data in place. Where there
    are 512 keys or more and logits are so small that it does not show, queries are rounded to 16 bits: the result
    stays within 2e-5 (of values of about 1) of attention over the dequantised arrays.

    Attributes
    ----------
    data : ndarray of int8, shape (..., channels)
    scale : ndarray of float32, shape (...)

    Examples
    --------
    >>> import gqa, numpy as np
    >>> x = gqa.Quantized(np.full((2, 4), 64, np.int8), np.array([0.5, 0.25], np.float32))
    >>> x.data * x.scale[..., None]
    array([[32., 32., 32., 32.],
           [16., 16., 16., 16.]], dtype=float32)
    """

    data: Array
    scale: Array

    def __post_init__(self) -> None:
        data, scale = as_array("data", self.data), as_array("scale", self.scale)
        object.__setattr__(self, "data", data)  # NumPy's view of a tensor of another library
        object.__setattr__(self, "scale", scale)
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

    def dequantize(self) -> Array:
        """The float32 array that this stands for."""
        return self.data * self.scale[..., None]


def quantize(x: AnyArray, *, dtype: str = "int8") -> Quantized:
    """Quantise an array to int8 with one scale per row: symmetric, rounding half to even.

    Parameters
    ----------
    x : ndarray, shape (..., channels)
        float32, float64, float16 or bfloat16; finite.
    dtype : {"int8"}

    Returns
    -------
    Quantized
        scale = max|x| / 127 over each row, or the least normal float32 if that is more; data = round(x / scale).

    Raises
    ------
    TypeError
        If x holds no floats.
    ValueError
        If x holds NaN, infinity or values too large for a scale in float32, or dtype is not "int8".

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
    return quantize_tensor("x", x)


def quantize_tensor(name: str, x: Array) -> Quantized:
    """quantize for an array of floats; ValueError, naming it, if it is not finite."""
    return Quantized(*_core.quantize(name, np.ascontiguousarray(x)))
