"""JAX: jax.nn.dot_product_attention, compiled, on arrays in its layout (B, S, H, D)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from peers.base import Call, Unsupported
from workloads import Array, Inputs, Workload, stacked


def dot_product_attention(workload: Workload, inputs: Inputs, threads: int) -> Call:
    attention, arrays, options = prepared(workload, inputs)
    attention = functools.partial(attention, **options)
    return Call(lambda: attention(*arrays).block_until_ready(), to_numpy)


def gradients(workload: Workload, inputs: Inputs, threads: int) -> Call:
    """The backward pass alone, compiled, on what the forward pass kept for it."""
    attention, arrays, options = prepared(workload, inputs)
    import jax

    _, pullback = jax.vjp(functools.partial(attention, **options), *arrays)
    dout = jax.numpy.asarray(workload.output_gradient().swapaxes(1, 2))
    run = jax.jit(lambda pullback, dout: pullback(dout))

    def to_stacked(result: Any) -> Array:
        dq, dk, dv = (to_numpy(x) for x in result)
        return stacked((dq, dk, dv))

    return Call(lambda: jax.block_until_ready(run(pullback, dout)), to_stacked)


def prepared(workload: Workload, inputs: Inputs) -> tuple[Any, list[Any], dict[str, Any]]:
    """The compiled function, its arrays and its options."""
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
    return jax.jit(jax.nn.dot_product_attention, static_argnames="is_causal"), arrays, options


def to_numpy(result: Any) -> Array:
    return np.asarray(result).swapaxes(1, 2)
