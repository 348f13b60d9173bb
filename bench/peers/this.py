"""gqa itself, called as users call it."""

from __future__ import annotations

import numpy as np

import gqa
from peers.base import Call, Unsupported
from workloads import Array, Inputs, Workload, stacked


def attention(workload: Workload, inputs: Inputs, threads: int) -> Call:
    q, k, v = inputs
    if workload.cache:
        quantized_k, quantized_v = gqa.quantize(k), gqa.quantize(v)
        return Call(lambda: gqa.attention(q, quantized_k, quantized_v))
    if workload.causal:
        return Call(lambda: gqa.attention(q, k, v, causal=True))
    return Call(lambda: gqa.attention(q, k, v))


def attention_float32(workload: Workload, inputs: Inputs, threads: int) -> Call:
    """The same values in float32: what a smaller type gains."""
    if not workload.small:
        raise Unsupported("that is gqa")
    q, k, v = (x.astype(np.float32, copy=False) for x in inputs)
    return Call(lambda: gqa.attention(q, k, v, causal=workload.causal))


def gradients(workload: Workload, inputs: Inputs, threads: int) -> Call:
    return _gradients(workload, inputs, workload.output_gradient())


def gradients_float32(workload: Workload, inputs: Inputs, threads: int) -> Call:
    """The same values in float32."""
    if not workload.small:
        raise Unsupported("that is gqa")
    q, k, v, dout = (x.astype(np.float32) for x in (*inputs, workload.output_gradient()))
    return _gradients(workload, (q, k, v), dout)


def _gradients(workload: Workload, inputs: Inputs, dout: Array) -> Call:
    q, k, v = inputs
    out, lse = gqa.attention(q, k, v, causal=workload.causal, return_lse=True)
    return Call(lambda: gqa.attention_vjp(dout, q, k, v, out, lse, causal=workload.causal)[:3], stacked)
