"""What caches store: their dtypes and sizes, and tokens in the form in which they are written."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from gqa.dtypes import FLOATS, dtype_named, name_of
from gqa.quantization import Quantized
from gqa.sequences import Store, Tensor, arrays
from gqa.shapes import MOST_CHANNELS, Shape, check_int


def storage_dtype(dtype: Any) -> str:
    """The name of a dtype that caches store; TypeError for others."""
    name = name_of(dtype)
    if name not in (*FLOATS, "int8"):
        raise TypeError(f"dtype is {name}, expected {', '.join(FLOATS)} or int8")
    return name


def storage_sizes(kv_heads: Any, head_dim: Any, v_head_dim: Any) -> tuple[int, tuple[int, int]]:
    """The sizes of a token, checked: kv_heads, (head_dim, v_head_dim), which are the same by default."""
    v_head_dim = head_dim if v_head_dim is None else v_head_dim
    for name, n in (("head_dim", head_dim), ("v_head_dim", v_head_dim)):
        if check_int(name, n, 0) > MOST_CHANNELS:
            raise ValueError(f"{name} is {n}, expected at most {MOST_CHANNELS}")
    return check_int("kv_heads", kv_heads, 1), (int(head_dim), int(v_head_dim))


def zeros(name: str, count: int, shape: Shape, dtype: str) -> Tensor:
    """Storage for tokens; that of "int8" has scales. ValueError, naming an argument, for more than any memory holds."""
    if math.prod(shape) * dtype_named(dtype).itemsize > sys.maxsize:
        raise ValueError(f"{name} is {count}, expected less: {dtype} of shape {shape} has more bytes than addresses")
    if dtype == "int8":
        return Quantized(np.zeros(shape, np.int8), np.zeros(shape[:-1], np.float32))
    return np.zeros(shape, dtype_named(dtype))


def copy_tokens(to: Store, source: Store, moves: Iterable[tuple[int, int, int, int, int]], layout: str) -> None:
    """Copy tokens between stores of one dtype; moves: batch and token in `to`, batch and token in `source`, count."""
    pairs = list(zip(arrays(*to), arrays(*source)))
    for b, token, other_b, other_token, count in moves:
        here: tuple[Any, ...] = (b, slice(token, token + count))
        there: tuple[Any, ...] = (other_b, slice(other_token, other_token + count))
        if layout == "bhsd":
            here, there = (b, slice(None), here[1]), (other_b, slice(None), there[1])
        for x, y in pairs:
            x[here] = y[there]
