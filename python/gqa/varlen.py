"""Attention over packed batches: sequences of any lengths one after another, without padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from gqa.arguments import AnyArray, Array, as_array, int_array, lengths_array
from gqa.options import Options
from gqa.scores.tracing import MaskMod, ScoreMod, bind
from gqa.sequences import RUN_COLUMNS, SEQUENCE_COLUMNS, Table, Tensor, as_tensors, attend_sequences
from gqa.shapes import Shape
from gqa.signatures import AnyTensor, Flag, Real, ScoredOptions, Whole, Window

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def varlen_attention(
    q: AnyArray, k: AnyTensor, v: AnyTensor, cu_seqlens_q: Any, cu_seqlens_k: Any, *,
    kv_lengths: Any = ..., return_lse: Literal[False] = ..., **options: Unpack[ScoredOptions],
) -> Array: ...  # fmt: skip
@overload
def varlen_attention(
    q: AnyArray, k: AnyTensor, v: AnyTensor, cu_seqlens_q: Any, cu_seqlens_k: Any, *,
    kv_lengths: Any = ..., return_lse: Literal[True], **options: Unpack[ScoredOptions],
) -> tuple[Array, Array]: ...  # fmt: skip
@overload
def varlen_attention(
    q: AnyArray, k: AnyTensor, v: AnyTensor, cu_seqlens_q: Any, cu_seqlens_k: Any, *,
    kv_lengths: Any = ..., return_lse: bool = ..., **options: Unpack[ScoredOptions],
) -> Array | tuple[Array, Array]: ...  # fmt: skip
def varlen_attention(
    q: AnyArray,
    k: AnyTensor,
    v: AnyTensor,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    *,
    kv_lengths: Any = None,
    mask: AnyArray | None = None,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
    causal: Flag = False,
    window: Window | None = None,
    scale: Real | None = None,
    softcap: Real = 0.0,
    sinks: AnyArray | None = None,
    out: Array | None = None,
    out_dtype: Any = None,
    return_lse: bool = False,
    num_threads: Whole | None = None,
) -> Array | tuple[Array, Array]:
    """Attention within each sequence of a packed batch.

    Sequence n has the queries cu_seqlens_q[n] to cu_seqlens_q[n + 1] of q and the keys cu_seqlens_k[n] to
    cu_seqlens_k[n + 1] of k and v; its queries stand at the end of its keys, so causal and window are aligned bottom
    right. Query head h attends with key/value head h // (Hq // Hkv); keys and values are never repeated or copied.

    Parameters
    ----------
    q : ndarray, shape (Tq, Hq, D)
        float32, float64, float16 or bfloat16.
    k, v : ndarray or Quantized, shape (Tk, Hkv, D) and (Tk, Hkv, Dv)
        Any strides, as views of a fused projection have them; a last axis that is not contiguous is copied first.
    cu_seqlens_q, cu_seqlens_k : array of int, shape (N + 1,)
        Where the sequences begin and end: 0 first, not decreasing, at most Tq or Tk. Sequences may be empty.
    kv_lengths : array of int, shape (N,), optional
        How many of its keys each sequence uses; those past it are never read.
    mask : ndarray, optional
        bool (True: attend) or float, broadcast to (N, Hq, most queries of a sequence, most keys of a sequence), keys
        past kv_lengths counted; rows and columns count from each sequence's own first query and key.
    score_mod, mask_mod : callable or Program, optional
        As in :func:`gqa.attention`: b is the number of the sequence, q_idx and kv_idx count from its first key.
    causal, window, scale, softcap, sinks, num_threads
        As in :func:`gqa.attention`.
    out : ndarray, shape (Tq, Hq, Dv), optional
        Where to put the output: its dtype, any strides; must not overlap an input.
    out_dtype : dtype, optional
        As in :func:`gqa.attention`.
    return_lse : bool
        Return the log-sum-exp of the scores as well.

    Returns
    -------
    out : ndarray, shape (Tq, Hq, Dv), of q's dtype, or of out_dtype
        Rows without keys, and rows past the last sequence, are 0.
    lse : ndarray, shape (Hq, Tq)
        If return_lse. A row without keys has the logit of its sink, or -inf; rows past the last sequence have -inf in
        any case. float64 if any of q, k and v is, else float32.

    Raises
    ------
    TypeError
        For an argument of a wrong type or dtype.
    ValueError
        For shapes that do not fit or values out of range.

    Notes
    -----
    The result of a sequence is the same to the last bit whatever its neighbours. The arguments are those of
    flash_attn_varlen_func (Dao 2023, arXiv:2307.08691), with kv_lengths for its seqused_k.

    Examples
    --------
    >>> import gqa, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> q = rng.standard_normal((5, 4, 16), np.float32)
    >>> k, v = rng.standard_normal((2, 5, 2, 16), np.float32)
    >>> out = gqa.varlen_attention(q, k, v, [0, 3, 5], [0, 3, 5], causal=True)
    >>> bool((out[3:] == gqa.varlen_attention(q[3:], k[3:], v[3:], [0, 2], [0, 2], causal=True)).all())
    True
    """
    q, (k, v) = as_array("q", q), as_tensors(k, v)
    sequences, runs, mask_shape = packed_tables(q, k, v, cu_seqlens_q, cu_seqlens_k, kv_lengths)
    options = Options(
        layout="bshd", causal=causal, window=window, scale=scale, softcap=softcap, return_lse=return_lse,
        num_threads=num_threads, mask=mask, sinks=sinks, out=out, out_dtype=out_dtype,
        program=bind(score_mod, mask_mod),
    )  # fmt: skip
    return attend_sequences(q, [(k, v)], sequences, runs, options, mask_shape=mask_shape)


def packed_tables(
    q: Array, k: Tensor, v: Tensor, cu_seqlens_q: Any, cu_seqlens_k: Any, kv_lengths: Any
) -> tuple[Table, Table, tuple[int, int, int]]:
    """The tables of a packed batch: its sequences, the run of keys of each, and what a mask broadcasts to."""
    q_ends, k_ends = packed_ends(q.shape, k.shape, v.shape, cu_seqlens_q, cu_seqlens_k)
    count, queries, keys = len(q_ends) - 1, np.diff(q_ends), np.diff(k_ends)
    mask_shape = packed_mask_shape(q_ends, k_ends)
    if kv_lengths is not None:
        keys = lengths_array("kv_lengths", kv_lengths, (count,), keys)

    sequences = np.zeros((count + 1, SEQUENCE_COLUMNS), np.int64)
    sequences[:, 1] = q_ends
    sequences[:-1, 2] = queries
    sequences[-1, 3] = len(q) - q_ends[-1]  # the last has no query: its rows are padding
    sequences[:-1, 5] = keys - queries
    sequences[:-1, 6] = keys
    sequences[:-1, 7] = np.arange(count)
    sequences[:-1, 9] = 1
    runs = np.zeros((count, RUN_COLUMNS), np.int64)
    runs[:, 2] = k_ends[:-1]
    runs[:, 3] = keys
    return sequences, runs, mask_shape


def packed_ends(q: Shape, k: Shape, v: Shape, cu_seqlens_q: Any, cu_seqlens_k: Any) -> tuple[Table, Table]:
    """Where the sequences of tensors of those shapes begin and end, checked."""
    for name, shape in (("q", q), ("k", k), ("v", v)):
        check_packed(name, shape)
    q_ends = _boundaries("cu_seqlens_q", cu_seqlens_q, q[0])
    k_ends = _boundaries("cu_seqlens_k", cu_seqlens_k, max(k[0], v[0]))
    if len(k_ends) != len(q_ends):
        raise ValueError(f"cu_seqlens_k has shape {k_ends.shape}, expected {q_ends.shape} as cu_seqlens_q")
    return q_ends, k_ends


def packed_mask_shape(q_ends: Table, k_ends: Table) -> tuple[int, int, int]:
    """What a mask broadcasts to, but for the heads: sequences, most queries and most keys of one."""
    queries, keys = np.diff(q_ends), np.diff(k_ends)
    return len(queries), int(queries.max(initial=0)), int(keys.max(initial=0))


def check_packed(name: str, shape: Shape) -> None:
    """Raise ValueError unless a packed tensor has three axes."""
    if len(shape) != 3:
        raise ValueError(f"{name} has shape {shape}, expected (tokens, heads, head_dim)")


def check_ends(name: str, shape: Shape) -> None:
    """Raise ValueError unless ends of sequences have one axis, and are not none at all."""
    if len(shape) != 1 or shape[0] == 0:
        raise ValueError(f"{name} has shape {shape}, expected (number of sequences + 1,)")


def _boundaries(name: str, value: Any, tokens: int) -> Table:
    """Where sequences begin and end, checked."""
    ends = int_array(name, value)
    check_ends(name, ends.shape)
    if ends[0] != 0:
        raise ValueError(f"{name}[0] is {ends[0]}, expected 0")
    for n in np.flatnonzero(ends[1:] < ends[:-1]):
        raise ValueError(f"{name}[{n + 1}] is {ends[n + 1]}, expected at least {ends[n]}, which comes before it")
    if ends[-1] > tokens:
        raise ValueError(f"{name} ends with {ends[-1]}, expected at most {tokens}, the number of tokens")
    return ends
