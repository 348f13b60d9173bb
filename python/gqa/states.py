"""Attention over parts of the keys, put together: each part gives an output and a log-sum-exp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gqa import _core
from gqa.arguments import AnyArray, Array, as_array, dtype_name, output_target
from gqa.dtypes import FLOATS, compute_dtype, dtype_named, name_of, require_float
from gqa.shapes import check_int, check_shape


def merge_states(
    outs: Sequence[AnyArray],
    lses: Sequence[AnyArray],
    *,
    out: Array | None = None,
    dtype: Any = None,
    num_threads: int | None = None,
) -> tuple[Array, Array]:
    """Merge attention over disjoint sets of keys into attention over all of them.

    Parameters
    ----------
    outs : sequence of ndarray, each of shape (..., Dv)
        Outputs of the same queries over different keys, any number of them: float32, float64, float16 or bfloat16, each
        of its own dtype and with any strides. Parts of half precision should be float32 (``out_dtype="float32"`` where
        they are computed): what was rounded before it is merged is rounded twice.
    lses : sequence of ndarray, each of shape (...)
        Their log-sum-exps, as ``return_lse=True`` gives them: the shape of the output less its last axis. A part
        without keys has lse -inf, and what its output holds does not matter. Sinks belong to one part only.
    out : ndarray, shape (..., Dv), optional
        Where to write the result, with any strides; it may share no memory with the parts.
    dtype : dtype, optional
        float32, float64, float16 or bfloat16: that of the result. Default: that of the first output.
    num_threads : int, optional
        At most so many threads; default :func:`get_num_threads`. The result does not depend on it.

    Returns
    -------
    out : ndarray, shape (..., Dv)
        `out` where that is given. The sum is float64 and is rounded once.
    lse : ndarray, shape (...)
        float64 if any of outs and lses is, else float32.

    Raises
    ------
    TypeError
        If an argument holds no floats, or `out` is not of the result's dtype.
    ValueError
        If there are no parts, shapes differ, or `out` overlaps a part in memory.

    Notes
    -----
    Parts are added in the order in which they are given: another order changes the result by no more than the rounding
    of float64 sums, 1e-16 times the largest output. A NaN in a log-sum-exp gives a NaN row.

    Examples
    --------
    >>> import gqa, numpy as np
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 8, 16))
    >>> parts = [gqa.attention(q, k[:, :, i], v[:, :, i], return_lse=True) for i in (slice(0, 3), slice(3, 8))]
    >>> out, lse = gqa.merge_states(*zip(*parts))
    >>> np.allclose(out, gqa.attention(q, k, v))
    True
    """
    if len(outs) != len(lses) or len(outs) == 0:
        raise ValueError(f"there are {len(outs)} outs and {len(lses)} lses, expected as many, at least one")
    if num_threads is not None:
        check_int("num_threads", num_threads, 1)
    parts = tuple(as_array(f"outs[{i}]", x) for i, x in enumerate(outs))
    sums = tuple(as_array(f"lses[{i}]", x) for i, x in enumerate(lses))
    inputs = [(f"outs[{i}]", x) for i, x in enumerate(parts)] + [(f"lses[{i}]", x) for i, x in enumerate(sums)]
    dtypes = [dtype_name(name, x) for name, x in inputs]
    for (name, _), found in zip(inputs, dtypes):
        require_float(name, found)
    shape = parts[0].shape
    if not shape:
        raise ValueError("outs[0] has shape (), expected at least one axis")
    for i, (part, lse) in enumerate(zip(parts, sums)):
        check_shape(f"outs[{i}]", part.shape, shape)
        check_shape(f"lses[{i}]", lse.shape, shape[:-1])

    result = dtypes[0] if dtype is None else name_of(dtype, "the result")
    if result not in FLOATS:
        raise TypeError(f"dtype is {result}, expected {', '.join(FLOATS)}")
    target = None if out is None else output_target(out, shape, result, inputs, "outs[0]" if dtype is None else "dtype")
    merged = np.empty(shape, dtype_named(result)) if target is None else target
    # Lses of half precision are none of ours, and as many as rows: they may be copied.
    sums = tuple(lse if lse.itemsize >= 4 else lse.astype(np.float32) for lse in sums)
    merged_lse = np.empty(shape[:-1], compute_dtype(*dtypes))
    _core.merge_states(parts, sums, merged, merged_lse, num_threads)
    if out is None:
        return merged, merged_lse
    return out, merged_lse
