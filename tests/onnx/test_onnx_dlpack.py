"""Tensors of other libraries, read in place by the operators and by the layer of gqa.nn."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import gqa.onnx
from compare import assert_same_bits
from dlpack_producer import Producer
from gqa.nn import MultiHeadAttention
from gqa.onnx.cache_operators import tensor_scatter
from gqa.onnx.rotary_operators import microsoft_rotary_embedding, rotary_embedding
from group_query import Call

PRODUCERS = []  # which must outlive what is made of their memory


def produced(x):
    PRODUCERS.append(Producer(x))
    return PRODUCERS[-1]


def offered(arguments):
    """The arguments with tensors that are no arrays in place of arrays."""
    return {name: produced(x) if isinstance(x, np.ndarray) and x.ndim else x for name, x in arguments.items()}


def assert_same_results(function, **arguments):
    results = [function(**arguments), function(**offered(arguments))]
    for one, other in zip(*(x if isinstance(x, tuple) else (x,) for x in results)):
        assert (one is None) == (other is None)
        if one is not None:
            assert isinstance(other, np.ndarray)
            assert_same_bits(np.ascontiguousarray(other), np.ascontiguousarray(one))


def tensors(rng, dtype, axes):
    shapes = [(2, 4, 5, 8), (2, 2, 5, 8), (2, 2, 5, 8)] if axes == 4 else [(2, 5, 32), (2, 5, 16), (2, 5, 16)]
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in zip("QKV", shapes)}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("axes", [3, 4])
def test_attention(rng, dtype, axes):
    heads = {"q_num_heads": 4, "kv_num_heads": 2} if axes == 3 else {}
    past = {name: rng.standard_normal((2, 2, 3, 8)).astype(dtype) for name in ("past_key", "past_value")}
    for mask in (rng.random((5, 8)) < 0.7, rng.integers(-2, 2, (5, 8))):
        assert_same_results(
            gqa.onnx.attention, **tensors(rng, dtype, axes), **past, attn_mask=mask, is_causal=1, qk_matmul_output=True,
            **heads,
        )  # fmt: skip


def test_flex_attention(rng):
    arguments = tensors(rng, np.float32, 4)
    assert_same_results(gqa.onnx.flex_attention, **arguments)
    assert_same_results(gqa.onnx.flex_attention, **arguments, score_mod=lambda x: x + 1)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_group_query_attention(rng, dtype):
    call = Call(rng, dtype=dtype)
    tables = rng.standard_normal((2, 20, 4)).astype(dtype)
    inputs = {
        name: x.astype(np.int32) if name == "seqlens_k" else np.array([x]) if name == "total_sequence_length" else x
        for name, x in call.inputs.items()
    }
    inputs |= {"cos_cache": tables[0], "sin_cache": tables[1], "q_norm_weight": tables[0, :2].ravel()}
    inputs |= {
        "k_norm_weight": tables[1, :2].ravel(),
        "attention_bias": rng.standard_normal((1, 1, 3, 16)).astype(dtype),
    }
    options = {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1}
    assert_same_results(gqa.onnx.group_query_attention, **inputs, **options)


def test_presents_in_the_memory_of_a_past(rng):
    call = Call(rng)
    copies = [x.copy() for x in call.past.values()]
    want = call.run(past_key=copies[0], past_value=copies[1], present_key=copies[0], present_value=copies[1])
    key, value = (produced(x) for x in call.past.values())
    result = call.run(past_key=key, past_value=value, present_key=key, present_value=value)
    assert_same_bits(result.output, want.output)
    assert_same_bits(call.past["past_key"], want.present_key)
    assert np.shares_memory(result.present_value, call.past["past_value"])


def test_other_operators(rng):
    x, (cos, sin) = rng.standard_normal((2, 3, 5, 8), np.float32), gqa.rotary_tables(16, 8)
    tables = {"cos_cache": cos, "sin_cache": sin}
    ids = np.arange(10).reshape(2, 5)
    assert_same_results(rotary_embedding, X=x, position_ids=ids, **tables)
    assert_same_results(microsoft_rotary_embedding, input=x, position_ids=ids, **tables)
    assert_same_results(tensor_scatter, past_cache=x, update=x[:, :, :2].copy(), write_indices=np.array([0, 3]))


def test_a_model(rng):
    parser = pytest.importorskip("onnx.parser")
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["": 24]>
        g (float[B, 4, S, 8] Q, float[B, 2, T, 8] K, float[B, 2, T, 8] V) => (float y) { y = Attention(Q, K, V) }
    """)
    arguments = tensors(rng, np.float32, 4)
    assert_same_bits(gqa.onnx.run(model, offered(arguments))["y"], gqa.onnx.run(model, arguments)["y"])


def test_the_layer(rng):
    layer = MultiHeadAttention(4, 12, num_kv_heads=2, rng=0)
    x, y = rng.standard_normal((2, 2, 5, 12), np.float32)
    assert_same_results(layer, inputs_q=x, inputs_k=y, mask=rng.random((5, 5)) < 0.7)
    other = MultiHeadAttention(4, 12, num_kv_heads=2, rng=1)
    parts = {name: vars(getattr(layer, name)) for name in ("query", "key", "value", "out")}
    other.load({name: {key: produced(part[key]) for key in ("kernel", "bias")} for name, part in parts.items()})
    assert_same_bits(other(x), layer(x))
    assert not np.shares_memory(other.query.kernel, layer.query.kernel)
