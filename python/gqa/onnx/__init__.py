"""The attention operators of ONNX on NumPy arrays, and ONNX models that hold them, on gqa's native kernels.

Attention (ai.onnx, opsets 23 to 25), GroupQueryAttention (com.microsoft) and FlexAttention (ai.onnx.preview) are plain
functions; their arguments are the operators' inputs and attributes. The package onnx is needed only to run models.
"""

from gqa.onnx.attention_operator import AttentionOutputs, attention
from gqa.onnx.flex_operator import flex_attention
from gqa.onnx.group_query.operator import GroupQueryAttentionOutputs, group_query_attention
from gqa.onnx.inference import infer_shapes
from gqa.onnx.models.running import reference_ops, run
from gqa.onnx.models.session import Session

__all__ = [
    "AttentionOutputs",
    "GroupQueryAttentionOutputs",
    "Session",
    "attention",
    "flex_attention",
    "group_query_attention",
    "infer_shapes",
    "reference_ops",
    "run",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
