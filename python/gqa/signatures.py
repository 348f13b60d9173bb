"""Types that signatures share: numbers as users have them, and what the overloads for return_lse take."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np

from gqa.arguments import AnyArray, Array
from gqa.quantization import Quantized
from gqa.scores.tracing import MaskMod, ScoreMod

AnyTensor = AnyArray | Quantized
Flag = bool | np.bool_
Real = float | np.floating[Any] | np.integer[Any]
Whole = int | np.integer[Any]
Window = tuple[Whole | None, Whole | None] | list[Whole | None] | list[int]


class SequenceOptions(TypedDict, total=False):
    """Options of attention that sequences in packed batches and caches have in common."""

    mask: AnyArray | None
    causal: Flag
    window: Window | None
    scale: Real | None
    softcap: Real
    sinks: AnyArray | None
    out: Array | None
    out_dtype: Any
    num_threads: Whole | None


class ScoredOptions(SequenceOptions, total=False):
    """Those, and score functions."""

    score_mod: ScoreMod | None
    mask_mod: MaskMod | None


class AttentionOptions(ScoredOptions, total=False):
    """Options of attention over whole arrays."""

    past_key: AnyTensor | None
    past_value: AnyTensor | None
    query_offset: Any
    kv_lengths: Any
    layout: str
