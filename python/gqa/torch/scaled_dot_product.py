"""gqa.attention on tensors, and PyTorch's own signature for it."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention as torchs_own  # also where a program replaces that by ours

from gqa.quantization import Quantized
from gqa.shapes import MOST_CHANNELS, check_flag, check_window
from gqa.torch.calls import attend, attend_tokens_first
from gqa.torch.library import ATTENTION
from gqa.torch.modes import is_recorded, runs_now
from gqa.torch.programs import arguments_of
from gqa.torch.tensors import FLOAT_DTYPES, require_tensor

_FLOATS = frozenset(FLOAT_DTYPES.values())
_MOST_SCALE = 1e30


def attention(q: Any, k: Any = None, v: Any = None, **options: Any) -> Any:
    """:func:`gqa.attention` on tensors of PyTorch, also under ``torch.compile``.

    Parameters
    ----------
    q, k, v : torch.Tensor
        As for :func:`gqa.attention`; k and v may be left out when a past is given. On the CPU, of any strides; never
        copied, unless the last axis is not contiguous.
    **options
        Those of :func:`gqa.attention`, with tensors for its arrays and PyTorch's dtypes for ``out_dtype``. Under
        torch.compile there is no ``out``, and no quantised k, v or past.

    Returns
    -------
    out, or (out, lse) with return_lse : torch.Tensor

    Raises
    ------
    TypeError, ValueError
        What :func:`gqa.attention` raises.
    NotImplementedError
        For a second derivative.

    Notes
    -----
    Differentiable by q, k, v, a past, sinks and a mask of floats, by :func:`gqa.attention_vjp`, without an S x T array;
    where gradients are recorded, a past is joined to k and v.

    Score functions have gradients by the score, and none by what they captured. A graph of torch.compile, and
    torch.export with strict=True, takes what :func:`gqa.trace` returned outside of it; a function breaks the graph.

    The results have the bits of :func:`gqa.attention`. num_threads is :func:`torch.get_num_threads` by default. PyTorch
    sees one operator, ``torch.ops.gqa.attention``: in graphs of torch.compile and torch.export, and in profiles.

    Examples
    --------
    >>> import gqa.torch, torch
    >>> q, k, v = torch.randn(1, 8, 5, 64), torch.randn(1, 2, 16, 64), torch.randn(1, 2, 16, 64)
    >>> gqa.torch.attention(q, k, v, causal=True).shape
    torch.Size([1, 8, 5, 64])
    """
    require_tensor("q", q)
    if runs_now((q, k, v, *options.values())):
        return attend(q, k, v, options)
    return _recorded(q, k, v, **options)


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """``torch.nn.functional.scaled_dot_product_attention`` by gqa: the same arguments, the same results.

    Parameters
    ----------
    query : torch.Tensor, shape (B, Hq, L, E) or (Hq, L, E)
    key, value : torch.Tensor, shape (B, Hkv, S, E) and (B, Hkv, S, Ev), or without B
        Of query's dtype: float32, float64, float16 or bfloat16.
    attn_mask : torch.Tensor, optional
        bool (True: attend) or of query's dtype, broadcast to (B, Hq, L, S).
    dropout_p : float
        Above 0, PyTorch's own function is called.
    is_causal : bool
        Query i attends keys 0 to i.
    scale : float, optional
        Default 1 / sqrt(E).
    enable_gqa : bool
        Whether Hq may be a multiple of Hkv; otherwise the two must be equal.

    Returns
    -------
    torch.Tensor, shape (B, Hq, L, Ev), of query's dtype
        Tokens come before heads in its memory, so that ``out.transpose(1, 2).flatten(2)`` copies nothing.

    Raises
    ------
    RuntimeError
        What PyTorch's function raises for arguments that do not fit.

    Notes
    -----
    Whatever gqa does not compute is handed to PyTorch's function: dropout, other devices, dtypes and numbers of axes,
    nested and sparse tensors, batches and heads that broadcast, and whatever it refuses. Within torch.autocast, tensors
    are cast as PyTorch does. A query that holds NaN gives NaN, where PyTorch's kernel for the CPU gives 0.

    Examples
    --------
    >>> import gqa.torch, torch
    >>> q, k, v = torch.randn(1, 8, 5, 64), torch.randn(1, 2, 5, 64), torch.randn(1, 2, 5, 64)
    >>> out = gqa.torch.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    >>> expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    >>> torch.testing.assert_close(out, expected)
    """
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (_autocast(x) for x in (query, key, value))
        if isinstance(attn_mask, torch.Tensor) and attn_mask.is_floating_point():
            attn_mask = _autocast(attn_mask)
    if not _is_ours(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa):
        return torchs_own(
            query, key, value, attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )
    options: dict[str, Any] = {"mask": attn_mask, "causal": is_causal, "query_offset": 0, "scale": scale}
    if runs_now((query, key, value, attn_mask)):
        return attend_tokens_first(query, key, value, options).transpose(-3, -2)
    swapped = (x.transpose(-3, -2) for x in (query, key, value))
    return _recorded(*swapped, **options, layout="bshd").transpose(-3, -2)


def _is_ours(
    query: Any, key: Any, value: Any, mask: Any, dropout_p: float, is_causal: bool, scale: Any, enable_gqa: bool
) -> bool:
    """Whether these are arguments that PyTorch takes, and gqa computes."""
    if dropout_p != 0 or not (_in_memory(query) and _in_memory(key) and _in_memory(value)):
        return False
    dtype, shape, keys, values = query.dtype, tuple(query.shape), tuple(key.shape), tuple(value.shape)
    if dtype not in _FLOATS or key.dtype != dtype or value.dtype != dtype or len(shape) not in (3, 4):
        return False
    if len(keys) != len(shape) or shape[:-3] != keys[:-3] or keys[:-1] != values[:-1] or shape[-1] != keys[-1]:
        return False
    if not 0 < shape[-1] <= MOST_CHANNELS or values[-1] > MOST_CHANNELS:
        return False
    heads, kv_heads = shape[-3], keys[-3]
    if heads != kv_heads and not (enable_gqa and kv_heads > 0 and heads % kv_heads == 0):
        return False
    if scale is not None and not (isinstance(scale, (float, int)) and abs(scale) <= _MOST_SCALE):
        return False
    if mask is None:
        return True
    full = (*shape[:-1], keys[-2])
    return (
        not is_causal
        and _in_memory(mask)
        and mask.dtype in (torch.bool, dtype)
        and mask.dim() <= len(full)
        and all(n in (1, m) for n, m in zip(reversed(mask.shape), reversed(full)))
    )


def _in_memory(x: Any) -> bool:
    """Whether x is a tensor with elements at strides in the CPU's memory, or stands for one that has."""
    return isinstance(x, torch.Tensor) and x.is_cpu and x.layout is torch.strided and not x.is_nested


