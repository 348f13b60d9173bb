"""Arguments from users to what the extension takes: plain arrays whose last axis is contiguous."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gqa import _core


class SupportsDLPack(Protocol):
    """A tensor of another library, in memory of the CPU."""

    def __dlpack__(self, *args: Any, **options: Any) -> Any: ...


Array = npt.NDArray[Any]
AnyArray = Array | SupportsDLPack


def as_array(name: str, x: Any) -> Array:
    """`x` itself if it is a NumPy array, or a view of a tensor with ``__dlpack__``; TypeError for anything else."""
    return x if type(x) is np.ndarray else _core.as_array(name, x)


def dtype_name(name: str, x: Array) -> str:
    """The name of an array's dtype; TypeError if its bytes are swapped."""
    if not x.dtype.isnative:
        raise TypeError(f"{name} has dtype {x.dtype.str!r}, expected native byte order")
    return _name(x.dtype)


@functools.cache  # NumPy puts the name together anew each time, in microseconds
def _name(dtype: np.dtype[Any]) -> str:
    return dtype.name


def contiguous_channels(x: Array) -> Array:
    """`x` with a contiguous last axis: itself if possible, a copy otherwise."""
    return x if x.shape[-1] <= 1 or x.strides[-1] == x.itemsize else np.ascontiguousarray(x)


def listed(name: str, value: Any) -> Array:
    """A list of integers, or an array or tensor of anything, as an array."""
    if hasattr(value, "__dlpack__"):
        return as_array(name, value)
    x = np.asarray(value)
    return x if x.size else x.astype(np.int64)


def int_array(name: str, value: Any, shape: tuple[int, ...] | None = None) -> Array:
    """`value` as int64 of that shape; TypeError if it holds no integers, ValueError if its shape is another."""
    x = listed(name, value)
    if x.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {x.dtype}, expected integers")
    if shape is not None and x.shape != shape:
        raise ValueError(f"{name} has shape {x.shape}, expected {shape}")
    if x.dtype.kind == "u":  # too large for int64 is too large for any use
        x = np.minimum(x.astype(np.uint64), np.uint64(np.iinfo(np.int64).max))
    integers: Array = x.astype(np.int64)
    return integers


def lengths_array(name: str, value: Any, shape: tuple[int, ...], keys: Any) -> Array:
    """`value` as int64 of that shape, each from 0 to `keys`, one number or one for each; ValueError otherwise."""
    lengths = int_array(name, value, shape)
    for b in np.flatnonzero((lengths < 0) | (lengths > keys)):
        most = np.broadcast_to(keys, lengths.shape).flat[b]
        raise ValueError(f"{name}[{b}] is {lengths.flat[b]}, expected 0 to {most}, the number of keys")
    return lengths


def output_target(
    out: Any, shape: tuple[int, ...], dtype: str, inputs: Iterable[tuple[str, Array]], like: str = "q"
) -> Array:
    """`out` itself; raises unless it can take a result of that shape and dtype without harm to the inputs, by name."""
    array = as_array("out", out)
    if dtype_name("out", array) != dtype:
        raise TypeError(f"out has dtype {array.dtype}, expected {dtype} as {like}")
    if array.shape != shape:
        raise ValueError(f"out has shape {array.shape}, expected {shape}")
    if not array.flags.writeable:
        raise ValueError("out is read-only")
    names, arrays = zip(*inputs)
    for i in sharing_memory(array, arrays):
        raise ValueError(f"out overlaps {names[i]} in memory")
    return array


def sharing_memory(x: Array, others: tuple[Array | None, ...]) -> list[int]:
    """The numbers of those of `others` that share a byte with x, or may do so where that is too hard to tell."""
    return _core.sharing_memory(x, others)
