"""Attention by its definition, in float64: what every test compares with."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np


def attention(q, *args, layout="bhsd", **options):
    """Returns (out, lse) in float64; the arguments are those of gqa.attention."""
    x = forward(q, *args, layout=layout, **options)
    # Masked keys are left out, not multiplied by 0: what they hold must not matter.
    out = np.zeros((*x.weights.shape[:3], x.values.shape[3]))
    for b, h, i in np.ndindex(*x.weights.shape[:3]):
        seen = x.allowed[b, h, i]
        out[b, h, i] = x.weights[b, h, i][seen] @ x.values[b, h][seen]
    out, lse = (y.swapaxes(1, 2) if layout == "bshd" else y for y in (out, x.lse))
    return (out, lse) if q.ndim == 4 else (out[0], lse[0])


def forward(
    q, k=None, v=None, *, past_key=None, past_value=None, mask=None, causal=False, query_offset=None, window=None,
    kv_lengths=None, scale=None, softcap=0.0, sinks=None, layout="bhsd", score_mod=None, mask_mod=None,
):  # fmt: skip
    """What attention is made of, all with the axes (batch, query heads, queries or keys, ...), in float64.

    q; keys and values, repeated for each head of a group; the scale; weights, whose sum is 1 less the sink's; allowed:
    the keys attended; slope: the derivative of capped scores; lse.
    """
    batched = q.ndim == 4
    tensors = [x if x is None else wide(x) for x in (q, k, v, past_key, past_value)]
    if not batched:
        tensors = [x if x is None else x[None] for x in tensors]
    if layout == "bshd":
        tensors = [x if x is None else x.swapaxes(1, 2) for x in tensors]
    q, k, v, past_key, past_value = tensors
    keys = np.concatenate([x for x in (past_key, k) if x is not None], axis=2)
    values = np.concatenate([x for x in (past_value, v) if x is not None], axis=2)
    batch, heads, queries, head_dim = q.shape
    kv_heads, total = keys.shape[1:3]
    keys, values = (np.repeat(x, heads // kv_heads, 1) for x in (keys, values))

    lengths = np.full(batch, total) if kv_lengths is None else np.atleast_1d(np.asarray(kv_lengths))
    offsets = lengths - queries if query_offset is None else np.broadcast_to(query_offset, batch)
    position = offsets[:, None] + np.arange(queries)
    j = np.arange(total)
    allowed = np.broadcast_to((j < lengths[:, None])[:, None], (batch, queries, total)).copy()
    left, right = window or (None, None)
    if causal:
        right = 0
    if left is not None:
        allowed &= j >= position[..., None] - left
    if right is not None:
        allowed &= j <= position[..., None] + right

    scale = 1 / np.sqrt(max(head_dim, 1)) if scale is None else scale
    with np.errstate(all="ignore"):
        scores = np.einsum("bhid,bhjd->bhij", q, keys) * scale
        slope = np.ones_like(scores)
        if softcap > 0:
            scores = np.tanh(scores / softcap)
            slope = 1 - scores**2
            scores = softcap * scores
        allowed = np.broadcast_to(allowed[:, None], scores.shape)
        where = np.arange(batch)[:, None, None, None], np.arange(heads)[:, None, None], position[:, None, :, None], j
        if score_mod is not None:
            scores = np.broadcast_to(score_mod(scores, *where), scores.shape)
            allowed = allowed & (scores != -np.inf)
        if mask_mod is not None:
            allowed = allowed & mask_mod(*where)
        if mask is not None:
            bias = np.where(mask, 0.0, -np.inf) if mask.dtype == bool else wide(mask)
            bias = np.broadcast_to(bias if batched or bias.ndim < 3 else bias[None], scores.shape)
            allowed = allowed & (bias != -np.inf)
            scores = scores + bias
        scores = np.where(allowed, scores, -np.inf)
        sink = np.full(heads, -np.inf) if sinks is None else wide(sinks)
        sink = np.broadcast_to(sink[:, None], scores.shape[:3])
        top = np.maximum(scores.max(-1, initial=-np.inf), sink)
        top = np.where(np.isneginf(top), 0.0, top)
        weights = np.exp(scores - top[..., None])
        total_weight = weights.sum(-1) + np.exp(sink - top)
        lse = top + np.log(total_weight)
        weights /= np.where(total_weight == 0, 1, total_weight)[..., None]
    return SimpleNamespace(
        q=q, keys=keys, values=values, kv_heads=kv_heads, scale=scale, weights=weights, allowed=allowed, slope=slope,
        sink=sink, lse=lse,
    )  # fmt: skip


def wide(x):
    """`x` as float64, with quantised arrays dequantised."""
    if hasattr(x, "scale"):
        return x.data.astype(np.float64) * x.scale.astype(np.float64)[..., None]
    return np.asarray(x).astype(np.float64)