def _autocast(x: Any) -> Any:
    """A tensor in the dtype of torch.autocast on the CPU; float64 stays, as everywhere in autocast."""
    floats = isinstance(x, torch.Tensor) and x.device.type == "cpu" and x.is_floating_point()
    return x.to(torch.get_autocast_dtype("cpu")) if floats and x.dtype != torch.float64 else x


def _recorded(
    q: Any,
    k: Any,
    v: Any,
    *,
    past_key: Any = None,
    past_value: Any = None,
    mask: Any = None,
    causal: Any = False,
    query_offset: Any = None,
    window: Any = None,
    kv_lengths: Any = None,
    scale: Any = None,
    softcap: Any = 0.0,
    sinks: Any = None,
    layout: str = "bhsd",
    out: Any = None,
    out_dtype: Any = None,
    return_lse: bool = False,
    num_threads: Any = None,
    score_mod: Any = None,
    mask_mod: Any = None,
) -> Any:
    """Attention by the operator, for whoever listens to PyTorch's dispatcher."""
    require_recordable(k=k, v=v, past_key=past_key, past_value=past_value)
    settings = settings_of(
        mask, causal, window, scale, softcap, sinks, out, out_dtype, num_threads, score_mod, mask_mod
    )
    if past_key is not None and is_recorded((q, k, v, past_key, past_value)):
        past_key, past_value, k, v = None, None, _joined(past_key, k, layout), _joined(past_value, v, layout)
    number = query_offset is None or isinstance(query_offset, (int, torch.SymInt))
    result = ATTENTION(
        q, k, v, past_key, past_value,
        None if kv_lengths is None else torch.as_tensor(kv_lengths),
        None if number else torch.as_tensor(query_offset),
        query_offset if number else None,
        layout, *settings,
    )  # fmt: skip
    return result if return_lse else result[0]


def _joined(past: torch.Tensor, new: torch.Tensor | None, layout: str) -> torch.Tensor:
    """A past and new tokens as one tensor, whose gradient PyTorch knows how to part."""
    return past if new is None else torch.cat([past, new.to(past.dtype)], dim=-2 if layout == "bhsd" else -3)


def require_recordable(**tensors: Any) -> None:
    """TypeError, by name, for what the operators do not take: quantised tensors."""
    for name, x in tensors.items():
        if isinstance(x, Quantized):
            raise TypeError(f"{name} is quantised, expected a torch.Tensor where PyTorch traces or differentiates")


def settings_of(
    mask: Any, causal: Any, window: Any, scale: Any, softcap: Any, sinks: Any, out: Any, out_dtype: Any,
    num_threads: Any, score_mod: Any, mask_mod: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """The options that end the arguments of every operator."""
    if out is not None:
        raise TypeError("out is given, but nothing can be written to where PyTorch traces or differentiates")
    left, right = check_window(window) or (None, None)
    return (
        None if mask is None else torch.as_tensor(mask),
        None if sinks is None else torch.as_tensor(sinks),
        check_flag("causal", causal),
        left,
        right,
        None if scale is None else float(scale),
        float(softcap),
        FLOAT_DTYPES.get(out_dtype, out_dtype),
        num_threads,
        *arguments_of(score_mod, mask_mod),
    )
