"""The attention interface: what a layer of a model calls for its attention."""

from __future__ import annotations

from typing import Any

import torch

from gqa.torch.calls import attend_tokens_first
from gqa.torch.modes import runs_now
from gqa.torch.scaled_dot_product import attention
from gqa.torch.tensors import as_read
from gqa.transformers.cache_layers import StoredTokens
from gqa.transformers.deferred import Deferred
from gqa.transformers.masks import DescribedMask


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of query (B, Hq, S, D) over key (B, Hkv, T, D) and value (B, Hkv, T, Dv): (B, S, Hq, Dv).

    attention_mask is a description of :mod:`gqa.transformers.masks`, a whole mask of bools or numbers, or None: then
    queries are causal from the first key on if the layer is (`is_causal`, or else the module says so), as for ``sdpa``.
    softcap, s_aux (sinks) and position_bias (added to the scores) are those of the models that have them.
    """
    options: dict[str, Any] = {"scale": scaling, "softcap": softcap or 0.0, "sinks": s_aux}
    if dropout:
        return _with_dropout(module, query, key, value, attention_mask, dropout, is_causal, position_bias, options)
    if type(key) is StoredTokens and position_bias is None:
        out = _attended_in_cache(query, key, attention_mask, options)
        if out is not None:
            return out, None
    key, value = (x.elements() if isinstance(x, Deferred) else x for x in (key, value))
    options.update(_visible(module, query, key, attention_mask, is_causal))
    if position_bias is not None:
        options["mask"] = _biased(position_bias, options.get("mask"))
    if runs_now((query, key, value, *options.values())):
        return attend_tokens_first(query, key, value, options), None
    swapped = (x.transpose(1, 2) for x in (query, key, value))
    return attention(*swapped, **options, layout="bshd"), None


def _visible(module: Any, query: Any, key: Any, mask: Any, is_causal: bool | None) -> dict[str, Any]:
    """The keys that the queries see, as options of attention."""
    if type(mask) is DescribedMask:
        if mask.shape[-1] == key.shape[2]:
            return {
                "causal": mask.pattern.causal,
                "window": mask.pattern.window,
                "query_offset": mask.query_position - mask.key_position,
                "mask": mask.padding(mask.key_position),
            }
        mask = mask.elements()
    if mask is not None:
        return {"mask": mask}
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    return {"causal": bool(is_causal) and query.shape[2] > 1, "query_offset": 0}


def _attended_in_cache(query: Any, key: StoredTokens, mask: Any, options: dict[str, Any]) -> torch.Tensor | None:
    """Attention where the cache holds the tokens; None if it cannot be said so which of them the queries see."""
    layer = key.layer
    if layer.cache is None or key.end != layer.length or not runs_now((query, *options.values())):
        return None
    if mask is None:  # of one new token that sees all there are
        if query.shape[2] > 1 or layer.sliding_window is not None:
            return None
        visible: dict[str, Any] = {"causal": False}
    elif type(mask) is DescribedMask:
        pattern, window = mask.pattern, layer.sliding_window
        at_the_end = mask.query_position + query.shape[2] == key.end
        as_the_ring = window is None or (pattern.causal and pattern.window == (window - 1, None))
        if not at_the_end or not as_the_ring or mask.shape[-1] != key.shape[2] or mask.key_position != key.first:
            return None
        visible = {"causal": pattern.causal, "window": pattern.window, "mask": mask.padding(0)}
    else:
        return None
    batch, heads, tokens, _ = query.shape
    out = torch.empty((batch, tokens, heads, layer.cache.values.shape[-1]), dtype=query.dtype)
    arguments = {name: as_read(x) for name, x in {**options, **visible, "out": out.transpose(1, 2)}.items()}
    layer.cache.attend(as_read(query), **arguments, num_threads=torch.get_num_threads())
    return out


def _biased(bias: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """One mask of numbers for what is added to the scores and what hides keys."""
    if mask is None:
        return bias
    if mask.dtype != torch.bool:
        return bias + mask
    return torch.where(mask, bias, -torch.inf)


def _with_dropout(
    module: Any, query: Any, key: Any, value: Any, mask: Any, dropout: float, is_causal: Any, bias: Any,
    options: dict[str, Any],
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention with dropout, by operators of PyTorch on all the probabilities."""
    key, value = (x.elements() if isinstance(x, Deferred) else x for x in (key, value))
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if options["scale"] is None else options["scale"]
    scores = query @ key.mT * scale
    if options["softcap"]:
        scores = torch.tanh(scores / options["softcap"]) * options["softcap"]
    if mask is None and _visible(module, query, key, None, is_causal)["causal"]:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if options["sinks"] is not None:
        sinks = options["sinks"].reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks.to(scores.dtype)], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).nan_to_num(0.0)[..., : key.shape[2]].to(query.dtype)
    weights = torch.nn.functional.dropout(weights, dropout, training=True)
    return (weights @ value).transpose(1, 2).contiguous(), None
