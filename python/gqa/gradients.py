"""Gradients of attention: its vector-Jacobian product, from what the forward call took and gave."""

from __future__ import annotations

from typing import Any, NamedTuple

from gqa import _core
from gqa.arguments import AnyArray, Array, as_array
from gqa.options import Options
from gqa.quantization import Quantized
from gqa.scores.tracing import MaskMod, ScoreMod, bind
from gqa.sequences import as_tensors
from gqa.shapes import check_shape
from gqa.signatures import Flag, Real, Whole, Window
from gqa.varlen import packed_tables


class AttentionGradients(NamedTuple):
    """Gradients by the arguments of a call, each of its argument's shape and dtype; None where there is no such."""

    dq: Array
    dk: Array
    dv: Array
    dmask: Array | None
    dsinks: Array | None


def attention_vjp(
    dout: AnyArray,
    q: AnyArray,
    k: AnyArray,
    v: AnyArray,
    out: AnyArray,
    lse: AnyArray,
    *,
    dlse: AnyArray | None = None,
    mask_grad: Flag = False,
    mask: AnyArray | None = None,
    causal: Flag = False,
    query_offset: Any = None,
    window: Window | None = None,
    kv_lengths: Any = None,
    scale: Real | None = None,
    softcap: Real = 0.0,
    sinks: AnyArray | None = None,
    layout: str = "bhsd",
    num_threads: Whole | None = None,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
) -> AttentionGradients:
    """The gradients of sum(dout * out) + sum(dlse * lse), where (out, lse) is what :func:`gqa.attention` gave.

    Scores are computed anew, block by block: besides the gradients it takes a few MiB for each thread, and one float32
    copy of dk and dv where those are of half precision.

    Parameters
    ----------
    dout : ndarray, shape (B, Hq, S, Dv)
        Gradient by the output, of any float type.
    q, k, v : ndarray, shape (B, Hq, S, D), (B, Hkv, T, D) and (B, Hkv, T, Dv)
        As the forward call had them; a past is joined to k and v first. Quantised keys have no gradient.
    out : ndarray, shape (B, Hq, S, Dv)
        What the forward call returned. Of half precision, its float32 result (``out_dtype="float32"``) makes dq and dk
        as exact as dv: a rounded out is off by as much in sum(dout * out), which is part of them.
    lse : ndarray, shape (B, Hq, S)
        What it returned with ``return_lse=True``.
    dlse : ndarray, shape (B, Hq, S), optional
        Gradient by lse, where that goes on to be used, as when states are merged.
    mask_grad : bool
        Return dmask as well; the mask must hold floats.
    mask, causal, query_offset, window, kv_lengths, scale, softcap, sinks, layout, score_mod, mask_mod
        As the forward call had them. score_mod is differentiated by the score; arrays that it captured have no
        gradient.
    num_threads : int, optional
        Default: :func:`gqa.get_num_threads`.

    Returns
    -------
    AttentionGradients
        (dq, dk, dv, dmask, dsinks), each of the shape and dtype of its argument, dmask summed over the axes that the
        mask is broadcast over. dmask is None without mask_grad, dsinks without sinks. 0 where nothing is attended.

    Raises
    ------
    TypeError
        For an argument of a wrong type or dtype.
    ValueError
        For shapes that do not fit, values out of range, or memory that another library does not hand out.
    ModuleNotFoundError
        For a gradient of bfloat16 without the package ml_dtypes.

    Notes
    -----
    Accumulates in float32, or in float64 where attention does, and rounds once. Bits do not depend on the number of
    threads, and those of dq, dk and dv not on the rest of the batch. The backward pass over blocks is that of Dao et
    al. 2022, arXiv:2205.14135.

    Examples
    --------
    >>> import gqa, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> q, dout = rng.standard_normal((2, 1, 8, 5, 64), np.float32)
    >>> k, v = rng.standard_normal((2, 1, 2, 5, 64), np.float32)
    >>> out, lse = gqa.attention(q, k, v, causal=True, return_lse=True)
    >>> grads = gqa.attention_vjp(dout, q, k, v, out, lse, causal=True)
    >>> grads.dq.shape, grads.dk.shape
    ((1, 8, 5, 64), (1, 2, 5, 64))
    """
    options = Options(
        layout=layout, causal=causal, window=window, scale=scale, softcap=softcap, num_threads=num_threads, mask=mask,
        sinks=sinks, program=bind(score_mod, mask_mod, slope=True),
    )  # fmt: skip
    tensors = (dout, q, k, v, out, lse, dlse)
    return AttentionGradients(*_core.attention_vjp(tensors, query_offset, kv_lengths, mask_grad, options))


