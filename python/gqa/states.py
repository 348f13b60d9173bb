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
        Of the first output's dtype, rounded to it once.
    lse : ndarray, shape (...)
        float64 if any argument is, else float32.

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
    if len(outs) != len(lses) or len(outs) == 0:
        raise ValueError(f"there are {len(outs)} outs and {len(lses)} lses, expected as many, at least one")
    for i, (out, lse) in enumerate(zip(outs, lses)):
        for name, x in ((f"outs[{i}]", out), (f"lses[{i}]", lse)):
            require_float(name, dtype_name(name, as_array(name, x)))
        if out.ndim == 0:
            raise ValueError(f"outs[{i}] has shape (), expected at least one axis")
        check_shape(f"outs[{i}]", out.shape, outs[0].shape)
        check_shape(f"lses[{i}]", lse.shape, outs[0].shape[:-1])

    top = np.max([lse.astype(np.float64) for lse in lses], axis=0)
    top = np.where(np.isneginf(top), 0.0, top)  # a row without keys in any part stays 0
    total = np.zeros(top.shape)
    merged = np.zeros(outs[0].shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        for out, lse in zip(outs, lses):
            weight = np.exp(lse.astype(np.float64) - top)[..., None]
            total += weight[..., 0]
            merged += np.where(weight == 0, 0.0, weight * out.astype(np.float64))
        merged /= np.where(total == 0, 1.0, total)[..., None]
        merged_lse = top + np.log(total)
    dtypes = (x.dtype.name for x in (*outs, *lses))
    return merged.astype(outs[0].dtype), merged_lse.astype(compute_dtype(*dtypes))
