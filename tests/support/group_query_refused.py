"""Calls that GroupQueryAttention refuses, and what the error says."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from refused import ones

GOOD = {
    "query": ones(2, 3, 32), "key": ones(2, 3, 16), "value": ones(2, 3, 16),
    "past_key": ones(2, 2, 16, 8), "past_value": ones(2, 2, 16, 8),
    "seqlens_k": np.array([8, 15], np.int32), "total_sequence_length": np.array(16, np.int32),
    "num_heads": 4, "kv_num_heads": 2,
}  # fmt: skip
SHARED = {"key": None, "value": None}
PACKED = SHARED | {"query": ones(2, 3, 64)}
EMPTY = {"key": ones(2, 0, 16), "value": ones(2, 0, 16)}
NO_PAST = {"past_key": None, "past_value": None}
ROTARY = {"do_rotary": 1, "cos_cache": ones(16, 4), "sin_cache": ones(16, 4)}
SLIDING = {"sliding_window_cache": 1, "local_window_size": 3}
INT8 = {
    "past_key": ones(2, 2, 16, 8, dtype=np.int8), "past_value": ones(2, 2, 16, 8, dtype=np.int8),
    "k_scale": ones(1), "v_scale": ones(1), "k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR",
    "kv_cache_bit_width": 8,
}  # fmt: skip
INT4 = INT8 | {
    "past_key": ones(2, 2, 16, 4, dtype=np.uint8), "past_value": ones(2, 2, 16, 4, dtype=np.uint8),
    "kv_cache_bit_width": 4,
}  # fmt: skip
HUGE = 10**400

LENGTHS = [
    ({"seqlens_k": [8, 16]}, r"seqlens_k\[1\] is 16, expected 2 to 15"),
    ({"seqlens_k": [-1, 15]}, r"seqlens_k\[0\] is -1"),
    ({"seqlens_k": [2**31 - 1, 15]}, r"seqlens_k\[0\] is 2147483647"),
    ({"seqlens_k": np.array([2**63, 15], np.uint64)}, r"seqlens_k\[0\] is 9223372036854775808"),
    ({"seqlens_k": [1, 15]}, r"seqlens_k\[0\] is 1, expected 2 to 15: .* with 3 tokens in query"),
    ({"seqlens_k": [15]}, r"seqlens_k has shape \(1,\), expected \(2,\)"),
    ({"seqlens_k": [8, 15, 15]}, r"seqlens_k has shape \(3,\)"),
    ({"seqlens_k": 15}, r"seqlens_k has shape \(\)"),
    ({"seqlens_k": [[8], [15], [15], [15]]}, r"seqlens_k has shape \(4, 1\)"),
    ({"total_sequence_length": 17}, "total_sequence_length is 17, expected at most the 16 tokens .* exactly 19"),
    ({"total_sequence_length": 20}, "total_sequence_length is 20"),
    ({"total_sequence_length": 2}, "total_sequence_length is 2, expected at least the 3 tokens of query"),
    ({"total_sequence_length": 0}, "total_sequence_length is 0"),
    ({"total_sequence_length": -1}, "total_sequence_length is -1"),
    (SLIDING | {"total_sequence_length": 2**31}, "total_sequence_length is 2147483648"),
    ({"total_sequence_length": [16, 16]}, r"total_sequence_length has shape \(2,\), expected one value"),
    (SHARED | {"total_sequence_length": 17}, "total_sequence_length is 17, expected at most the 16 tokens of past_key"),
    (SHARED | {"total_sequence_length": 19}, "total_sequence_length is 19, expected at most the 16 tokens of past_key"),
    (EMPTY | {"total_sequence_length": 17}, "total_sequence_length is 17"),
    (NO_PAST, "total_sequence_length is 16, expected .* exactly 3"),
]
SHAPES = [
    ({"past_key": None}, "past_value is given without past_key"),
    ({"past_value": None}, "past_key is given without past_value"),
    ({"key": None}, "value is given without key"),
    ({"value": None}, "key is given without value"),
    (SHARED | NO_PAST | {"query": ones(2, 3, 36)}, r"query has 36 channels, .* num_heads \+ 2 \* kv_num_heads = 8"),
    (SHARED | NO_PAST, "total_sequence_length is 16, expected .* exactly 3"),
    (PACKED | NO_PAST | {"total_sequence_length": 16}, "total_sequence_length is 16"),
    (EMPTY | NO_PAST, r"key has shape \(2, 0, 16\), expected \(2, 3, 16\)"),
    ({"kv_num_heads": 3}, "kv_num_heads is 3, which does not divide num_heads 4"),
    ({"num_heads": 5, "kv_num_heads": 5}, "query has 32 channels, which is not a multiple of num_heads 5"),
    ({"kv_num_heads": 1}, r"key has shape \(2, 3, 16\), expected \(2, 3, 8\)"),
    ({"query": ones(3, 32)}, r"query has shape \(3, 32\), expected 3 axes"),
    ({"query": ones(1, 3, 32)}, r"key has shape \(2, 3, 16\), expected \(1, 3, 16\)"),
    ({"key": ones(2, 2, 16), "value": ones(2, 2, 16)}, r"key has shape \(2, 2, 16\), expected \(2, 3, 16\)"),
    ({"value": ones(2, 3, 8)}, r"value has shape \(2, 3, 8\), expected \(2, 3, 16\)"),
    (
        {"past_key": ones(1, 2, 16, 8), "past_value": ones(1, 2, 16, 8)},
        r"past_key has shape .* expected \(2, 2, 16, 8\)",
    ),
    ({"past_value": ones(2, 2, 15, 8)}, r"past_value has shape \(2, 2, 15, 8\), expected \(2, 2, 16, 8\)"),
    ({"past_key": ones(2, 16, 2, 8), "past_value": ones(2, 16, 2, 8)}, "past_key has shape"),
    ({"past_key": ones(2, 2, 16, 7)}, "past_key has shape"),
    ({"past_key": ones(2, 16, 16)}, "past_key has shape .* expected 4 axes"),
    (PACKED | {"query": ones(2, 3, 48)}, "query has 48 channels, expected 32 .* or 64"),
    ({"attention_bias": ones(2, 4, 3, 15)}, "total_sequence_length is 16, but attention_bias is for 15 keys"),
    ({"attention_bias": ones(2, 4, 3, 1)}, "attention_bias is for 1 keys"),
    ({"attention_bias": ones(2, 4, 1, 16)}, "attention_bias has shape"),
    ({"attention_bias": ones(2, 2, 3, 16)}, "attention_bias has shape"),
    ({"attention_bias": ones(3, 1, 3, 16)}, "attention_bias has shape"),
    ({"attention_bias": ones(3, 16)}, "attention_bias has shape"),
    ({"head_sink": ones(2)}, r"head_sink has shape \(2,\), expected \(4,\)"),
    ({"q_norm_weight": ones(8)}, "q_norm_weight is given without k_norm_weight"),
    ({"q_norm_weight": ones(8), "k_norm_weight": ones(4)}, r"k_norm_weight has shape \(4,\), expected \(8,\)"),
    (ROTARY | {"cos_cache": None}, "sin_cache is given without cos_cache"),
    ({"do_rotary": 1}, "do_rotary is 1 without cos_cache"),
    (ROTARY | {"cos_cache": ones(16, 5), "sin_cache": ones(16, 5)}, r"cos_cache has shape \(16, 5\)"),
    (ROTARY | {"sin_cache": ones(16, 3)}, "sin_cache has shape"),
    (ROTARY | {"cos_cache": ones(15, 4), "sin_cache": ones(15, 4)}, "cos_cache has 15 rows, but the tokens reach"),
    (ROTARY | {"position_ids": np.full((2, 3), 16)}, "cos_cache has 16 rows, but position_ids reach .* 16"),
    (ROTARY | {"position_ids": np.full((2, 3), -1)}, "position_ids reach from position -1"),
    (ROTARY | {"position_ids": np.zeros((2, 2), int)}, r"position_ids has shape \(2, 2\), expected \(2, 3\)"),
    (SLIDING | {"local_window_size": 17}, "sliding_window_cache needs .* local_window_size 17"),
    (SLIDING | NO_PAST, "sliding_window_cache needs"),
    (SLIDING | SHARED, "sliding_window_cache needs"),
    (SLIDING | {"local_window_size": -1}, "local_window_size is -1, sliding_window_cache needs"),
    (INT8 | {"k_scale": None}, "k_scale is missing"),
    ({"v_scale": ones(1)}, "v_scale is given"),
    (INT8 | {"k_scale": ones(2)}, r"k_scale has shape \(2,\), expected one value"),
    (INT8 | {"k_quant_type": "PER_CHANNEL"}, "k_scale has shape .* expected one of"),
    (INT8 | {"k_scale": np.zeros(1, np.float32)}, "k_scale holds values that are not positive"),
    (INT8 | {"v_scale": np.full(1, np.nan, np.float32)}, "v_scale holds values that are not positive"),
    (INT4 | {"past_key": ones(2, 2, 16, 8, dtype=np.uint8)}, "past_key has shape"),
]
ATTRIBUTES = [
    ({"num_heads": 0}, "num_heads is 0"),
    ({"kv_num_heads": 0}, "kv_num_heads is 0"),
    ({"local_window_size": -2}, "local_window_size is -2"),
    ({"local_window_size": 3, "causal": 0}, "local_window_size is 3, expected -1 where causal is 0"),
    ({"causal": 2}, "causal is 2"),
    ({"do_rotary": 3}, "do_rotary is 3"),
    ({"smooth_softmax": 2}, "smooth_softmax is 2"),
    ({"qk_output": 3}, "qk_output is 3"),
    ({"softcap": -1.0}, "softcap is -1"),
    ({"scale": np.nan}, "scale is nan"),
    ({"k_quant_type": "PER_TOKEN"}, "k_quant_type is 'PER_TOKEN'"),
    (INT8 | {"v_quant_type": "NONE"}, "k_quant_type is PER_TENSOR and v_quant_type NONE"),
    (INT8 | {"kv_cache_bit_width": 0}, "kv_cache_bit_width is 0"),
    ({"kv_cache_bit_width": 8}, "kv_cache_bit_width is 8"),
    ({"qk_norm_epsilon": -1}, "qk_norm_epsilon is -1"),
]
TYPES = [
    ({"query": None}, "query is missing"),
    ({"seqlens_k": None}, "seqlens_k is missing"),
    ({"total_sequence_length": None}, "total_sequence_length is missing"),
    ({"query": [[[1.0]]]}, "query is a list, expected a NumPy array"),
    ({"past_key": np.ma.masked_array(GOOD["past_key"])}, "past_key is a MaskedArray"),
    ({"query": ones(2, 3, 32, dtype=int)}, "query has dtype int64"),
    ({"query": ones(2, 3, 32).astype(">f4")}, "query has dtype '>f4'"),
    ({"key": ones(2, 3, 16, dtype=np.float16)}, "key has dtype float16, expected float32 as query"),
    ({"past_value": ones(2, 2, 16, 8, dtype=ml_dtypes.bfloat16)}, "past_value has dtype bfloat16, expected float32"),
    ({"past_key": ones(2, 2, 16, 8, dtype=np.int8)}, "past_key has dtype int8"),
    (INT8 | {"past_key": GOOD["past_key"]}, "past_key has dtype float32, expected int8"),
    (INT8 | {"k_scale": ones(1, dtype=float)}, "k_scale has dtype float64, expected float32"),
    (INT4 | {"past_value": INT8["past_value"]}, "past_value has dtype int8, expected uint8"),
    ({"seqlens_k": [8.0, 15.0]}, "seqlens_k has dtype float64, expected integers"),
    ({"seqlens_k": [True, True]}, "seqlens_k has dtype bool"),
    ({"seqlens_k": [HUGE, 1]}, "seqlens_k has dtype object"),
    ({"total_sequence_length": HUGE}, "total_sequence_length has dtype object"),
    ({"total_sequence_length": 16.0}, "total_sequence_length has dtype float64"),
    (ROTARY | {"position_ids": np.zeros((2, 3))}, "position_ids has dtype float64"),
    ({"attention_bias": ones(2, 4, 3, 16, dtype=bool)}, "attention_bias has dtype bool"),
    ({"head_sink": ones(4, dtype=float)}, "head_sink has dtype float64, expected float32 as query"),
    ({"num_heads": 4.0}, "num_heads is 4.0, expected an integer"),
    ({"num_heads": True}, "num_heads is True"),
    ({"num_heads": [4]}, r"num_heads is \[4\], expected an integer"),
    ({"causal": 1.0}, "causal is 1.0, expected an integer"),
    ({"scale": "1"}, "scale is '1', expected a float"),
    ({"softcap": None}, "softcap is None"),
    ({"local_window_size": None}, "local_window_size is None"),
    ({"k_quant_type": 3}, "k_quant_type is 3"),
]
REFUSED = [
    (change, error, message)
    for error, table in ((ValueError, LENGTHS + SHAPES + ATTRIBUTES), (TypeError, TYPES))
    for change, message in table
]


def name_of(row):
    return f"{row[1].__name__}: {row[2]}"
