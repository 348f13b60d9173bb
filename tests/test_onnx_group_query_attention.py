"""com.microsoft GroupQueryAttention against the float64 oracle: forms of its inputs, positions, options, errors."""

from __future__ import annotations

import numpy as np
import pytest

import gqa
import gqa.onnx
import oracle
from compare import assert_close, assert_same_bits

HEADS = {"num_heads": 4, "kv_num_heads": 2}


def expected(q, k, v, past_key, past_value, tokens, total, *, before=None, window=-1, causal=1, bias=None, **options):
    """The output (B, S, Hq, D) in float64, for q, k and v by heads and caches (B, Hkv, C, D)."""
    out = np.zeros(q.shape)
    for b, end in enumerate(tokens):
        start = 0 if q.shape[1] == total else end - q.shape[1]
        parts = [(x[b, :, :start].swapaxes(0, 1), y[b]) for x, y in ((past_key, k), (past_value, v))]
        keys, values = (np.concatenate(pair)[None, :end] for pair in parts)
        mask = None if bias is None else bias[b % len(bias), :, :, :end]
        if window != 0:
            out[b] = oracle.attention(
                q[b : b + 1], keys, values, mask=mask, causal=bool(causal), query_offset=start, layout="bshd",
                window=(window - 1 if window > 0 else None, None), **options,
            )[0][0]  # fmt: skip
    return out


class Call:
    """Random tokens over a random cache: arguments of the operator, and the same by heads for the oracle."""

    def __init__(self, rng, dtype=np.float32, batch=2, queries=3, capacity=16, head_dim=8, tokens=(9, 16), total=16):
        normal = lambda *shape: rng.standard_normal(shape).astype(dtype)
        self.q, self.k, self.v = (normal(batch, queries, heads, head_dim) for heads in (4, 2, 2))
        self.past = {name: normal(batch, 2, capacity, head_dim) for name in ("past_key", "past_value")}
        self.tokens, self.total = np.array(tokens), total
        self.lengths = {"seqlens_k": self.tokens - 1, "total_sequence_length": total}
        flat = lambda x: x.reshape(batch, queries, -1)
        self.tensors = {"query": flat(self.q), "key": flat(self.k), "value": flat(self.v)}
        self.inputs = self.tensors | self.past | self.lengths

    def run(self, **changes):
        return gqa.onnx.group_query_attention(**self.inputs | HEADS | changes)

    def expected(self, **options):
        return expected(self.q, self.k, self.v, *self.past.values(), self.tokens, self.total, **options)

    def check(self, result, want, magnitude=2):
        assert result.output.dtype == self.q.dtype
        assert_close(result.output, want.reshape(result.output.shape), magnitude)


