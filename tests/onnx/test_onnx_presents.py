"""GroupQueryAttention's present_key and present_value: what they hold, and what is written where."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import gqa.onnx
from compare import assert_same_bits
from group_query import STEPS, Call


@pytest.mark.parametrize("step", STEPS)
def test_new_arrays_hold_the_past_and_the_new_tokens(step, dtype, rng):
    """Rows without a token are 0; those of a padded prompt are tokens."""
    call = Call(rng, dtype=dtype, **STEPS[step])
    before = {name: x.copy() for name, x in call.past.items()}
    result = call.run()
    for present, want in zip(result[1:3], call.cache()):
        assert_same_bits(present, want)
    for name, x in call.past.items():
        assert_same_bits(x, before[name])


@pytest.mark.parametrize("spare", [0, 5])
@pytest.mark.parametrize("step", STEPS)
def test_given_buffers_are_filled(step, spare, rng):
    call = Call(rng, **STEPS[step])
    want = call.cache()
    buffers = [np.pad(np.full_like(x, np.nan), [(0, 0), (0, 0), (0, spare), (0, 0)], constant_values=9) for x in want]
    result = call.run(present_key=buffers[0], present_value=buffers[1])
    assert_same_bits(result.output, call.run().output)
    for present, buffer, cache in zip(result[1:3], buffers, want):
        assert present is buffer
        assert_same_bits(buffer, np.pad(cache, [(0, 0), (0, 0), (0, spare), (0, 0)]))


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("step", ["decode", "chunk", "prompt", "one token"])
def test_in_the_past_only_the_new_rows_are_written(step, view, rng):
    call = Call(rng, **STEPS[step])
    want, before = call.run().output, [x.copy() for x in call.past.values()]
    buffers = [x[...] if view else x for x in call.past.values()]
    result = call.run(present_key=buffers[0], present_value=buffers[1])
    assert_same_bits(result.output, want)
    assert result.present_key is buffers[0]
    for past, old, new in zip(call.past.values(), before, (call.k, call.v)):
        for b, start in enumerate(call.before):
            old[b, :, start : start + call.q.shape[1]] = new[b].swapaxes(0, 1)
        assert_same_bits(past, old)


def test_one_of_the_presents_in_the_past(rng):
    call = Call(rng)
    want = call.run()
    result = call.run(present_key=call.past["past_key"], present_value=np.ones_like(call.past["past_value"]))
    assert_same_bits(result.output, want.output)
    assert_same_bits(result.present_value, want.present_value)


def test_strided_buffers(rng):
    """Caches of two layers in one array, tokens before heads."""
    call = Call(rng)
    storage = np.zeros((2, 2, 16, 2, 8), np.float32)  # (keys or values, B, C, Hkv, D)
    views = [storage[i].swapaxes(1, 2) for i in range(2)]
    result = call.run(present_key=views[0], present_value=views[1])
    for view, want in zip(views, call.cache()):
        assert_same_bits(np.ascontiguousarray(view), want)
    assert_same_bits(result.output, call.run().output)


def test_memory_does_not_grow_from_step_to_step():
    """Into a cache of 16 MB: no step takes memory for more than its own tokens, and none is left behind."""
    rng = np.random.default_rng(0)
    past_key, past_value = np.zeros((2, 1, 8, 4096, 64), np.float32)
    query, key, value = (rng.standard_normal((1, 1, heads * 64), np.float32) for heads in (32, 8, 8))

    def step(tokens):
        gqa.onnx.group_query_attention(
            query, key, value, past_key, past_value, [tokens - 1], tokens, num_heads=32, kv_num_heads=8,
            present_key=past_key, present_value=past_value,
        )  # fmt: skip

    for tokens in (4000, 4001):
        step(tokens)
    tracemalloc.start()
    held = []
    for tokens in range(4002, 4082):
        step(tokens)
        held.append(tracemalloc.get_traced_memory()[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 1024
    assert held[-1] - held[len(held) // 2] < 4096
