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
from gqa.arguments import Array, as_array, dtype_name
from gqa.dtypes import require_float
from gqa.options import Options
from gqa.quantization import Quantized
from gqa.rules import check_pair

Tensor = npt.NDArray[Any] | Quantized
Store = tuple[Tensor, Tensor]
Table = npt.NDArray[np.int64]

# Of sequences: batch, token, queries, padding, origin, offset, keys, mask batch, mask key, number of runs; of runs:
# store, batch, token, count.
SEQUENCE_COLUMNS: int = _core.SEQUENCE_COLUMNS
RUN_COLUMNS: int = _core.RUN_COLUMNS


def attend_sequences(
    q: Array, stores: list[Store], sequences: Table, runs: Table, options: Options, *,
    mask_shape: tuple[int, int, int] = (0, 0, 0),
) -> Array | tuple[Array, Array]:  # fmt: skip
    """Call the core: out, or (out, lse).

    q and out may be packed: (tokens, heads, channels), with lse (heads, tokens) and a layout of "bshd". The last store
    holds the new tokens, if there are any.
    """
    result = _core.attend_sequences(q, named_stores(stores), (sequences, runs, mask_shape), options)
    if q.ndim == 3 and isinstance(result, tuple):
        return result[0], result[1].T
    output: Array | tuple[Array, Array] = result
    return output


def named_stores(stores: list[Store]) -> tuple[tuple[str, Tensor, str, Tensor], ...]:
    """Stores as the core takes them, with the names that its refusals give to keys and values."""
    return tuple((_store_name("k", i, stores), k, _store_name("v", i, stores), v) for i, (k, v) in enumerate(stores))


def _store_name(name: str, i: int, stores: list[Store]) -> str:
    return name if i == len(stores) - 1 else f"the cached {name}"


def table(rows: Sequence[tuple[int, ...]], columns: int) -> Table:
    """A table of the core, which may be empty."""
    return np.array(rows, np.int64).reshape(-1, columns)


def int_list(name: str, value: Any, count: int | None = None) -> list[int]:
    """`value` as a list of that many ints; TypeError if it holds no integers, ValueError if there are others."""
    return _core.int_list(name, value, count)


def as_tensors(k: Any, v: Any) -> tuple[Tensor, Tensor]:
    """k and v as arrays of floats, or quantised; raises unless both are there, and such."""
    given = {name: x for name, x in (("k", k), ("v", v)) if x is not None}
    check_pair("k", "v", given)
    return _as_tensor("k", k), _as_tensor("v", v)


def _as_tensor(name: str, x: Any) -> Tensor:
    if isinstance(x, Quantized):
        return x
    array = as_array(name, x)
    require_float(name, dtype_name(name, array))
    return array


def arrays(*tensors: Tensor) -> list[Array]:
    """The arrays that tensors are made of."""
    return [x for t in tensors for x in ((t.data, t.scale) if isinstance(t, Quantized) else (t,))]


def spans(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut [first, last) at the multiples of size: (start, count) of each piece."""
    while first < last:
        count = min(last - first, size - first % size)
        yield first, count
        first += count
