"""gqa.varlen_attention on tensors."""

from __future__ import annotations

from typing import Any

import torch

from gqa.torch.calls import attend_packed
from gqa.torch.library import VARLEN
from gqa.torch.modes import runs_now
from gqa.torch.scaled_dot_product import require_recordable, settings_of
from gqa.torch.tensors import require_tensor


def varlen_attention(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, **options: Any) -> Any:
    """:func:`gqa.varlen_attention` on tensors of PyTorch, also under ``torch.compile``.

    Parameters
    ----------
    q, k, v : torch.Tensor, shape (Tq, Hq, D), (Tk, Hkv, D) and (Tk, Hkv, Dv)
        Of any strides; never copied, unless the last axis is not contiguous.
    cu_seqlens_q, cu_seqlens_k : torch.Tensor of int, or list of int, shape (N + 1,)
    **options
        Those of :func:`gqa.varlen_attention`, with tensors for its arrays and PyTorch's dtypes for ``out_dtype``. Under
        torch.compile there is no ``out``, and no quantised k or v.

    Returns
    -------
    out, or (out, lse) with return_lse : torch.Tensor

    Raises
    ------
    TypeError, ValueError
        What :func:`gqa.varlen_attention` raises.
    NotImplementedError
        For a gradient of the mask, or a second derivative.

    Notes
    -----
    Differentiable by q, k, v and sinks, by :func:`gqa.varlen_attention_vjp`. Score functions as in
    :func:`gqa.torch.attention`.

    Examples
    --------
    >>> import gqa.torch, torch
    >>> q, k, v = torch.randn(5, 8, 64), torch.randn(5, 2, 64), torch.randn(5, 2, 64)
    >>> gqa.torch.varlen_attention(q, k, v, [0, 3, 5], [0, 3, 5], causal=True).shape
    torch.Size([5, 8, 64])
    """
    require_tensor("q", q)
    if runs_now((q, k, v, cu_seqlens_q, cu_seqlens_k, *options.values())):
        return attend_packed(q, k, v, cu_seqlens_q, cu_seqlens_k, options)
    return _recorded(q, k, v, cu_seqlens_q, cu_seqlens_k, **options)


def _recorded(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    *,
    kv_lengths: Any = None,
    mask: Any = None,
    causal: Any = False,
    window: Any = None,
    scale: Any = None,
    softcap: Any = 0.0,
    sinks: Any = None,
    out: Any = None,
    out_dtype: Any = None,
    return_lse: bool = False,
    num_threads: Any = None,
    score_mod: Any = None,
    mask_mod: Any = None,
) -> Any:
    """Attention by the operator, for whoever listens to PyTorch's dispatcher."""
    require_recordable(k=k, v=v)
    result = VARLEN(
        q, k, v, torch.as_tensor(cu_seqlens_q), torch.as_tensor(cu_seqlens_k),
        None if kv_lengths is None else torch.as_tensor(kv_lengths),
        *settings_of(mask, causal, window, scale, softcap, sinks, out, out_dtype, num_threads, score_mod, mask_mod),
    )  # fmt: skip
    return result if return_lse else result[0]
