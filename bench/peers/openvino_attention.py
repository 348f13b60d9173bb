"""OpenVINO: ScaledDotProductAttention on whole arrays, and PagedAttention, which its language models run on."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from peers.base import Call, Unsupported, packed, unpacked
from workloads import Array, Inputs, Workload


def sdpa(workload: Workload, inputs: Inputs, threads: int) -> Call:
    if workload.cache:
        raise Unsupported("no quantised cache")
    import openvino as ov

    model = sdpa_model(workload, threads)
    arrays: list[Array] = list(inputs)
    mask = workload.mask()
    if mask is not None and not squarely_causal(workload):
        arrays.append(np.tile(mask, (workload.group, 1))[None, None])
    request = model.create_infer_request()
    for i, x in enumerate(arrays):
        bits = x.view(np.uint16) if x.dtype.name == "bfloat16" else x
        request.set_input_tensor(i, ov.Tensor(bits, x.shape, model.inputs[i].element_type))

    def output(_: Any) -> Array:
        data: Array = request.get_output_tensor(0).data
        return data.view(arrays[0].dtype) if workload.dtype == "bfloat16" else data  # tensors borrow arrays: keep them

    return Call(lambda: request.infer(share_outputs=True), output)


def squarely_causal(workload: Workload) -> bool:
    """Whether the operator's own causal mask is the workload's: it would align another triangle top left."""
    return workload.causal and workload.queries == workload.keys


@lru_cache(maxsize=1)
def sdpa_model(workload: Workload, threads: int) -> Any:
    """One ScaledDotProductAttention, which has no groups.

    The model folds the query heads of a group into rows; where the operator has to mask, it repeats keys and values
    instead, as exported models do.
    """
    import openvino as ov
    from openvino import opset13

    kind = {"float32": ov.Type.f32, "float16": ov.Type.f16, "bfloat16": ov.Type.bf16}[workload.dtype]
    query_heads, kv_heads, head_dim = workload.heads
    batch, queries, keys, group = workload.batch, workload.queries, workload.keys, workload.group
    q = opset13.parameter([batch, query_heads, queries, head_dim], kind)
    k, v = (opset13.parameter([batch, kv_heads, keys, head_dim], kind) for _ in range(2))
    parameters = [q, k, v]

    def reshaped(x: Any, *shape: int) -> Any:
        return opset13.reshape(x, opset13.constant(list(shape)), False)

    def repeated(x: Any) -> Any:
        shape = opset13.constant([batch, kv_heads, group, keys, head_dim])
        wide = opset13.broadcast(opset13.unsqueeze(x, opset13.constant(2)), shape, "BIDIRECTIONAL")
        return reshaped(wide, batch, query_heads, keys, head_dim)

    if squarely_causal(workload):
        if group > 1:
            k, v = repeated(k), repeated(v)
        output = opset13.scaled_dot_product_attention(q, k, v, causal=True)
    else:
        options: dict[str, Any] = {}
        if workload.causal:
            parameters.append(opset13.parameter([1, 1, group * queries, keys], ov.Type.boolean))
            options["attention_mask"] = parameters[-1]
        rows = reshaped(q, batch, kv_heads, group * queries, head_dim)
        output = opset13.scaled_dot_product_attention(rows, k, v, causal=False, **options)
        output = reshaped(output, batch, query_heads, queries, head_dim)
    precision = {"INFERENCE_PRECISION_HINT": "f32"} if workload.dtype == "float32" else {}
    return compiled(ov.Model([opset13.result(output)], parameters), threads, **precision)


def paged(workload: Workload, inputs: Inputs, threads: int) -> Call:
    """Float32 queries over pages of the workload's type (u8 for int8), which also take the new keys and values."""
    if workload.queries > 1 and not workload.causal:
        raise Unsupported("always causal")
    import openvino as ov

    kind = {"int8": "u8", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}[workload.cache or workload.dtype]
    model = paged_model(workload.heads, kind, threads)
    request = model.create_infer_request()
    shape = {name: model.input(name).get_partial_shape() for name in ("key_cache", "value_cache")}
    page = shape["value_cache"][2].get_length()
    pages = -(-workload.keys // page)
    for name, (_, *rest) in shape.items():
        size = [workload.batch * pages, *(dimension.get_length() for dimension in rest)]
        request.set_tensor(name, ov.Tensor(model.input(name).get_element_type(), size))

    def bind(q: Array, k: Array, v: Array, past: int, blocks: Array) -> None:
        """Sequences of equal length over `past` tokens in the cache; blocks (sequences, pages of each)."""
        sequences, tokens, _ = q.shape
        for name, tokens_of in (("query", q), ("key", k), ("value", v)):
            flat = tokens_of.reshape(sequences * tokens, -1).astype(np.float32, copy=False)
            request.set_tensor(name, ov.Tensor(np.ascontiguousarray(flat)))
        integers = {
            "past_lens": np.full(sequences, past),
            "subsequence_begins": np.arange(sequences + 1) * tokens,
            "block_indices": blocks.reshape(-1),
            "block_indices_begins": np.arange(sequences + 1) * blocks.shape[1],
            "max_context_len": np.array(past + tokens),
        }
        for name, value in integers.items():
            request.set_tensor(name, ov.Tensor(value.astype(np.int32)))

    q, k, v = (packed(x) for x in inputs)
    past = workload.keys - workload.queries
    blocks = np.arange(workload.batch * pages).reshape(workload.batch, pages)
    for i in range(pages if past else 0):  # a page is filled as if it were a sequence of its own, which costs little
        tokens = slice(i * page, min((i + 1) * page, workload.keys))
        new_k, new_v = k[:, tokens], v[:, tokens]
        bind(np.zeros((*new_k.shape[:2], q.shape[2]), np.float32), new_k, new_v, 0, blocks[:, i : i + 1])
        request.infer()
    bind(q, k[:, past:], v[:, past:], past, blocks)

    def output(_: Any) -> Array:
        return unpacked(request.get_output_tensor(0).data.reshape(q.shape), workload.heads[0])

    return Call(lambda: request.infer(share_outputs=True), output)


@lru_cache(maxsize=1)
def paged_model(heads: tuple[int, int, int], cache: str, threads: int) -> Any:
    """One PagedAttention: its 28 inputs in order, those that are not used as constants."""
    import openvino as ov
    from openvino import opset13
    from openvino.op import _PagedAttentionExtension

    query_heads, kv_heads, head_dim = heads
    f32, i32 = ov.Type.f32, ov.Type.i32
    inputs: dict[str, Any] = {
        "query": opset13.parameter([-1, query_heads * head_dim], f32),
        "key": opset13.parameter([-1, kv_heads * head_dim], f32),
        "value": opset13.parameter([-1, kv_heads * head_dim], f32),
        "key_cache": opset13.parameter([-1, kv_heads, -1, head_dim], ov.Type.dynamic),
        "value_cache": opset13.parameter([-1, kv_heads, -1, head_dim], ov.Type.dynamic),
        "past_lens": opset13.parameter([-1], i32),
        "subsequence_begins": opset13.parameter([-1], i32),
        "block_indices": opset13.parameter([-1], i32),
        "block_indices_begins": opset13.parameter([-1], i32),
        "scale": np.float32(head_dim**-0.5),
        "sliding_window": np.int32(0),
        "alibi_slopes": np.empty(0, np.float32),
        "max_context_len": opset13.parameter([], i32),
        "score_aggregation_window": np.empty(0, np.int32),
        "rotated_block_indices": np.empty(0, np.int32),
        "rotation_deltas": np.empty(0, np.int32),
        "rotation_trig_lut": np.empty(0, np.float32),
        "xattention_threshold": np.empty(0, np.float32),
        "xattention_block_size": np.int32(0),
        "xattention_stride": np.int32(0),
        "sinks": np.empty(0, np.float32),
        "adaptive_rkv_start_size": np.int32(0),
        "adaptive_rkv_evictable_sizes": np.empty(0, np.int32),
        "adaptive_rkv_diversity_block_set_indices": np.empty(0, np.int32),
        "adaptive_rkv_diversity_block_set_indices_begins": np.empty(0, np.int32),
        "token_type_ids": np.empty(0, np.int32),
        "qq_bias": np.empty(0, np.uint8),
        "qq_bias_begins": np.empty(0, np.int32),
    }
    nodes = {name: opset13.constant(x) if isinstance(x, np.generic | np.ndarray) else x for name, x in inputs.items()}
    parameters = [node for node in nodes.values() if node.get_type_name() == "Parameter"]
    for name, node in nodes.items():
        node.get_output_tensor(0).set_names({name})
    attention = _PagedAttentionExtension([node.output(0) for node in nodes.values()])
    sizes = {"num_k_heads": kv_heads, "num_v_heads": kv_heads, "k_head_size": head_dim, "v_head_size": head_dim}
    for name, size in sizes.items():
        attention.get_rt_info()[name] = size
    model = ov.Model([opset13.result(attention.output(0))], parameters)
    return compiled(model, threads, INFERENCE_PRECISION_HINT="f32", KV_CACHE_PRECISION=cache)


def compiled(model: Any, threads: int, **properties: Any) -> Any:
    import openvino as ov

    one_call = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    return ov.Core().compile_model(model, "CPU", one_call | properties)
