"""The attention operators of ONNX on NumPy arrays, and ONNX models that hold them, on gqa's native kernels.

Attention (ai.onnx, opsets 23 to 25), GroupQueryAttention (com.microsoft) and FlexAttention (ai.onnx.preview) are plain
functions; their arguments are the operators' inputs and attributes. The package onnx is needed only to run models.
"""

from gqa.onnx.attention import AttentionOutputs, attention
from gqa.onnx.flex_attention import flex_attention
from gqa.onnx.group_query_attention import GroupQueryAttentionOutputs, group_query_attention
from gqa.onnx.infer import infer_shapes
from gqa.onnx.run import reference_ops, run

__all__ = [
    "AttentionOutputs",
    "GroupQueryAttentionOutputs",
    "attention",
    "flex_attention",
    "group_query_attention",
    "infer_shapes",
    "reference_ops",
    "run",
]
