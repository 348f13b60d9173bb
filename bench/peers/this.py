"""gqa itself, called as users call it."""

from __future__ import annotations

import gqa
from peers.base import Call
from workloads import Inputs, Workload


def attention(workload: Workload, inputs: Inputs, threads: int) -> Call:
    q, k, v = inputs
    if workload.cache:
        quantized_k, quantized_v = gqa.quantize(k), gqa.quantize(v)
        return Call(lambda: gqa.attention(q, quantized_k, quantized_v))
    if workload.causal:
        return Call(lambda: gqa.attention(q, k, v, causal=True))
    return Call(lambda: gqa.attention(q, k, v))
