"""Calls that ai.onnx Attention refuses, and what the error says."""

from __future__ import annotations

import numpy as np

GOOD = {
    name: np.ones((2, heads, tokens, 8), np.float32) for name, heads, tokens in (("Q", 4, 3), ("K", 2, 5), ("V", 2, 5))
}
PAST = {name: np.ones((2, 2, 6, 8), np.float32) for name in ("past_key", "past_value")}
FLAT = {
    "Q": np.ones((2, 3, 32), np.float32),
    "K": np.ones((2, 5, 16), np.float32),
    "V": np.ones((2, 5, 16), np.float32),
}
HALF = {name: x.astype(np.float16) for name, x in (GOOD | PAST).items()}


REFUSED = [
    (
        {"K": GOOD["K"][:, :1].repeat(3, 1), "V": GOOD["V"][:, :1].repeat(3, 1)}, ValueError,
        "K has 3 heads, which does not divide the 4 heads of Q",
    ),
    ({"K": GOOD["K"][:1], "V": GOOD["V"][:1]}, ValueError, "K has batch 1, expected 2"),
    ({"V": GOOD["V"][:, :, :4]}, ValueError, "V has tokens 4, expected 5"),
    ({"K": GOOD["K"][..., :7]}, ValueError, "K has channels 7, expected 8"),
    ({"K": FLAT["K"]}, ValueError, r"K has shape \(2, 5, 16\), expected 4 axes"),
    ({"Q": np.ones(8, np.float32)}, ValueError, r"Q has shape \(8,\), expected 3 or 4 axes"),
    (FLAT, ValueError, "q_num_heads is missing"),
    (FLAT | {"q_num_heads": 4}, ValueError, "kv_num_heads is missing"),
    (
        FLAT | {"q_num_heads": 3, "kv_num_heads": 2}, ValueError,
        "Q has 32 channels, which is not a multiple of q_num_heads 3",
    ),
    (FLAT | {"q_num_heads": 0, "kv_num_heads": 2}, ValueError, "q_num_heads is 0"),
    ({"q_num_heads": 4}, ValueError, "q_num_heads is 4, expected none"),
    ({"q_num_heads": 8, "opset": 23}, ValueError, "q_num_heads is 8, but Q has shape"),
    ({"past_key": PAST["past_key"]}, ValueError, "past_key is given without past_value"),
    ({"past_value": PAST["past_value"]}, ValueError, "past_value is given without past_key"),
    (PAST | {"past_value": PAST["past_value"][:, :, :5]}, ValueError, "past_value has tokens 5, expected 6"),
    (PAST | {"past_key": PAST["past_key"][0]}, ValueError, "past_key has shape .* expected 4 axes"),
    (PAST | {"nonpad_kv_seqlen": np.array([1, 1])}, ValueError, "nonpad_kv_seqlen is given with past_key"),
    (
        {"nonpad_kv_seqlen": np.array([1, 1]), "present": True}, ValueError,
        "nonpad_kv_seqlen is given with present outputs",
    ),
    ({"nonpad_kv_seqlen": np.array([1, 1]), "opset": 23}, ValueError, "nonpad_kv_seqlen is given at opset 23"),
    ({"nonpad_kv_seqlen": np.array([1, 6])}, ValueError, r"nonpad_kv_seqlen\[1\] is 6, expected 0 to 5"),
    ({"nonpad_kv_seqlen": np.array([-1, 1])}, ValueError, r"nonpad_kv_seqlen\[0\] is -1"),
    ({"nonpad_kv_seqlen": np.array([1])}, ValueError, r"nonpad_kv_seqlen has shape \(1,\)"),
    ({"nonpad_kv_seqlen": np.array([1.0, 1.0])}, TypeError, "nonpad_kv_seqlen has dtype float64"),
    ({"attn_mask": np.ones((3, 6), bool)}, ValueError, "attn_mask has shape .* expected at most 5 keys"),
    ({"attn_mask": np.ones((2, 5), bool)}, ValueError, "attn_mask"),
    ({"attn_mask": np.array(True)}, ValueError, "attn_mask has shape .* expected 1 to 4 axes"),
    ({"attn_mask": np.ones((1, 1, 1, 1, 5), bool)}, ValueError, "attn_mask has shape .* expected 1 to 4 axes"),
    ({"attn_mask": np.ones((3, 5), complex)}, TypeError, "attn_mask has dtype complex128"),
    ({"left_window_size": -2}, ValueError, "left_window_size is -2, expected at least -1"),
    ({"right_window_size": 1, "opset": 24}, ValueError, "right_window_size is 1, expected -1"),
    ({"opset": 22}, ValueError, "opset is 22"),
    ({"scale": np.nan}, ValueError, "scale is nan"),
    ({"softcap": -1.0}, ValueError, "softcap is -1"),
    ({"softcap": np.nan}, ValueError, "softcap is nan"),
    ({"softmax_precision": 7}, ValueError, "softmax_precision is 7, expected one of 1, 10, 11, 16"),
    ({"qk_matmul_output_mode": 4}, ValueError, "qk_matmul_output_mode is 4"),
    ({"K": HALF["K"]}, TypeError, "K has dtype float16, expected float32 as Q"),
    (PAST | {"past_key": HALF["past_key"]}, TypeError, "past_key has dtype float16, expected float32 as Q"),
    (PAST | {"past_value": HALF["past_value"]}, TypeError, "past_value has dtype float16, expected float32 as V"),
    ({"Q": GOOD["Q"].astype(np.int32), "K": GOOD["K"].astype(np.int32)}, TypeError, "Q has dtype int32"),
    ({"Q": GOOD["Q"].astype(">f4")}, TypeError, "Q has dtype '>f4', expected native"),
    ({"K": None}, TypeError, "K is a NoneType"),
    ({"Q": [[1.0]]}, TypeError, "Q is a list"),
    ({"is_causal": "yes"}, TypeError, "is_causal is 'yes'"),
    ({"present": 1}, TypeError, "present is 1"),
]  # fmt: skip
