"""PyTorch: scaled_dot_product_attention with the group in three forms, and the two products with a softmax between."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import numpy as np

from peers.base import Call, Unsupported
from workloads import Array, Inputs, Workload

held = contextlib.ExitStack()  # inference mode, from the first use to the end of the process


def enable_gqa(workload: Workload, inputs: Inputs, threads: int) -> Call:
    torch, (q, k, v) = tensors(workload, inputs, threads)
    options = {**masking(workload, q), **({"enable_gqa": True} if workload.group > 1 else {})}
    attention = torch.nn.functional.scaled_dot_product_attention
    return Call(lambda: attention(q, k, v, **options), to_numpy)


def folded(workload: Workload, inputs: Inputs, threads: int) -> Call:
    """The query heads of a group as rows of one head, so that keys and values are read once."""
    if workload.group == 1:
        raise Unsupported("no group to fold")
    if workload.causal and workload.queries > 256:
        raise Unsupported("is_causal does not know folded rows")
    torch, (q, k, v) = tensors(workload, inputs, threads)
    options = masking(workload, q, repeat=workload.group, explicit=True)
    attention = torch.nn.functional.scaled_dot_product_attention
    rows = (workload.batch, workload.heads[1], workload.group * workload.queries, workload.heads[2])
    return Call(lambda: attention(q.view(rows), k, v, **options).view(q.shape), to_numpy)


def expanded(workload: Workload, inputs: Inputs, threads: int) -> Call:
    """Keys and values repeated for each query head, as in most model code."""
    if workload.group == 1:
        raise Unsupported("nothing to expand")
    torch, (q, k, v) = tensors(workload, inputs, threads)
    options = masking(workload, q)
    attention = torch.nn.functional.scaled_dot_product_attention
    return Call(lambda: attention(q, repeat(k, workload.group), repeat(v, workload.group), **options), to_numpy)


def repeat(x: Any, group: int) -> Any:
    """Each head `group` times."""
    batch, heads, tokens, head_dim = x.shape
    return x[:, :, None].expand(batch, heads, group, tokens, head_dim).reshape(batch, heads * group, tokens, head_dim)


def matmul(workload: Workload, inputs: Inputs, threads: int) -> Call:
    """The two products on folded rows, with all scores in memory."""
    torch, (q, k, v) = tensors(workload, inputs, threads)
    bias = masking(workload, q, explicit=True).get("attn_mask")
    batch, (_, kv_heads, head_dim), group = workload.batch, workload.heads, workload.group
    rows = (batch, kv_heads, group * workload.queries, head_dim)
    grouped = (batch, kv_heads, group, workload.queries, workload.keys)

    def run() -> Any:
        scores = (q * head_dim**-0.5).view(rows) @ k.transpose(-1, -2)
        if bias is not None:
            scores.view(grouped).add_(bias)
        return (torch.softmax(scores, -1) @ v).view(q.shape)

    return Call(run, to_numpy)


def gradients_enable_gqa(workload: Workload, inputs: Inputs, threads: int) -> Call:
    options = {"enable_gqa": True} if workload.group > 1 else {}
    return backward(workload, inputs, threads, lambda attention, q, k, v, more: attention(q, k, v, **options, **more))


def gradients_expanded(workload: Workload, inputs: Inputs, threads: int) -> Call:
    if workload.group == 1:
        raise Unsupported("nothing to expand")
    n = workload.group
    return backward(
        workload, inputs, threads, lambda attention, q, k, v, more: attention(q, repeat(k, n), repeat(v, n), **more)
    )


def backward(workload: Workload, inputs: Inputs, threads: int, forward: Any) -> Call:
    """autograd's gradients of forward(attention, q, k, v, options), from a graph that is kept."""
    torch, _ = tensors(workload, inputs, threads)
    with torch.inference_mode(False):
        _, (q, k, v) = tensors(workload, inputs, threads)
        _, (dout,) = tensors(workload, (workload.output_gradient(),), threads)
        leaves = [x.requires_grad_() for x in (q, k, v)]
        out = forward(torch.nn.functional.scaled_dot_product_attention, *leaves, masking(workload, q))

    def run() -> Any:
        with torch.inference_mode(False):
            return torch.autograd.grad(out, leaves, dout, retain_graph=True)

    return Call(run, lambda gradients: to_numpy(torch.cat(gradients, 1)))


def tensors(workload: Workload, inputs: tuple[Array, ...], threads: int) -> tuple[Any, list[Any]]:
    """torch, and the inputs as tensors on the same memory."""
    if workload.cache:
        raise Unsupported("no quantised cache")
    torch = library(threads)
    if workload.dtype == "bfloat16":
        return torch, [torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16) for x in inputs]
    return torch, [torch.from_numpy(x) for x in inputs]


@functools.cache
def library(threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    held.enter_context(torch.inference_mode())
    return torch


def masking(workload: Workload, q: Any, repeat: int = 1, explicit: bool = False) -> dict[str, Any]:
    """Options for the workload's mask. is_causal, the fast form, holds only for as many queries as keys."""
    mask = workload.mask()
    if mask is None:
        return {}
    if workload.queries == workload.keys and not explicit:
        return {"is_causal": True}
    import torch

    bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~torch.from_numpy(mask), -torch.inf)
    return {"attn_mask": bias.repeat(repeat, 1)}


def to_numpy(result: Any) -> Array:
    array: Array = result.float().numpy()
    return array
