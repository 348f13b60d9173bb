"""Types that signatures share: what the overloads for return_lse take besides what tells them apart."""

from __future__ import annotations

from typing import Any, TypedDict

from gqa.arguments import Array
from gqa.quantization import Quantized

Window = tuple[int | None, int | None] | list[int | None]


class SequenceOptions(TypedDict, total=False):
    """Options of attention that sequences in packed batches and caches have in common."""

    mask: Array | None
    causal: bool
    window: Window | None
    scale: float | None
    softcap: float
    sinks: Array | None
    out: Array | None
    out_dtype: Any
    num_threads: int | None


class AttentionOptions(SequenceOptions, total=False):
    """Options of attention over whole arrays."""

    past_key: Array | Quantized | None
    past_value: Array | Quantized | None
    query_offset: Any
    kv_lengths: Any
    layout: str
