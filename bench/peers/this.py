"""gqa itself, called as users call it."""

from __future__ import annotations

import numpy as np

import gqa
from peers.base import Call, Unsupported
from workloads import Inputs, Workload


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