def varlen_attention_vjp(
    dout: AnyArray,
    q: AnyArray,
    k: AnyArray,
    v: AnyArray,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    out: AnyArray,
    lse: AnyArray,
    *,
    dlse: AnyArray | None = None,
    kv_lengths: Any = None,
    mask: AnyArray | None = None,
    causal: Flag = False,
    window: Window | None = None,
    scale: Real | None = None,
    softcap: Real = 0.0,
    sinks: AnyArray | None = None,
    num_threads: Whole | None = None,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
) -> AttentionGradients:
    """The gradients of sum(dout * out) + sum(dlse * lse), where (out, lse) is what :func:`gqa.varlen_attention` gave.

    Parameters
    ----------
    dout : ndarray, shape (Tq, Hq, Dv)
        Gradient by the output, of any float type.
    q, k, v : ndarray, shape (Tq, Hq, D), (Tk, Hkv, D) and (Tk, Hkv, Dv)
        As the forward call had them. Quantised keys have no gradient.
    cu_seqlens_q, cu_seqlens_k : array of int, shape (N + 1,)
        As the forward call had them.
    out : ndarray, shape (Tq, Hq, Dv)
        What the forward call returned.
    lse, dlse : ndarray, shape (Hq, Tq)
        What it returned with ``return_lse=True``, and, optionally, the gradient by that.
    kv_lengths, mask, causal, window, scale, softcap, sinks, score_mod, mask_mod
        As the forward call had them. There is no gradient of the mask.
    num_threads : int, optional
        Default: :func:`gqa.get_num_threads`.

    Returns
    -------
    AttentionGradients
        As :func:`gqa.attention_vjp` returns them: 0 for tokens outside the sequences, keys past kv_lengths included.

    Raises
    ------
    TypeError
        For an argument of a wrong type or dtype.
    ValueError
        For shapes that do not fit or values out of range.

    Examples
    --------
    >>> import gqa, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> q, dout = rng.standard_normal((2, 5, 4, 16), np.float32)
    >>> k, v = rng.standard_normal((2, 5, 2, 16), np.float32)
    >>> ends = [0, 3, 5]
    >>> out, lse = gqa.varlen_attention(q, k, v, ends, ends, causal=True, return_lse=True)
    >>> gqa.varlen_attention_vjp(dout, q, k, v, ends, ends, out, lse, causal=True).dk.shape
    (5, 2, 16)
    """
    for name, x in (("k", k), ("v", v)):
        if isinstance(x, Quantized):
            raise TypeError(f"{name} is quantised, which has no gradient")
    q, (k_tensor, v_tensor) = as_array("q", q), as_tensors(k, v)
    sequences, runs, mask_shape = packed_tables(q, k_tensor, v_tensor, cu_seqlens_q, cu_seqlens_k, kv_lengths)
    sums = {"lse": as_array("lse", lse)} | ({} if dlse is None else {"dlse": as_array("dlse", dlse)})
    for name, x in sums.items():
        check_shape(name, x.shape, (q.shape[1], q.shape[0]))
    options = Options(
        layout="bshd", causal=causal, window=window, scale=scale, softcap=softcap, num_threads=num_threads, mask=mask,
        sinks=sinks, program=bind(score_mod, mask_mod, slope=True),
    )  # fmt: skip
    tensors = (dout, q, k_tensor, v_tensor, out, sums["lse"].T, sums["dlse"].T if "dlse" in sums else None)
    return AttentionGradients(*_core.sequences_vjp(tensors, (sequences, runs, mask_shape), options))
