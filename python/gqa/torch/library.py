"""The operators of torch.ops.gqa: their arguments, and how those become options of gqa's functions.

Each has every argument of its function in :mod:`gqa`, except that an option which may be a number or a tensor is two
arguments, a window is its two bounds, and score functions are a program's text and the tensors that it reads. The
forward operators always return the log-sum-exp, which the backward ones need. Those return an empty tensor for a
gradient that there is not.
"""

from __future__ import annotations

from typing import Any

import torch

from gqa.torch.programs import program_of

_OPTIONS = """Tensor? mask, Tensor? sinks, bool causal, SymInt? left, SymInt? right, float? scale, float softcap,
    ScalarType? out_dtype, SymInt? num_threads, str? program, Tensor[] captured"""
_POSITIONS = "Tensor? kv_lengths, Tensor? query_offsets, SymInt? query_offset, str layout"
_ENDS = "Tensor cu_seqlens_q, Tensor cu_seqlens_k"
_RESULTS = "Tensor dout, Tensor? dlse, Tensor out, Tensor lse, bool mask_grad"
_GRADIENTS = "(Tensor dq, Tensor dk, Tensor dv, Tensor dmask, Tensor dsinks)"
_SCHEMAS = {
    "attention": f"Tensor q, Tensor? k, Tensor? v, Tensor? past_key, Tensor? past_value, {_POSITIONS}, {_OPTIONS}",
    "attention_backward": f"{_RESULTS}, Tensor q, Tensor k, Tensor v, {_POSITIONS}, {_OPTIONS}",
    "varlen_attention": f"Tensor q, Tensor k, Tensor v, {_ENDS}, Tensor? kv_lengths, {_OPTIONS}",
    "varlen_attention_backward": f"{_RESULTS}, Tensor q, Tensor k, Tensor v, {_ENDS}, Tensor? kv_lengths, {_OPTIONS}",
}

LIBRARY = torch.library.Library("gqa", "FRAGMENT")  # whose operators last as long as this object
for _name, _arguments in _SCHEMAS.items():
    LIBRARY.define(f"{_name}({_arguments}) -> {_GRADIENTS if 'backward' in _name else '(Tensor, Tensor)'}")

ATTENTION = torch.ops.gqa.attention.default
ATTENTION_BACKWARD = torch.ops.gqa.attention_backward.default
VARLEN = torch.ops.gqa.varlen_attention.default
VARLEN_BACKWARD = torch.ops.gqa.varlen_attention_backward.default


def names_of(operator: Any) -> list[str]:
    """The names of an operator's arguments, in order."""
    return [x.name for x in operator._schema.arguments]


def options_of(operator: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments of an operator by name, as gqa's functions have them."""
    options = dict(zip(names_of(operator), arguments))
    left, right = options.pop("left"), options.pop("right")
    offsets = options.pop("query_offsets", None)
    if offsets is not None:
        options["query_offset"] = offsets
    text, captured = options.pop("program"), options.pop("captured")
    if text is not None:
        options["score_mod"] = program_of(text, captured)
    if left is not None or right is not None:
        options["window"] = (left, right)
    return options
