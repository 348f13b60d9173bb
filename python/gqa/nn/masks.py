"""Masks as flax understands them: True or nonzero where to attend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gqa.arguments import Array, as_array
from gqa.shapes import Shape, check_broadcast


def four_axes(mask: Any, scores: Shape) -> Array:
    """A mask for scores of shape (..., heads, queries, keys) as bool with one leading axis.

    Raises
    ------
    ValueError
        If it does not broadcast; if it has negative values or NaN, as a mask to be added to scores has.
    """
    mask = as_array("mask", mask)
    check_broadcast("mask", mask.shape, scores)
    if not (mask >= 0).all():
        raise ValueError("mask has negative values or NaN, expected True or nonzero where to attend, else False or 0")
    allowed: Array = mask.astype(bool).reshape((1,) * (len(scores) - mask.ndim) + mask.shape)
    allowed = np.broadcast_to(allowed, (*scores[:-3], *allowed.shape[-3:]))
    return allowed.reshape(math.prod(scores[:-3]), *allowed.shape[-3:])
