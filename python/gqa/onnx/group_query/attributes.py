"""The inputs and attributes of com.microsoft GroupQueryAttention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gqa.onnx.schema import check_choice
from gqa.rules import check_group_sizes
from gqa.shapes import check_float, check_int

INPUTS = (
    "query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache",
    "position_ids", "attention_bias", "head_sink", "k_scale", "v_scale", "q_norm_weight", "k_norm_weight",
)  # fmt: skip
CACHE_TYPES = {8: "int8", 4: "uint8"}


@dataclass(frozen=True)
class GroupQueryAttributes:
    """The attributes of GroupQueryAttention."""

    num_heads: Any
    kv_num_heads: Any
    scale: Any = None
    softcap: Any = 0.0
    local_window_size: Any = -1
    causal: Any = 1
    do_rotary: Any = 0
    rotary_interleaved: Any = 0
    smooth_softmax: Any = -1
    qk_output: Any = 0
    k_quant_type: Any = "NONE"
    v_quant_type: Any = "NONE"
    kv_cache_bit_width: Any = 0
    sliding_window_cache: Any = 0
    qk_norm_epsilon: Any = 1e-6

    def __post_init__(self) -> None:
        check_int("num_heads", self.num_heads, 1)
        check_int("kv_num_heads", self.kv_num_heads, 1)
        check_group_sizes("kv_num_heads", self.kv_num_heads, "num_heads", self.num_heads)
        if self.scale is not None:
            check_float("scale", self.scale)
        check_float("softcap", self.softcap, 0.0)
        check_float("qk_norm_epsilon", self.qk_norm_epsilon, 0.0)
        check_int("local_window_size", self.local_window_size, -1)
        for name in ("causal", "do_rotary", "rotary_interleaved", "sliding_window_cache"):
            check_choice(name, getattr(self, name), (0, 1))
        check_choice("smooth_softmax", self.smooth_softmax, (-1, 0, 1))
        check_choice("qk_output", self.qk_output, (0, 1, 2))
        if not self.causal and self.local_window_size != -1:
            raise ValueError(f"local_window_size is {self.local_window_size}, expected -1 where causal is 0")
        if self.sliding_window_cache and self.local_window_size < 1:
            raise ValueError(f"local_window_size is {self.local_window_size}, sliding_window_cache needs at least 1")
        kinds = ("NONE", "PER_TENSOR", "PER_CHANNEL")
        for name in ("k_quant_type", "v_quant_type"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} is {getattr(self, name)!r}, expected a string")
            if getattr(self, name) not in kinds:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(kinds)}")
        if (self.k_quant_type == "NONE") != (self.v_quant_type == "NONE"):
            raise ValueError(
                f"k_quant_type is {self.k_quant_type} and v_quant_type {self.v_quant_type}: NONE is for both"
            )
        check_choice("kv_cache_bit_width", self.kv_cache_bit_width, (4, 8) if self.quantized else (0,))

    @property
    def window(self) -> int | None:
        """How many keys up to its own position a query attends; None: all of them."""
        return None if self.local_window_size == -1 else min(int(self.local_window_size), 1 << 31)

    @property
    def quantized(self) -> bool:
        return bool(self.k_quant_type != "NONE")

    def cache_type(self, dtype: str) -> str:
        """The dtype of past and present for a query of that dtype."""
        return CACHE_TYPES[self.kv_cache_bit_width] if self.quantized else dtype

    def cache_channels(self, head_dim: int) -> int:
        """Elements that one head of one token takes in past and present: 4-bit values lie two in a byte."""
        return head_dim // 2 if self.kv_cache_bit_width == 4 else head_dim
