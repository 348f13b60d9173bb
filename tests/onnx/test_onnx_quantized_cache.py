"""GroupQueryAttention's int8 and int4 caches: the bytes exactly, and attention over what they stand for."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import gqa
from compare import assert_close, assert_same_bits
from group_query import OPTIONS, STEPS, Call

KINDS = ["PER_TENSOR", "PER_CHANNEL"]
SHAPES = {"PER_TENSOR": [(1,), (), (1, 1)], "PER_CHANNEL": [(1, 2, 1, 8), (2, 1, 8), (2, 8), (16,)]}


def quantize(x, scale, bits):
    """x (B, Hkv, L, D) to integers: half to even, saturating. scale (Hkv, 1, D) or ()."""
    return np.clip(np.rint(x.astype(np.float32) / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def stored(x, bits):
    """Those integers as bytes of the cache."""
    if bits == 8:
        return x.astype(np.int8)
    nibbles = (x + 8).astype(np.uint8)
    return nibbles[..., ::2] + 16 * nibbles[..., 1::2]


class QuantizedCall(Call):
    """A call whose past holds random integers; `attributes` say how."""

    def __init__(self, rng, bits, kinds, **sizes):
        super().__init__(rng, **sizes)
        self.bits = bits
        self.attributes = {"k_quant_type": kinds[0], "v_quant_type": kinds[1], "kv_cache_bit_width": bits}
        self.scales = [
            (rng.uniform(0.5, 2, (2, 1, 8) if kind == "PER_CHANNEL" else ()) * 4 / 2**bits).astype(np.float32)
            for kind in kinds
        ]
        ends = -(2 ** (bits - 1)), 2 ** (bits - 1)
        self.integers = [rng.integers(*ends, x.shape).astype(np.float64) for x in self.past.values()]
        names = ("past_key", "past_value")
        self.inputs |= {name: stored(x, bits) for name, x in zip(names, self.integers)}
        shapes = [(1,) if kind == "PER_TENSOR" else (1, 2, 1, 8) for kind in kinds]
        self.inputs |= {name: x.reshape(shape) for name, x, shape in zip(("k_scale", "v_scale"), self.scales, shapes)}

    def run(self, **changes):
        return super().run(**self.attributes | changes)

    def quantized_cache(self):
        """The integers of past and new tokens."""
        call = copy.copy(self)
        call.past = dict(zip(self.past, self.integers))
        call.k, call.v = (
            quantize(x.swapaxes(1, 2), scale, self.bits).swapaxes(1, 2).astype(np.float64)
            for x, scale in zip((self.k, self.v), self.scales)
        )
        return call.cache()

    def dequantized(self):
        return [x * s.astype(np.float64) for x, s in zip(self.quantized_cache(), self.scales)]


@pytest.mark.parametrize("values", KINDS)
@pytest.mark.parametrize("keys", KINDS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("step", STEPS)
def test_bytes_and_attention(step, bits, keys, values, rng, isa):
    """New tokens are quantised before they are attended; old bytes stay, and rows without a token are 0."""
    call = QuantizedCall(rng, bits, (keys, values), **STEPS[step])
    result = call.run()
    want = call.expected(call.dequantized())
    call.check(result, want, magnitude=4)
    end = np.maximum(call.tokens, call.before + call.q.shape[1])[:, None, None, None]
    for present, integers in zip(result[1:3], call.quantized_cache()):
        bytes_ = stored(integers, bits)
        token = np.arange(present.shape[2])[:, None] < end
        assert_same_bits(present, np.where(token, bytes_, 0).astype(bytes_.dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("option", OPTIONS)
def test_options(option, bits, kind, rng):
    call = QuantizedCall(rng, bits, (kind, kind))
    attributes, options = OPTIONS[option]
    call.check(call.run(**attributes), call.expected(call.dequantized(), **options), magnitude=4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [4, 8])
def test_every_type_of_query(bits, kind, dtype, rng):
    call = QuantizedCall(rng, bits, (kind, kind), dtype=dtype)
    result = call.run()
    call.check(result, call.expected(call.dequantized()), magnitude=4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_in_place_and_shared(kind, bits, rng):
    call = QuantizedCall(rng, bits, (kind, kind))
    fresh = call.run()
    past_key, past_value = (call.inputs[name].copy() for name in ("past_key", "past_value"))
    result = call.run(past_key=past_key, past_value=past_value, present_key=past_key, present_value=past_value)
    assert_same_bits(result.output, fresh.output)
    for b, end in enumerate(call.tokens):
        assert_same_bits(past_key[b, :, :end].copy(), fresh.present_key[b, :, :end].copy())
        assert_same_bits(past_key[b, :, end:].copy(), call.inputs["past_key"][b, :, end:].copy())
    shared = call.run(key=None, value=None, past_key=past_key, past_value=past_value)
    np.testing.assert_allclose(shared.output, fresh.output, rtol=1e-5, atol=1e-6)
    assert shared.present_key is past_key


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_of_scales(kind, rng):
    call = QuantizedCall(rng, 8, (kind, kind))
    want = call.run().output
    for shape in SHAPES[kind]:
        scales = {name: call.inputs[name].reshape(shape) for name in ("k_scale", "v_scale")}
        assert_same_bits(call.run(**scales).output, want)


def test_bytes_of_four_bits(rng):
    """The even channel is in the low half, each value plus 8; ties go to even, and what is too large saturates."""
    call = QuantizedCall(rng, 4, ("PER_TENSOR", "PER_TENSOR"), queries=1, tokens=(1, 1), total=1)
    new = np.array([-8, 7, 3, -2, 0.5, 1.5, 100, -np.inf], np.float32)
    key = np.broadcast_to(new, (2, 1, 2, 8)).reshape(2, 1, 16)
    result = call.run(key=key, k_scale=np.ones(1, np.float32))
    np.testing.assert_array_equal(result.present_key[0, 0, 0], [0xF0, 0x6B, 0xA8, 0x0F])


@pytest.mark.parametrize("qk_output", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [4, 8])
def test_output_qk(bits, kind, qk_output, rng):
    call = QuantizedCall(rng, bits, (kind, kind), tokens=(16, 16))
    result = call.run(qk_output=qk_output)
    q, (keys, _) = call.q.swapaxes(1, 2).astype(np.float64), call.dequantized()
    x = q @ keys.repeat(2, axis=1).swapaxes(2, 3) / np.sqrt(8)
    allowed = np.tri(3, 16, 13, bool)
    if qk_output == 2:
        x = np.exp(np.where(allowed, x, -np.inf))
        x /= x.sum(-1, keepdims=True)
    assert_close(result.output_qk, np.where(allowed, x, 0), magnitude=8)


def test_an_int8_cache_is_attended_as_a_quantised_array(rng):
    call = QuantizedCall(rng, 8, ("PER_TENSOR", "PER_TENSOR"), tokens=(16, 16))
    result = call.run()
    k, v = (gqa.Quantized(x, np.full(x.shape[:3], s)) for x, s in zip(result[1:3], call.scales))
    want = gqa.attention(call.q.swapaxes(1, 2), k, v, causal=True)
    assert_same_bits(result.output, want.swapaxes(1, 2).reshape(2, 3, 32))


def test_nan_is_refused_and_nothing_written(rng):
    call = QuantizedCall(rng, 8, ("PER_TENSOR", "PER_TENSOR"))
    past = {name: call.inputs[name].copy() for name in ("past_key", "past_value")}
    value = call.tensors["value"].copy()
    value[1, 2, 3] = np.nan
    presents = {"present_key": past["past_key"], "present_value": past["past_value"]}
    with pytest.raises(ValueError, match="value holds NaN"):
        call.run(**past, value=value, **presents)
    for name, x in past.items():
        assert_same_bits(x, call.inputs[name])
