"""Plain NumPy in its best form: the query heads of a group are rows of one product, so nothing is repeated."""

from __future__ import annotations

import numpy as np

from peers.base import Call, Unsupported
from workloads import Array, Inputs, Workload


def folded(workload: Workload, inputs: Inputs, threads: int) -> Call:
    if workload.cache:
        raise Unsupported("no quantised cache")
    _, kv_heads, head_dim = workload.heads
    scale = np.float32(head_dim**-0.5)
    mask = workload.mask()
    bias = None if mask is None else np.where(mask, np.float32(0), np.float32(-np.inf))
    rows = (workload.batch, kv_heads, workload.group * workload.queries, head_dim)

    def run() -> Array:
        q, k, v = (x.astype(np.float32, copy=False) for x in inputs)
        scores = (q * scale).reshape(rows) @ k.swapaxes(2, 3)
        if bias is not None:
            grouped = scores.reshape(*rows[:2], workload.group, *bias.shape)
            grouped += bias
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        total = scores.sum(-1, keepdims=True)
        output: Array = ((scores @ v) / total).reshape(inputs[0].shape)
        return output.astype(inputs[0].dtype, copy=False)

    return Call(run)
