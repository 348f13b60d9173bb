"""The operators torch.ops.gqa.attention and varlen_attention: what torch.compile, fake tensors and autograd see.

They have every argument of the functions of :mod:`gqa`, except that options which may be a number or a tensor are two
arguments, and a window is its two bounds. Both always return the log-sum-exp, which the derivative needs.
"""

from __future__ import annotations

from typing import Any

import torch

from gqa import scaled_dot_product
from gqa.torch.calls import attend, attend_packed
from gqa.torch.tensors import named_dtype

_OPTIONS = """Tensor? mask, Tensor? sinks, bool causal, SymInt? left, SymInt? right, float? scale, float softcap,
    ScalarType? out_dtype, SymInt? num_threads"""

_library = torch.library.Library("gqa", "FRAGMENT")  # whose operators last as long as this object
_library.define(f"""attention(Tensor q, Tensor? k, Tensor? v, Tensor? past_key, Tensor? past_value,
    Tensor? kv_lengths, Tensor? query_offsets, SymInt? query_offset, str layout, {_OPTIONS}) -> (Tensor, Tensor)""")
_library.define(f"""varlen_attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k,
    Tensor? kv_lengths, {_OPTIONS}) -> (Tensor, Tensor)""")

Results = tuple[torch.Tensor, torch.Tensor]


# ---- computed ------------------------------------------------------------------------------------------------------


def _options(named: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an operator as options of gqa's functions."""
    left, right = named.pop("left"), named.pop("right")
    offsets = named.pop("query_offsets", None)
    if offsets is not None:
        named["query_offset"] = offsets
    if left is not None or right is not None:
        named["window"] = (left, right)
    return named


def _attention(q: Any, k: Any, v: Any, *rest: Any) -> Results:
    result: Results = attend(q, k, v, {**_options(dict(zip(_ATTENTION[3:], rest))), "return_lse": True})
    return result


def _varlen_attention(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, *rest: Any) -> Results:
    options = {**_options(dict(zip(_VARLEN[5:], rest))), "return_lse": True}
    result: Results = attend_packed(q, k, v, cu_seqlens_q, cu_seqlens_k, options)
    return result


# ---- described: shapes and dtypes alone ----------------------------------------------------------------------------


def _attention_described(*arguments: Any) -> Results:
    options = _options(dict(zip(_ATTENTION, arguments)))
    given = {name: x for name, x in options.items() if x is not None}
    tensors = {name: x for name, x in given.items() if isinstance(x, torch.Tensor)}
    q, out_dtype = tensors["q"], given.pop("out_dtype", None)
    values: Any = tensors.get("v", tensors.get("past_value"))
    symbolic = any(not isinstance(n, int) for x in tensors.values() for n in x.shape)
    if values is None or not symbolic:  # otherwise the kernel checks what the graph is given
        scaled_dot_product.infer_shapes(
            {name: tuple(x.shape) for name, x in tensors.items()},
            {name: named_dtype(x.dtype) for name, x in tensors.items()},
            **{name: x for name, x in given.items() if name not in tensors}, out_dtype=named_dtype(out_dtype),
        )  # fmt: skip
    floats = [tensors[name] for name in ("q", "k", "v", "past_key", "past_value") if name in tensors]
    lse = q.new_empty(q.shape[:-1], dtype=_lse_dtype(*floats))
    return q.new_empty((*q.shape[:-1], values.shape[-1]), dtype=out_dtype or q.dtype), lse


def _varlen_described(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, *rest: Any) -> Results:
    out_dtype = dict(zip(_VARLEN[5:], rest))["out_dtype"]
    lse = q.new_empty(q.shape[:2], dtype=_lse_dtype(q, k, v)).T
    return q.new_empty((*q.shape[:-1], v.shape[-1]), dtype=out_dtype or q.dtype), lse


def _lse_dtype(*tensors: Any) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


# ---- the registry --------------------------------------------------------------------------------------------------


def _no_gradients(*_: Any) -> Any:
    raise NotImplementedError(
        "gqa.torch has no gradients: differentiate torch.nn.functional.scaled_dot_product_attention, or call within "
        "torch.no_grad()"
    )


for _name, _kernel, _description in (
    ("attention", _attention, _attention_described),
    ("varlen_attention", _varlen_attention, _varlen_described),
):
    _library.impl(_name, _kernel, "CPU")
    torch.library.register_fake(f"gqa::{_name}", _description, lib=_library)
    torch.library.register_autograd(f"gqa::{_name}", _no_gradients, lib=_library)

attention_operator = torch.ops.gqa.attention.default
varlen_operator = torch.ops.gqa.varlen_attention.default
_ATTENTION, _VARLEN = ([x.name for x in op._schema.arguments] for op in (attention_operator, varlen_operator))
