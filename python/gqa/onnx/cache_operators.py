"""The operator TensorScatter of ai.onnx, which writes new tokens to caches of a fixed size."""

from __future__ import annotations

from typing import Any

import numpy as np

from gqa.arguments import Array, as_array, int_array
from gqa.sequences import spans
from gqa.shapes import check_int


def tensor_scatter(
    past_cache: Array, update: Array, write_indices: Any = None, *, mode: str = "linear", axis: int = -2
) -> Array:
    """TensorScatter of ai.onnx: a copy of past_cache (B, ..., slots, ...) with update (B, ..., tokens, ...) in it.

    Token i of batch entry b goes to slot write_indices[b] + i, default 0 + i; modulo the number of slots where mode is
    "circular". Slots that are not there are refused, before anything is copied.
    """
    past_cache, update = as_array("past_cache", past_cache), as_array("update", update)
    if update.dtype != past_cache.dtype:
        raise TypeError(f"update has dtype {update.dtype}, expected {past_cache.dtype} as past_cache")
    if mode not in ("linear", "circular"):
        raise ValueError(f"mode is {mode!r}, expected 'linear' or 'circular'")
    axes = past_cache.ndim
    if check_int("axis", axis) % max(axes, 1) == 0 or not -axes <= axis < axes:
        raise ValueError(f"axis is {axis}, expected one of past_cache {past_cache.shape} other than the first")
    axis %= axes
    batch, slots, tokens = len(past_cache), past_cache.shape[axis], update.shape[axis] if update.ndim == axes else 0
    expected = (*past_cache.shape[:axis], min(tokens, slots), *past_cache.shape[axis + 1 :])
    if update.shape != expected:
        raise ValueError(f"update has shape {update.shape}, expected {expected}, with at most {slots} on axis {axis}")
    starts = np.zeros(batch, np.int64)
    if write_indices is not None:
        starts = int_array("write_indices", write_indices, (batch,))
    for wrong in np.flatnonzero((starts < 0) | ((starts > slots - tokens) & (mode == "linear"))):
        most = f"0 to {slots - tokens}, for {tokens} tokens in {slots} slots" if mode == "linear" else "at least 0"
        raise ValueError(f"write_indices[{wrong}] is {starts[wrong]}, expected {most}")
    present = past_cache.copy()
    new, old = np.moveaxis(update, axis, 1), np.moveaxis(present, axis, 1)
    for b, start in enumerate(starts.tolist()):
        for token, count in spans(start, start + tokens, slots):
            old[b, token % slots : token % slots + count] = new[b, token - start : token - start + count]
    return present
