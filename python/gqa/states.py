"""Attention over parts of the keys, put together: each part gives an output and a log-sum-exp."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gqa.arguments import Array, as_array, dtype_name
from gqa.dtypes import compute_dtype, require_float
from gqa.shapes import check_shape


def merge_states(outs: Sequence[Array], lses: Sequence[Array]) -> tuple[Array, Array]:
    """Merge attention over disjoint sets of keys into attention over all of them.

    Parameters
    ----------
    outs : sequence of ndarray, each of shape (..., Dv)
        Outputs of the same queries over different keys, in any order and number.
    lses : sequence of ndarray, each of shape (...)
        Their log-sum-exps, as ``return_lse=True`` gives them: the shape of the output less its last axis. A part
        without keys has out 0 and lse -inf. Sinks belong to one part only.

    Returns
    -------
    out : ndarray, shape (..., Dv)
        Of the first output's dtype; accumulated in float64 if any argument is, else in float32.
    lse : ndarray, shape (...)

    Raises
    ------
    TypeError
        If an argument holds no floats.
    ValueError
        If there are no parts, or shapes differ.

    Examples
    --------
    >>> import gqa, numpy as np
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 8, 16))
    >>> parts = [gqa.attention(q, k[:, :, i], v[:, :, i], return_lse=True) for i in (slice(0, 3), slice(3, 8))]
    >>> out, lse = gqa.merge_states(*zip(*parts))
    >>> np.allclose(out, gqa.attention(q, k, v))
    True
    """
    if len(outs) != len(lses) or not outs:
        raise ValueError(f"there are {len(outs)} outs and {len(lses)} lses, expected as many, at least one")
    parts = {f"outs[{i}]": x for i, x in enumerate(outs)} | {f"lses[{i}]": x for i, x in enumerate(lses)}
    for name, x in parts.items():
        require_float(name, dtype_name(name, as_array(name, x)))
    for i, (out, lse) in enumerate(zip(outs, lses)):
        check_shape(f"outs[{i}]", out.shape, outs[0].shape)
        check_shape(f"lses[{i}]", lse.shape, outs[0].shape[:-1])

    dtype = np.dtype(compute_dtype(*(x.dtype.name for x in parts.values())))
    top = np.max([lse.astype(dtype) for lse in lses], axis=0)
    top = np.where(np.isneginf(top), dtype.type(0), top)  # a row without keys in any part stays 0
    total = np.zeros(top.shape, dtype)
    merged = np.zeros(outs[0].shape, dtype)
    for out, lse in zip(outs, lses):
        weight = np.exp(lse.astype(dtype) - top)
        total += weight
        merged += np.where(weight[..., None] == 0, dtype.type(0), weight[..., None] * out.astype(dtype))
    with np.errstate(divide="ignore"):
        lse = top + np.log(total)
    merged /= np.where(total == 0, dtype.type(1), total)[..., None]
    return merged.astype(outs[0].dtype), lse
