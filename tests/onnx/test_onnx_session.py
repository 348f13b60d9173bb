"""gqa.onnx.Session: what runs of one session give, against gqa.onnx.run with everything handed over."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
parser = pytest.importorskip("onnx.parser")

import gqa.onnx  # noqa: E402
from compare import assert_same_bits  # noqa: E402

CACHED = """
    <ir_version: 10, opset_import: ["": 24, "com.microsoft": 1]>
    g (float[B, S, 32] query, float[B, S, 16] key, float[B, S, 16] value, float[B, 2, C, 8] past_key,
       float[B, 2, C, 8] past_value, int32[B] seqlens_k, int32 total) => (float y, float k, float v%s)
    { y, k, v = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(
        query, key, value, past_key, past_value, seqlens_k, total) %s }
"""
CONCATENATED = """
    <ir_version: 10, opset_import: ["": 24]>
    g (float[1, 4, S, 8] q, float[1, 2, S, 8] k, float[1, 2, S, 8] v, float[1, 2, P, 8] past_k,
       float[1, 2, P, 8] past_v) => (float y, float present_k, float present_v)
    { y, present_k, present_v = Attention<is_causal = 1>(q, k, v, , past_k, past_v) }
"""
BINDINGS = {"k": "past_key", "v": "past_value"}


def step(rng, position, tokens=1):
    """What a run takes besides the caches."""
    arrays = {
        name: rng.standard_normal((2, tokens, size), np.float32)
        for name, size in (("query", 32), ("key", 16), ("value", 16))
    }
    last = np.full(2, position + tokens - 1, np.int32)
    return arrays | {"seqlens_k": last, "total": np.array(position + tokens, np.int32)}


@pytest.mark.parametrize("reader", [False, True])
def test_a_shared_cache(rng, reader):
    """The same bits, and the bound cache is one array for as long as it has room; what was given is left alone."""
    model = parser.parse_model(CACHED % ((", float z", "z = Identity(past_key)") if reader else ("", "")))
    session = gqa.onnx.Session(model, bindings=BINDINGS, num_threads=1)
    first = {name: np.zeros((2, 2, 6, 8), np.float32) for name in ("past_key", "past_value")}
    caches, addresses = first, []
    for position in range(8):
        given = step(rng, position)
        expected = gqa.onnx.run(model, given | caches)
        outputs = session.run(given | (first if position == 0 else {}))
        for name in expected:
            assert_same_bits(outputs[name], expected[name])
        caches = {name: expected[output].copy() for output, name in BINDINGS.items()}
        addresses.append((outputs["k"].ctypes.data, outputs["v"].ctypes.data))
    assert not any(x.any() for x in first.values())
    in_place = [x == y for x, y in itertools.pairwise(addresses)]
    assert in_place == [not reader] * 5 + [False] * 2  # six slots


def test_a_cache_that_grows(rng):
    model = parser.parse_model(CONCATENATED)
    session = gqa.onnx.Session(model, bindings={"present_k": "past_k", "present_v": "past_v"})
    pasts = {name: np.zeros((1, 2, 0, 8), np.float32) for name in ("past_k", "past_v")}
    for i in range(4):
        given = {n: rng.standard_normal((1, h, 1, 8), np.float32) for n, h in zip("qkv", (4, 2, 2))}
        expected = gqa.onnx.run(model, given | pasts)
        outputs = session.run(given | (pasts if i == 0 else {}))
        assert_same_bits(outputs["y"], expected["y"])
        assert outputs["present_k"].shape == (1, 2, i + 1, 8)
        pasts = {"past_k": expected["present_k"], "past_v": expected["present_v"]}


def test_it_begins_anew_with_what_it_is_given(rng):
    session = gqa.onnx.Session(parser.parse_model(CACHED % ("", "")), bindings=BINDINGS)
    empty = {name: np.zeros((2, 2, 6, 8), np.float32) for name in ("past_key", "past_value")}
    given = step(rng, 0, 3)
    expected = session.run(given | empty)["y"].copy()
    session.run(step(rng, 3))
    assert_same_bits(session.run(given | empty)["y"], expected)
    assert not any(x.any() for x in empty.values())


def test_without_new_keys_the_given_cache_is_not_the_sessions(rng):
    """GroupQueryAttention gives back the past itself where there is nothing to append."""
    text = (
        (CACHED % ("", ""))
        .replace("float[B, S, 16] key, float[B, S, 16] value, ", "")
        .replace("query, key, value", "query, ,")
    )
    reading = gqa.onnx.Session(parser.parse_model(text), bindings=BINDINGS)
    caches = {name: rng.standard_normal((2, 2, 6, 8)).astype(np.float32) for name in ("past_key", "past_value")}
    before = {name: x.copy() for name, x in caches.items()}
    given = {name: x for name, x in step(rng, 3).items() if name not in ("key", "value")}
    outputs = reading.run(given | caches)
    again = reading.run(given)
    assert_same_bits(again["y"], outputs["y"])
    for name, x in caches.items():
        assert_same_bits(x, before[name])


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        ({"kk": "past_key"}, "the model has no output 'kk', expected y, k, v"),
        ({"k": "past"}, "the model has no input 'past', expected query"),
        ({"k": "past_key", "v": "past_key"}, "bindings give an input two outputs"),
    ],
)
def test_refused(bindings, message):
    with pytest.raises(ValueError, match=message):
        gqa.onnx.Session(parser.parse_model(CACHED % ("", "")), bindings=bindings)


def test_a_missing_input(rng):
    session = gqa.onnx.Session(parser.parse_model(CACHED % ("", "")), bindings=BINDINGS)
    with pytest.raises(ValueError, match="input 'past_key' is missing"):
        session.run(step(rng, 0))