STEPS = {
    "decode": {"queries": 1, "tokens": (9, 16)},
    "chunk": {"queries": 3, "tokens": (9, 16)},
    "growing": {"queries": 3, "tokens": (5, 19), "total": 19},
    "prompt": {"queries": 7, "tokens": (7, 4), "total": 7},
    "one token": {"queries": 1, "tokens": (1, 1), "total": 1},
    "no batch": {"batch": 0, "tokens": ()},
}
OPTIONS = {
    "plain": ({}, {}),
    "window": ({"local_window_size": 3}, {"window": 3}),
    "window of one": ({"local_window_size": 1}, {"window": 1}),
    "window of none": ({"local_window_size": 0}, {"window": 0}),
    "bidirectional": ({"causal": 0}, {"causal": 0}),
    "softcap and scale": ({"softcap": 1.5, "scale": 0.7}, {"softcap": 1.5, "scale": 0.7}),
    "scale of zero": ({"scale": 0.0}, {}),
    "smooth": ({"smooth_softmax": 1}, {"sinks": np.zeros(4)}),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("step", STEPS)
def test_steps_and_options(step, option, rng, isa):
    call = Call(rng, **STEPS[step])
    attributes, options = OPTIONS[option]
    call.check(call.run(**attributes), call.expected(**options))


@pytest.mark.parametrize("head_dim", [1, 8, 13, 80])
@pytest.mark.parametrize("step", ["decode", "chunk", "prompt"])
def test_every_type_and_head_size(step, head_dim, dtype, rng, isa):
    call = Call(rng, dtype=dtype, head_dim=head_dim, **STEPS[step])
    call.check(call.run(), call.expected())


@pytest.mark.parametrize("step", STEPS)
def test_bias_and_sinks(step, rng):
    call = Call(rng, **STEPS[step])
    batch, queries = call.q.shape[:2]
    sinks = rng.standard_normal(4).astype(np.float32)
    for rows in {1, max(batch, 1)}:
        for heads in (1, 4):
            bias = rng.standard_normal((rows, heads, queries, call.total)).astype(np.float32)
            bias[:, :, 0] = -np.inf
            result = call.run(attention_bias=bias, head_sink=sinks, smooth_softmax=1)
            call.check(result, call.expected(bias=bias, sinks=sinks))
            assert not result.output[:, 0].any()


def test_seqlens_k_in_every_shape(rng):
    call = Call(rng)
    want = call.run().output
    for shape in ((2,), (2, 1), (1, 2)):
        lengths = (call.tokens - 1).astype(np.int32).reshape(shape)
        assert_same_bits(call.run(seqlens_k=lengths, total_sequence_length=np.array([16], np.int32)).output, want)


@pytest.mark.parametrize("step", STEPS)
def test_packed_tensors(step, rng):
    call = Call(rng, **STEPS[step])
    packed = np.concatenate(list(call.tensors.values()), axis=2)
    assert_same_bits(call.run(query=packed, key=None, value=None).output, call.run().output)


def test_a_first_prompt_needs_no_past(rng):
    call = Call(rng, **STEPS["prompt"])
    result = call.run(past_key=None, past_value=None)
    assert_same_bits(result.output, call.run().output)
    np.testing.assert_array_equal(result.present_key, call.k.swapaxes(1, 2))
    packed = np.concatenate(list(call.tensors.values()), axis=2)
    assert_same_bits(call.run(query=packed, key=None, value=None, past_key=None, past_value=None).output, result.output)


def test_what_lies_past_the_end_is_not_read(rng):
    call = Call(rng)
    want = call.run().output
    call.past["past_key"][0, :, 6:], call.past["past_value"][0, :, 6:] = np.nan, np.inf
    assert_same_bits(call.run().output, want)


# ---- a cache shared with another layer ------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["omitted", "of no tokens"])
@pytest.mark.parametrize("step", ["decode", "chunk", "prompt"])
@pytest.mark.parametrize("option", OPTIONS)
def test_shared_cache(form, step, option, rng, isa):
    call = Call(rng, **STEPS[step])
    nothing = None if form == "omitted" else np.zeros((2, 0, 16), np.float32)
    attributes, options = OPTIONS[option]
    result = call.run(key=nothing, value=nothing, **attributes)
    for b, (end, start) in enumerate(zip(call.tokens, call.tokens - call.q.shape[1])):
        start = 0 if step == "prompt" else start
        past_key, past_value = (x[b : b + 1].swapaxes(1, 2) for x in call.past.values())
        want = expected(
            call.q[b : b + 1], past_key[:, start:end], past_value[:, start:end], call.past["past_key"][b : b + 1],
            call.past["past_value"][b : b + 1], [end], call.total, **options,
        )  # fmt: skip
        assert_close(result.output[b], want.reshape(result.output[b].shape), 2)
    assert result.present_key is call.past["past_key"]
    assert result.present_value is call.past["past_value"]


@pytest.mark.parametrize(("keys", "percent"), [(16, 3.03), (64, 1.05), (256, 0.24)])
def test_a_shared_cache_is_not_diluted(keys, percent, rng):
    """The substitute, a new token of zeros, takes about as much of the softmax as any key: 1 / (keys + 1) here or less."""
    q, past_key, past_value = (
        rng.standard_normal((1, heads, n, 32)).astype(np.float16) for heads, n in ((8, 1), (4, keys), (4, keys))
    )
    arguments = {"past_key": past_key, "past_value": past_value, "num_heads": 8, "kv_num_heads": 4, "scale": 32**-0.5}
    query, zeros = q.reshape(1, 1, -1), np.zeros((1, 1, 128), np.float16)
    shared = gqa.onnx.group_query_attention(
        query, **arguments, seqlens_k=np.array([keys - 1]), total_sequence_length=keys
    )
    assert_same_bits(shared.output, gqa.attention(q, past_key, past_value).reshape(1, 1, -1))
    diluted = gqa.onnx.group_query_attention(
        query, zeros, zeros, **arguments, seqlens_k=np.array([keys]), total_sequence_length=keys + 1
    )
    lost = np.linalg.norm((diluted.output - shared.output).astype(float)) / np.linalg.norm(shared.output.astype(float))
    assert 0.2 * percent < 100 * lost < 2.5 * percent


def test_the_width_of_the_query_tells_shared_from_packed(rng):
    call = Call(rng)
    for channels in (16, 33, 48):
        with pytest.raises(ValueError, match=f"query has {channels} channels, expected 32 .* or 64 for packed"):
            call.run(query=np.zeros((2, 3, channels), np.float32), key=None, value=None)


# ---- rotation and normalisation -------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("half", [1, 3, 4])
@pytest.mark.parametrize("step", STEPS)
def test_rotation_by_position(step, half, interleaved, rng):
    """Queries and keys turn by their place in the sequence, and keys are stored turned."""
    call = Call(rng, **STEPS[step])
    cos, sin = gqa.onnx.group_query_attention.__globals__["np"].asarray(tables(half)[0]), tables(half)[1]
    before = np.zeros_like(call.tokens) if call.q.shape[1] == call.total else call.tokens - call.q.shape[1]
    positions = before[:, None] + np.arange(call.q.shape[1])
    result = call.run(cos_cache=cos, sin_cache=sin, do_rotary=1, rotary_interleaved=interleaved)
    turn(call, cos, sin, positions, interleaved)
    call.check(result, call.expected(), magnitude=4)
    for b, start in enumerate(before):
        rows = slice(start, start + call.q.shape[1])
        assert_same_bits(result.present_key[b, :, rows].copy(), call.k[b].swapaxes(0, 1).copy())
