"""Scores and probabilities as whole arrays (B, Hq, S, T), for outputs and modifiers that are defined on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gqa.arguments import Array


def scores(q: Array, keys: Sequence[Array], scale: float) -> Array:
    """scale * q @ k.T in q's type, q (B, Hq, S, D) and keys (B, Hkv, L, D) one after another: (B, Hq, S, sum of L)."""
    batch, query_heads, queries, head_dim = q.shape
    kv_heads = keys[0].shape[1]
    rows = (q * q.dtype.type(scale)).reshape(batch, kv_heads, query_heads // kv_heads * queries, head_dim)
    parts = [rows @ k.astype(q.dtype, copy=False).swapaxes(2, 3) for k in keys]
    result = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=3)
    return result.reshape(batch, query_heads, queries, result.shape[3])


def weighted_values(p: Array, v: Array) -> Array:
    """p @ v for p (B, Hq, S, T) and v (B, Hkv, T, Dv): (B, Hq, S, Dv)."""
    batch, query_heads, queries, keys = p.shape
    rows = p.reshape(batch, v.shape[1], query_heads // v.shape[1] * queries, keys)
    return (rows @ v).reshape(batch, query_heads, queries, v.shape[3])


def soft_capped(x: Array, softcap: float) -> Array:
    """softcap * tanh(x / softcap), or x itself where softcap is 0."""
    return x.dtype.type(softcap) * np.tanh(x / x.dtype.type(softcap)) if softcap > 0 else x


def allowed_keys(queries: int, keys: int, offset: Array, lengths: Array, left: int | None, right: int | None) -> Array:
    """Which keys a query attends, (B, 1, S, T): those within its sequence's length and within a window around it.

    offset and lengths (B,) are the position of the first query and the number of keys; None is no bound.
    """
    position = offset[:, None, None, None] + np.arange(queries)[:, None]
    j = np.arange(keys)
    allowed = np.broadcast_to(j < lengths[:, None, None, None], (len(offset), 1, queries, keys)).copy()
    if left is not None:
        allowed &= j >= position - left
    if right is not None:
        allowed &= j <= position + right
    return allowed


def masked(x: Array, mask: Array | None, allowed: Array) -> Array:
    """x with the mask added (False: -inf) and -inf where a key is not allowed, whatever x is there."""
    if mask is not None and mask.dtype != bool:
        allowed = allowed & (mask != -np.inf)
        x = x + mask.astype(x.dtype)
    elif mask is not None:
        allowed = allowed & mask
    return np.where(allowed, x, x.dtype.type(-np.inf))


def softmax(x: Array, sinks: Array | None = None) -> Array:
    """Softmax over the last axis of x (B, Hq, S, T); a row of -inf gives 0. sinks (Hq,) join the denominator."""
    top = np.max(x, axis=-1, keepdims=True, initial=-np.inf)
    sink = None if sinks is None else sinks.astype(x.dtype)[:, None, None]
    if sink is not None:
        top = np.maximum(top, sink)
    top[np.isneginf(top)] = 0
    x = np.subtract(x, top)
    np.exp(x, out=x)
    total = x.sum(axis=-1, keepdims=True)
    if sink is not None:
        total += np.exp(sink - top)
    total[total == 0] = 1
    x /= total
    return x
