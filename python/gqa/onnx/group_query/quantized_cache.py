"""GroupQueryAttention's quantised caches: int8, or two 4-bit values in a byte; symmetric, without a zero point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gqa.arguments import Array
from gqa.onnx.group_query.attributes import CACHE_TYPES, GroupQueryAttributes


@dataclass(frozen=True)
class Quantization:
    """How keys or values are stored: bits of a value, and the float32 value of one step, () or (Hkv, D)."""

    bits: int
    scale: Array

    @property
    def per_channel(self) -> bool:
        return self.scale.ndim == 2

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the cache."""
        return np.dtype(CACHE_TYPES[self.bits])

    @property
    def row_scale(self) -> Array:
        """The scale of a whole row of channels; where each has its own, these are left to queries or output."""
        return np.ones((), np.float32) if self.per_channel else self.scale

    def channel_scale(self, query_heads: int) -> Array:
        """The channels' scales as queries and output (B, S, Hq, D) take them."""
        return np.repeat(self.scale, query_heads // len(self.scale), axis=0)

    def quantize(self, name: str, x: Array) -> Array:
        """Floats (B, L, Hkv, D) to int8, rounding half to even."""
        with np.errstate(over="ignore"):
            steps = x.astype(np.float64 if x.dtype == np.float64 else np.float32) / self.scale
        if np.isnan(steps).any():
            raise ValueError(f"{name} holds NaN, which a quantised cache cannot represent")
        end = 2 ** (self.bits - 1)
        data: Array = np.clip(np.rint(steps), -end, end - 1).astype(np.int8)
        return data

    def pack(self, data: Array) -> Array:
        """int8 values to what the cache holds."""
        if self.bits == 8:
            return data
        nibbles = (data + np.int8(8)).view(np.uint8)
        return nibbles[..., 0::2] | nibbles[..., 1::2] << 4

    def unpack(self, cache: Array) -> Array:
        """What the cache holds to int8 values."""
        if self.bits == 8:
            return cache
        data = np.empty((*cache.shape[:-1], cache.shape[-1] * 2), np.int8)
        data[..., 0::2] = (cache & 15).view(np.int8) - np.int8(8)
        data[..., 1::2] = (cache >> 4).view(np.int8) - np.int8(8)
        return data


def quantization(
    k_scale: Array | None, v_scale: Array | None, attributes: GroupQueryAttributes, kv_heads: int
) -> tuple[Quantization, Quantization] | None:
    """How keys and values are stored, None for floats; ValueError for scales that cannot be."""
    if k_scale is None or v_scale is None:
        return None
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError(f"{name} holds values that are not positive and finite")
    shapes: dict[str, tuple[int, ...]] = {"PER_TENSOR": (), "PER_CHANNEL": (kv_heads, -1)}
    bits = int(attributes.kv_cache_bit_width)
    return (
        Quantization(bits, k_scale.reshape(shapes[attributes.k_quant_type])),
        Quantization(bits, v_scale.reshape(shapes[attributes.v_quant_type])),
    )
