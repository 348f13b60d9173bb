"""ONNX Runtime: single-node models, inputs and outputs bound once (IOBinding), each operator in the layout it takes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from peers.base import Call, Unsupported, packed, unpacked
from workloads import Array, Inputs, Workload

Values = dict[str, Array]
Kinds = tuple[tuple[str, str, int], ...]  # name, dtype and rank of each tensor
UNUSED = ("cos_cache", "sin_cache", "position_ids", "attention_bias", "head_sink")  # of GroupQueryAttention


def attention(workload: Workload, inputs: Inputs, threads: int) -> Call:
    """ai.onnx Attention-23 over all keys at once."""
    if workload.cache:
        raise Unsupported("no quantised cache")
    values = dict(zip(("q", "k", "v"), inputs))
    mask = workload.mask()
    square = workload.queries == workload.keys
    if mask is not None and not square:  # is_causal would align the triangle top left
        values["mask"] = mask
    causal = int(mask is not None and square)
    return bind("Attention", values, {"y": np.empty_like(inputs[0])}, threads, is_causal=causal)


def multi_head_attention(workload: Workload, inputs: Inputs, threads: int) -> Call:
    """com.microsoft MultiHeadAttention, which has no groups."""
    if workload.group > 1:
        raise Unsupported("no grouped heads")
    if workload.cache:
        raise Unsupported("no quantised cache")
    if workload.causal and workload.queries != workload.keys:
        raise Unsupported("causal only for as many queries as keys")
    values = {name: packed(x) for name, x in zip(("q", "k", "v"), inputs)}
    outputs = {"y": np.empty_like(values["q"])}
    heads = workload.heads[0]
    attributes = {"num_heads": heads, "unidirectional": int(workload.causal)}
    return bind("com.microsoft.MultiHeadAttention", values, outputs, threads, heads, **attributes)


def gqa_shared(workload: Workload, inputs: Inputs, threads: int) -> Call:
    """com.microsoft GroupQueryAttention whose past and present are one buffer: only the new keys are written."""
    return group_query_attention(workload, inputs, threads, shared=True)


def gqa_copying(workload: Workload, inputs: Inputs, threads: int) -> Call:
    """com.microsoft GroupQueryAttention that copies the past into the present, as without IOBinding."""
    if workload.queries == workload.keys:
        raise Unsupported("no past to copy")
    return group_query_attention(workload, inputs, threads, shared=False)


def group_query_attention(workload: Workload, inputs: Inputs, threads: int, shared: bool) -> Call:
    q, k, v = inputs
    past = workload.keys - workload.queries
    if past and workload.queries > 1 and workload.batch > 1:
        raise Unsupported("several queries over a past only for batch 1")
    values = {"q": packed(q), "k": packed(k[:, :, past:]), "v": packed(v[:, :, past:])}
    caches = {"past_key": k, "past_value": v}
    attributes: dict[str, Any] = {"num_heads": workload.heads[0], "kv_num_heads": workload.heads[1]}
    scales: Values = {}
    if not workload.causal and workload.queries > 1:
        attributes["causal"] = 0
    if workload.cache == "int8":
        attributes |= {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8}
        scales = {name: np.array([np.abs(x).max() / 127], np.float32) for name, x in (("k_scale", k), ("v_scale", v))}
        for name, scale in zip(caches, scales.values()):
            caches[name] = np.rint(caches[name] / scale).astype(np.int8)
    caches = {name: np.array(x if shared else x[:, :, :past], order="C") for name, x in caches.items()}
    values |= caches
    values["seqlens_k"] = np.full(workload.batch, workload.keys - 1, np.int32)
    values["total_sequence_length"] = np.array([workload.keys], np.int32)
    if scales:
        values |= {name: np.empty(0) for name in UNUSED} | scales
    outputs = {"y": np.empty_like(values["q"])}
    for name, cache in zip(("present_key", "present_value"), caches.values()):
        outputs[name] = cache if shared else np.empty(k.shape, cache.dtype)
    return bind("com.microsoft.GroupQueryAttention", values, outputs, threads, workload.heads[0], **attributes)


def bind(
    operator: str, values: Values, outputs: Values, threads: int, heads: int | None = None, **attributes: Any
) -> Call:
    """A call of one operator; `heads` where its first output is packed."""
    import onnxruntime

    def kinds(arrays: Values) -> Kinds:
        return tuple((name, x.dtype.name, x.ndim) for name, x in arrays.items())

    run = session(operator, kinds(values), kinds(outputs), threads, tuple(attributes.items()))
    binding = run.io_binding()
    arrays = {name: np.ascontiguousarray(x) for name, x in values.items() if name not in UNUSED}
    held = {name: onnxruntime.OrtValue.ortvalue_from_numpy(x) for name, x in (arrays | outputs).items()}
    for name in arrays:
        binding.bind_ortvalue_input(name, held[name])
    for name in outputs:
        binding.bind_ortvalue_output(name, held[name])

    def output(_: Any) -> Array:
        result = held["y"].numpy()
        return result if heads is None else unpacked(result, heads)

    return Call(lambda: run.run_with_iobinding(binding), output)


@functools.cache
def session(operator: str, inputs: Kinds, outputs: Kinds, threads: int, attributes: tuple[tuple[str, Any], ...]) -> Any:
    """A session for a model of one operator, its domain before it."""
    import onnx
    import onnxruntime
    from onnx import helper

    def tensors(kinds: Kinds) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [None] * rank)
            for name, dtype, rank in kinds
            if name not in UNUSED
        ]

    domain, _, name = operator.rpartition(".")
    node_inputs = [name if name not in UNUSED else "" for name, _, _ in inputs]
    node = helper.make_node(name, node_inputs, [name for name, _, _ in outputs], domain=domain, **dict(attributes))
    graph = helper.make_graph([node], name, tensors(inputs), tensors(outputs))
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
