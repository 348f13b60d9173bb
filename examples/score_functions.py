"""Score functions: what `score_mod` and `mask_mod` of gqa.attention can be, from ALiBi to tree masks.

Each recipe is a function that makes one, from sizes and arrays. Arrays may be changed in place between calls; a recipe
may be called anew for each call, since functions with the same code share one trace.

    out = gqa.attention(q, k, v, score_mod=alibi(heads), mask_mod=documents(ids))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
ScoreMod = Callable[[Any, Any, Any, Any, Any], Any]
MaskMod = Callable[[Any, Any, Any, Any], Any]


# ---- scores --------------------------------------------------------------------------------------------------------


def alibi(heads: int) -> ScoreMod:
    """A penalty that grows with the distance, at each head's own rate (Press et al. 2021, arXiv:2108.12409)."""
    slopes = 2.0 ** (-8 * np.arange(1, heads + 1) / heads)
    return lambda score, b, h, q_idx, kv_idx: score - slopes[h] * np.abs(q_idx - kv_idx)


def relative_bias(table: Array) -> ScoreMod:
    """A bias for each head and distance: table (heads, 2 * n + 1), its middle for distance 0, its ends for the rest."""
    reach = table.shape[1] // 2
    return lambda score, b, h, q_idx, kv_idx: score + table[h, np.clip(kv_idx - q_idx, -reach, reach) + reach]


def t5_bias(table: Array, *, max_distance: int = 128, bidirectional: bool = True) -> ScoreMod:
    """A bias for each head and bucket of distances, table (heads, buckets), as in T5 (arXiv:1910.10683).

    The bucket of each distance is looked up as well: its logarithm is taken once, not for every score.
    """
    buckets = table.shape[1] // 2 if bidirectional else table.shape[1]
    distance = np.arange(-max_distance, max_distance + 1)  # of the key from the query
    back = np.abs(distance) if bidirectional else np.maximum(-distance, 0)
    exact = buckets // 2
    far = exact + np.log(np.maximum(back, 1) / exact) / np.log(max_distance / exact) * (buckets - exact)
    bucket = np.where(back < exact, back, np.minimum(far.astype(int), buckets - 1))
    bucket = bucket + buckets * (distance > 0) if bidirectional else bucket

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        near = np.clip(kv_idx - q_idx, -max_distance, max_distance)
        return score + table[h, bucket[near + max_distance]]

    return score_mod


def soft_cap(cap: float) -> ScoreMod:
    """Scores bent to stay within -cap and cap, as the option softcap does (Gemma 2, arXiv:2408.00118)."""
    return lambda score, b, h, q_idx, kv_idx: cap * np.tanh(score / cap)


def key_bias(bias: Array) -> ScoreMod:
    """A logit added to each key, for all queries: bias (batch, keys)."""
    return lambda score, b, h, q_idx, kv_idx: score + bias[b, kv_idx]


# ---- masks ---------------------------------------------------------------------------------------------------------


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """Keys up to the query's own position, as the option causal does."""
    return kv_idx <= q_idx


def sliding_window(tokens: int) -> MaskMod:
    """The last `tokens` keys, the query's own included (Beltagy et al. 2020, arXiv:2004.05150)."""
    return lambda b, h, q_idx, kv_idx: (kv_idx <= q_idx) & (q_idx - kv_idx < tokens)


def dilated_window(tokens: int, step: int) -> MaskMod:
    """Every `step`-th of the last tokens * step keys (arXiv:2004.05150)."""
    return lambda b, h, q_idx, kv_idx: (
        (kv_idx <= q_idx) & (q_idx - kv_idx < tokens * step) & ((q_idx - kv_idx) % step == 0)
    )


def per_head_windows(windows: Array) -> MaskMod:
    """A causal window of its own for each head: windows (heads,) of int."""
    return lambda b, h, q_idx, kv_idx: (kv_idx <= q_idx) & (q_idx - kv_idx < windows[h])


def prefix_lm(lengths: Array) -> MaskMod:
    """All of each prompt, and causal behind it: lengths (batch,) of int (Raffel et al. 2019, arXiv:1910.10683)."""
    return lambda b, h, q_idx, kv_idx: (kv_idx < lengths[b]) | (kv_idx <= q_idx)


def documents(ids: Array) -> MaskMod:
    """Keys of the query's own document, up to its own position: ids (tokens,) of int, the same within a document."""
    return lambda b, h, q_idx, kv_idx: (ids[q_idx] == ids[kv_idx]) & (kv_idx <= q_idx)


def tree(parents: Array, past: int) -> MaskMod:
    """Drafted tokens of speculative decoding behind `past` keys: each attends these, its ancestors and itself.

    parents: shape (drafted,), of each drafted token the one before it, -1 for those that follow the past directly
    (Miao et al. 2023, arXiv:2305.09781).
    """
    related = np.eye(len(parents), dtype=bool)
    for token, parent in enumerate(parents):
        if parent >= 0:
            related[token] |= related[parent]
    drafted = len(parents) - 1

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        query, key = np.clip(q_idx - past, 0, drafted), np.clip(kv_idx - past, 0, drafted)
        return (kv_idx < past) | related[query, key]

    return mask_mod


def neighbourhood(width: int, height: int, kernel: int) -> MaskMod:
    """The kernel x kernel pixels around each pixel of an image, all within it (NATTEN, arXiv:2204.07143)."""
    half = kernel // 2

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        x = np.clip(q_idx % width, half, width - 1 - half)
        y = np.clip(q_idx // width, half, height - 1 - half)
        return (np.abs(x - kv_idx % width) <= half) & (np.abs(y - kv_idx // width) <= half)

    return mask_mod


def tiles(width: int, size: int) -> MaskMod:
    """Pixels of the query's own size x size tile of an image, as windows of Swin do (arXiv:2103.14030)."""
    return lambda b, h, q_idx, kv_idx: (
        (q_idx % width // size == kv_idx % width // size) & (q_idx // width // size == kv_idx // width // size)
    )


def checkerboard(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """Every second key: those at an even distance."""
    return (q_idx + kv_idx) % 2 == 0
