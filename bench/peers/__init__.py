"""Everything that is measured: names, and one adapter each. A library is imported when its adapter is first used."""

from __future__ import annotations

from peers import jax_attention, numpy_attention, onnx_runtime, openvino_attention, pytorch, this
from peers.base import Adapter, Call, Unsupported
from workloads import Workload

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

# Those that have gradients: an adapter for backward workloads.
GRADIENTS: dict[str, Adapter] = {
    "gqa": this.gradients,
    "gqa float32": this.gradients_float32,
    "torch enable_gqa": pytorch.gradients_enable_gqa,
    "torch expanded": pytorch.gradients_expanded,
    "JAX": jax_attention.gradients,
}


def adapter(name: str, workload: Workload) -> Adapter:
    """The adapter of a peer for a workload."""
    if not workload.backward:
        return PEERS[name]
    if name not in GRADIENTS:
        raise Unsupported("no gradients")
    return GRADIENTS[name]


__all__ = ["GRADIENTS", "PEERS", "Adapter", "Call", "Unsupported", "adapter"]
