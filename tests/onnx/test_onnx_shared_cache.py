"""GroupQueryAttention without key and value: a layer that attends the cache of another one, and leaves it as it is."""

from __future__ import annotations

import numpy as np
import pytest

import gqa
import gqa.onnx
from compare import assert_close, assert_same_bits
from group_query import OPTIONS, STEPS, Call

FORMS = {"omitted": None, "of no tokens": np.zeros((2, 0, 16), np.float32)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("step", ["decode", "chunk", "prompt"])
@pytest.mark.parametrize("option", OPTIONS)
def test_attends_the_past_alone(form, step, option, rng, isa):
    """The queries stand on the last positions; the past holds their own tokens."""
    call = Call(rng, **STEPS[step])
    before = {name: x.copy() for name, x in call.past.items()}
    attributes, options = OPTIONS[option]
    result = call.run(key=FORMS[form], value=FORMS[form], **attributes)
    call.check(result, call.expected(list(call.past.values()), **options))
    assert result.present_key is call.past["past_key"]
    assert result.present_value is call.past["past_value"]
    for name, x in call.past.items():
        assert_same_bits(x, before[name])


def test_bias_and_sinks(rng):
    call = Call(rng)
    sinks, bias = rng.standard_normal(4).astype(np.float32), rng.standard_normal((2, 4, 3, 16)).astype(np.float32)
    result = call.run(key=None, value=None, head_sink=sinks, attention_bias=bias)
    call.check(result, call.expected(list(call.past.values()), bias=bias, sinks=sinks))


def test_what_lies_past_the_end_is_not_read(rng):
    call = Call(rng)
    want = call.run(key=None, value=None).output
    call.past["past_key"][0, :, 9:], call.past["past_value"][0, :, 9:] = np.nan, np.inf
    assert_same_bits(call.run(key=None, value=None).output, want)


def test_the_past_may_be_given_as_the_buffers(rng):
    call = Call(rng)
    want = call.run(key=None, value=None).output
    for x in call.past.values():
        x.flags.writeable = False
    presents = {name.replace("past", "present"): x for name, x in call.past.items()}
    result = call.run(key=None, value=None, **presents)
    assert_same_bits(result.output, want)
    assert result.present_key is call.past["past_key"]


def zero_valued(query, past, total, heads):
    """The substitute for a shared cache: one more token, of zeros."""
    zeros = np.zeros((1, 1, 128), query.dtype)
    return gqa.onnx.group_query_attention(
        query, zeros, zeros, *past, seqlens_k=[total], total_sequence_length=total + 1, **heads
    ).output


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("keys", "percent"), [(16, 3.03), (64, 1.05), (256, 0.24)])
def test_is_not_diluted(keys, percent, dtype, rng):
    """Nothing but the cached keys takes part; a token of zeros would take some of the softmax, here that much."""
    heads = {"num_heads": 8, "kv_num_heads": 4, "scale": 32**-0.5}
    q, *past = (rng.standard_normal((1, n, m, 32)).astype(dtype) for n, m in ((8, 1), (4, keys), (4, keys)))
    query = q.reshape(1, 1, 256)
    shared = gqa.onnx.group_query_attention(
        query, None, None, *past, seqlens_k=[keys - 1], total_sequence_length=keys, **heads
    )
    assert_same_bits(shared.output, gqa.attention(q, *past).reshape(1, 1, 256))
    assert_same_bits(shared.present_key, past[0])
    assert_same_bits(shared.present_value, past[1])
    want = shared.output.astype(np.float64)
    lost = np.linalg.norm(zero_valued(query, past, keys, heads) - want) / np.linalg.norm(want)
    assert 0.2 * percent < 100 * lost < 2.5 * percent


def test_every_type(dtype, rng):
    call = Call(rng, dtype=dtype)
    result = call.run(key=None, value=None)
    call.check(result, call.expected(list(call.past.values())))


@pytest.mark.parametrize("channels", [16, 33, 48])
def test_the_width_of_the_query_tells_it_from_packed_tensors(channels, rng):
    with pytest.raises(ValueError, match=f"query has {channels} channels, expected 32 .* or 64 for packed"):
        Call(rng).run(query=np.zeros((2, 3, channels), np.float32), key=None, value=None)


def test_only_queries_are_rotated(rng):
    call = Call(rng)
    cos, sin = gqa.rotary_tables(16, 8)
    positions = call.before[:, None] + np.arange(3)
    result = call.run(key=None, value=None, do_rotary=1, cos_cache=cos, sin_cache=sin)
    call.q = gqa.rotary(call.q, cos, sin, positions=positions, layout="bshd")
    assert_close(result.output, call.expected(list(call.past.values())).reshape(2, 3, 32), 4)
    ids = np.array([[3, 1, 2], [0, 0, 15]])
    moved = call.run(key=None, value=None, do_rotary=1, cos_cache=cos, sin_cache=sin, position_ids=ids)
    call = Call(np.random.default_rng(20240607))
    call.q = gqa.rotary(call.q, cos, sin, positions=ids, layout="bshd")
    assert_close(moved.output, call.expected(list(call.past.values())).reshape(2, 3, 32), 4)
