"""JAX: jax.nn.dot_product_attention, compiled, on arrays in its layout (B, S, H, D)."""

from __future__ import annotations

from typing import Any

import numpy as np

from peers.base import Call, Unsupported
from workloads import Array, Inputs, Workload


def dot_product_attention(workload: Workload, inputs: Inputs, threads: int) -> Call:
    if workload.cache:
        raise Unsupported("no quantised cache")
    import jax

    arrays = [jax.numpy.asarray(x.swapaxes(1, 2)) for x in inputs]
    options: dict[str, Any] = {}
    mask = workload.mask()
    if mask is not None and workload.queries != workload.keys:
        options["mask"] = jax.numpy.asarray(mask)[None, None]
    elif mask is not None:
        options["is_causal"] = True
    attention = jax.jit(jax.nn.dot_product_attention, static_argnames="is_causal")

    def to_numpy(result: Any) -> Array:
        return np.asarray(result).swapaxes(1, 2)

    return Call(lambda: attention(*arrays, **options).block_until_ready(), to_numpy)
