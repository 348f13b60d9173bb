"""Attention some of whose weights are dropped."""

from __future__ import annotations

from typing import Any

import numpy as np

from gqa.arguments import Array
from gqa.scaled_dot_product import attention


def attend_kept(query: Array, key: Array, value: Array, keep: Array, share: float, options: dict[str, Any]) -> Array:
    """Attention (B, S, H, D) with only the weights where `keep` is True, divided by the share that is kept.

    With fewer keys the softmax normalises by less: exp(lse of the kept keys - lse of all) undoes that.
    """
    mask = options["mask"]
    _, lse = attention(query, key, value, return_lse=True, **options)
    kept_options = options | {"mask": keep if mask is None else keep & mask}
    attended, kept_lse = attention(query, key, value, return_lse=True, **kept_options)
    weight = np.exp(kept_lse - np.where(np.isneginf(lse), 0, lse)) / share
    scaled: Array = (attended * weight[..., None]).astype(query.dtype)
    return scaled
