"""Sequences whose keys lie in runs of any tensors: what packed batches, rings and pages ask of the core.

A tensor is an array or quantised, a store a pair of them: keys and values with four axes. The core takes stores, a
table of sequences (where their queries lie, at which position, how many keys) and a table of runs, each of which names
consecutive tokens of one store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gqa import _core
from gqa.arguments import Array, as_array, contiguous_channels, dtype_name, int_array, output_target
from gqa.dtypes import require_float
from gqa.quantization import Quantized
from gqa.shapes import check_flag, check_float, check_int, check_shape, check_window

Tensor = npt.NDArray[Any] | Quantized
Store = tuple[Tensor, Tensor]
Table = npt.NDArray[np.int64]

SEQUENCE_COLUMNS = 10  # batch, token, queries, padding, origin, offset, keys, mask batch, mask key, number of runs
RUN_COLUMNS = 4  # store, batch, token, count


def attend_sequences(
    q: Array, stores: list[Store], sequences: Table, runs: Table, *, out: Any, return_lse: Any, causal: Any,
    window: Any, scale: Any, softcap: Any, sinks: Any, num_threads: Any, layout: str = "bshd", mask: Any = None,
    mask_shape: tuple[int, int, int] = (0, 0, 0), given: Sequence[Tensor | None] = (),
) -> Any:  # fmt: skip
    """Check the options, which are those of attention, and call the core: out, or (out, lse).

    q and out may be packed: (tokens, heads, channels), with lse (heads, tokens) and a layout of "bshd". `given`:
    the tensors that were converted to those of the stores.
    """
    packed = q.ndim == 3
    q = q[None] if packed else q
    if mask is not None:
        as_array("mask", mask)
    if sinks is not None:
        require_float("sinks", dtype_name("sinks", as_array("sinks", sinks)))
        check_shape("sinks", sinks.shape, (q.shape[1 if layout == "bhsd" else 2],))
        sinks = sinks.astype(np.float64)
    target = out
    if out is not None:
        shape = (*q.shape[:3], stores[0][1].shape[3])
        tensors = arrays(*(x for tensors in (given, *stores) for x in tensors if x is not None))
        inputs = [("q", q), *(("keys or values", x) for x in tensors)]
        if mask is not None:
            inputs.append(("mask", mask))
        target = output_target(out, shape[1:] if packed else shape, q.dtype.name, inputs)
    result = _core.attend_sequences(
        contiguous_channels(q), stores, sequences, runs, mask, mask_shape, check_flag("causal", causal),
        check_window(window), scale if scale is None else check_float("scale", scale),
        check_float("softcap", softcap, 0.0), sinks, layout, target[None] if packed and target is not None else target,
        check_flag("return_lse", return_lse),
        num_threads if num_threads is None else check_int("num_threads", num_threads, 1),
    )  # fmt: skip
    output = result[0] if return_lse else result
    output = output[0] if packed else output
    if out is not None:
        if target is None:
            np.copyto(out, output)
        output = out
    if not return_lse:
        return output
    return output, result[1][0].T if packed else result[1]


def table(rows: Sequence[tuple[int, ...]], columns: int) -> Table:
    """A table of the core, which may be empty."""
    return np.array(rows, np.int64).reshape(-1, columns)


def int_list(name: str, value: Any, count: int) -> list[int]:
    """`value` as a list of that many ints; TypeError if it holds no integers, ValueError if there are others."""
    integers: list[int] = int_array(name, value, (count,)).tolist()
    return integers


def check_tensors(k: Any, v: Any) -> None:
    """Raise unless k and v are both there and arrays of floats, or quantised."""
    if k is None or v is None:
        raise ValueError("k is given without v" if v is None else "v is given without k")
    for name, x in (("k", k), ("v", v)):
        if not isinstance(x, Quantized):
            require_float(name, dtype_name(name, as_array(name, x)))


def contiguous(x: Tensor) -> Tensor:
    """`x` with a contiguous last axis: itself if possible, a copy otherwise."""
    return Quantized(contiguous_channels(x.data), x.scale) if isinstance(x, Quantized) else contiguous_channels(x)


def arrays(*tensors: Tensor) -> list[Array]:
    """The arrays that tensors are made of."""
    return [x for t in tensors for x in ((t.data, t.scale) if isinstance(t, Quantized) else (t,))]


def spans(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut [first, last) at the multiples of size: (start, count) of each piece."""
    while first < last:
        count = min(last - first, size - first % size)
        yield first, count
        first += count
