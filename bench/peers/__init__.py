"""Everything that is measured: names, and one adapter each. A library is imported when its adapter is first used."""

from __future__ import annotations

from peers import jax_attention, numpy_attention, onnx_runtime, openvino_attention, pytorch, this
from peers.base import Adapter, Call, Unsupported

PEERS: dict[str, Adapter] = {
    "gqa": this.attention,
    "gqa float32": this.attention_float32,
    "NumPy": numpy_attention.folded,
    "torch enable_gqa": pytorch.enable_gqa,
    "torch folded": pytorch.folded,
    "torch expanded": pytorch.expanded,
    "torch matmul": pytorch.matmul,
    "ORT Attention": onnx_runtime.attention,
    "ORT MultiHeadAttention": onnx_runtime.multi_head_attention,
    "ORT GQA shared": onnx_runtime.gqa_shared,
    "ORT GQA copying": onnx_runtime.gqa_copying,
    "OpenVINO SDPA": openvino_attention.sdpa,
    "OpenVINO paged": openvino_attention.paged,
    "JAX": jax_attention.dot_product_attention,
}

__all__ = ["PEERS", "Adapter", "Call", "Unsupported"]
