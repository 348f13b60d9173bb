"""The forward operators: computed by the core, and described for torch.compile and fake tensors."""

from __future__ import annotations

from typing import Any

import torch

from gqa import shape_inference
from gqa.torch.calls import attend, attend_packed
from gqa.torch.library import ATTENTION, LIBRARY, VARLEN, options_of
from gqa.torch.tensors import named_dtype

Results = tuple[torch.Tensor, torch.Tensor]


def _attend(*arguments: Any) -> Results:
    options = options_of(ATTENTION, arguments)
    q, k, v = (options.pop(name) for name in "qkv")
    result: Results = attend(q, k, v, {**options, "return_lse": True})
    return result


def _attend_packed(*arguments: Any) -> Results:
    options = options_of(VARLEN, arguments)
    q, k, v, q_ends, k_ends = (options.pop(name) for name in ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k"))
    result: Results = attend_packed(q, k, v, q_ends, k_ends, {**options, "return_lse": True})
    return result


def _describe(*arguments: Any) -> Results:
    given = {name: x for name, x in options_of(ATTENTION, arguments).items() if x is not None}
    tensors = {name: x for name, x in given.items() if isinstance(x, torch.Tensor)}
    q, out_dtype = tensors["q"], given.pop("out_dtype", None)
    given.pop("score_mod", None)
    values: Any = tensors.get("v", tensors.get("past_value"))
    symbolic = any(not isinstance(n, int) for x in tensors.values() for n in x.shape)
    if values is None or not symbolic:  # otherwise the kernel checks what the graph is given
        shape_inference.infer_shapes(
            {name: tuple(x.shape) for name, x in tensors.items()},
            {name: named_dtype(x.dtype) for name, x in tensors.items()},
            **{name: x for name, x in given.items() if name not in tensors}, out_dtype=named_dtype(out_dtype),
        )  # fmt: skip
    floats = [tensors[name] for name in ("q", "k", "v", "past_key", "past_value") if name in tensors]
    lse = q.new_empty(q.shape[:-1], dtype=_lse_dtype(*floats))
    return q.new_empty((*q.shape[:-1], values.shape[-1]), dtype=out_dtype or q.dtype), lse


def _describe_packed(*arguments: Any) -> Results:
    options = options_of(VARLEN, arguments)
    q, k, v, out_dtype = (options[name] for name in ("q", "k", "v", "out_dtype"))
    lse = q.new_empty(q.shape[:2], dtype=_lse_dtype(q, k, v)).T
    return q.new_empty((*q.shape[:-1], v.shape[-1]), dtype=out_dtype or q.dtype), lse


def _lse_dtype(*tensors: Any) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


for _operator, _kernel, _description in (
    (ATTENTION, _attend, _describe),
    (VARLEN, _attend_packed, _describe_packed),
):
    LIBRARY.impl(_operator, _kernel, "CPU")
    torch.library.register_fake(_operator, _description, lib=LIBRARY)
