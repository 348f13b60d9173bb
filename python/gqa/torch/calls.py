"""Calls that compute at once: functions of gqa on the memory of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gqa import scaled_dot_product, varlen
from gqa.torch.programs import viewed_program
from gqa.torch.tensors import FLOAT_DTYPES, as_read, as_tensor, named_dtype


def attend(q: Any, k: Any, v: Any, options: dict[str, Any]) -> Any:
    """gqa.attention on tensors: out, or (out, lse)."""
    values = v if v is not None else options.get("past_value")
    return attended(scaled_dot_product.attention, (q, k, v), _channels(values), options)


def attend_tokens_first(q: Any, k: Any, v: Any, options: dict[str, Any]) -> Any:
    """gqa.attention on q (B, Hq, S, D), k and v: a new tensor (B, S, Hq, Dv), as the next layer reads it."""
    *batch, heads, tokens, _ = q.shape
    out = torch.empty((*batch, tokens, heads, v.shape[-1]), dtype=q.dtype)
    options = {name: as_read(x) for name, x in options.items()}
    options["out"], options["num_threads"] = out.transpose(-3, -2), torch.get_num_threads()
    scaled_dot_product.attention(as_read(q), as_read(k), as_read(v), **options)
    return out


def attend_packed(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, options: dict[str, Any]) -> Any:
    """gqa.varlen_attention on tensors: out, or (out, lse)."""
    return attended(varlen.varlen_attention, (q, k, v, cu_seqlens_q, cu_seqlens_k), _channels(v), options)


def attended(
    function: Callable[..., Any], tensors: tuple[Any, ...], channels: int | None, options: dict[str, Any]
) -> Any:
    """What a function of gqa gives: in a new tensor, or in the ``out`` among the options.

    tensors: its positional arguments, the first of which has the output's axes before the channels.
    """
    viewed = {name: as_read(x) for name, x in options.items()}
    out, out_dtype = options.get("out"), options.get("out_dtype")
    if out_dtype is not None:
        viewed["out_dtype"] = out_dtype = named_dtype(out_dtype)
    if out is None:
        q = tensors[0]
        dtype = q.dtype if out_dtype is None else FLOAT_DTYPES.get(out_dtype)
        if dtype is q.dtype and channels == q.shape[-1] and q.layout is torch.strided:
            viewed["out"] = out = torch.empty_like(q, memory_format=torch.contiguous_format)
        elif channels is not None and dtype is not None:  # otherwise the core says what is missing or wrong
            out = torch.empty(q.shape[:-1] + (channels,), dtype=dtype)  # noqa: RUF005 (a third of the time)
            viewed["out"] = out
    functions = viewed.pop("score_mod", None), viewed.pop("mask_mod", None)
    if functions != (None, None):
        viewed["score_mod"] = viewed_program(*functions)
    if options.get("num_threads") is None:
        viewed["num_threads"] = torch.get_num_threads()
    result = function(*map(as_read, tensors), **viewed)
    return (out, as_tensor(result[1])) if type(result) is tuple else out


def _channels(values: Any) -> int | None:
    return values.shape[-1] if values is not None and len(values.shape) > 0 else None
