"""GroupQueryAttention's sliding_window_cache: a past of the last tokens only, with the results of a full one."""

from __future__ import annotations

import numpy as np
import pytest

import gqa.onnx
from compare import assert_same_bits

HEADS = {"num_heads": 4, "kv_num_heads": 2}


def resident(tokens, capacity, window):
    """How many tokens the cache holds: a full cache drops capacity - window + 1 tokens, then fills up again."""
    held = 0
    for _ in range(tokens):
        held = held + 1 if held < capacity else window
    return held


def tokens_of(rng, batch, total):
    """query, key and value of all tokens, (B, total, channels)."""
    return [rng.standard_normal((batch, total, heads * 8)).astype(np.float32) for heads in (4, 2, 2)]


def full(tensors, lengths, before, window, **options):
    """The last tokens' output over a cache of everything."""
    query, key, value = tensors
    batch, total = query.shape[:2]
    past = [np.zeros((batch, 2, total, 8), np.float32) for _ in range(2)]
    for cache, x in zip(past, (key, value)):
        cache[:] = x.reshape(batch, total, 2, 8).swapaxes(1, 2)
    queries = total - before
    rows = [np.stack([x[b, end - queries : end] for b, end in enumerate(lengths)]) for x in tensors]
    return rows, gqa.onnx.group_query_attention(
        *rows, *past, np.array(lengths) - 1, total, local_window_size=window, **HEADS, **options
    )


def by_heads(x):
    """(tokens, Hkv * D) as (Hkv, tokens, D)."""
    return x.reshape(len(x), 2, 8).swapaxes(0, 1)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("capacity", [3, 4, 5, 8])
@pytest.mark.parametrize("steps", [(1,) * 14, (5, 1, 1, 3, 1, 1, 2), (14,), (1, 13), (4, 4, 4, 2)])
def test_steps_of_any_length(steps, capacity, in_place, rng):
    """A window of 3. Rows from 0 on hold the last tokens in order, and the output is that of a full cache."""
    batch, total, window = 2, sum(steps), 3
    tensors = tokens_of(rng, batch, total)
    past = [np.zeros((batch, 2, capacity, 8), np.float32) for _ in range(2)]
    done = 0
    for step in steps:
        done += step
        rows, want = full([x[:, :done] for x in tensors], (done, done), done - step, window)
        presents = {"present_key": past[0], "present_value": past[1]} if in_place else {}
        result = gqa.onnx.group_query_attention(
            *rows, *past, [done - 1] * 2, done, local_window_size=window, sliding_window_cache=1, **HEADS, **presents
        )
        assert_same_bits(result.output, want.output)
        past = list(result[1:3])
        held = resident(done, capacity, window)
        for present, new in zip(past, tensors[1:]):
            assert present.shape == (batch, 2, capacity, 8)
            for b in range(batch):
                assert_same_bits(present[b, :, :held].copy(), by_heads(new[b, done - held : done]).copy())


@pytest.mark.parametrize("qk_output", [0, 1, 2])
@pytest.mark.parametrize("lengths", [(9, 9), (9, 6), (5, 9), (3, 9)])
def test_ragged_lengths_bias_and_sinks(lengths, qk_output, rng):
    """Columns of bias and output_qk are positions, whatever the cache still holds."""
    batch, queries, window, capacity = 2, 3, 3, 4
    tensors = tokens_of(rng, batch, 9)
    options = {
        "attention_bias": rng.standard_normal((batch, 4, queries, 9)).astype(np.float32),
        "head_sink": rng.standard_normal(4).astype(np.float32),
        "softcap": 1.5, "qk_output": qk_output,
    }  # fmt: skip
    rows, want = full(tensors, lengths, 9 - queries, window, **options)
    past = [np.full((batch, 2, capacity, 8), np.nan, np.float32) for _ in range(2)]
    for cache, x in zip(past, tensors[1:]):
        for b, end in enumerate(lengths):
            held = resident(end - queries, capacity, window)
            cache[b, :, :held] = by_heads(x[b, end - queries - held : end - queries])
    result = gqa.onnx.group_query_attention(
        *rows, *past, np.array(lengths) - 1, 9, local_window_size=window, sliding_window_cache=1, **HEADS, **options
    )
    assert_same_bits(result.output, want.output)
    if qk_output:
        np.testing.assert_allclose(result.output_qk, want.output_qk, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("queries", [1, 40])
def test_a_long_past_has_the_bits_of_a_full_cache(rng, isa, queries):
    """Keys are numbered by position, wherever the cache holds them."""
    window, capacity, lengths = 1000, 1100, (5000, 4321)
    tensors = tokens_of(rng, 2, max(lengths))
    rows, want = full(tensors, lengths, max(lengths) - queries, window)
    past = [np.zeros((2, 2, capacity, 8), np.float32) for _ in range(2)]
    for cache, x in zip(past, tensors[1:]):
        for b, end in enumerate(lengths):
            held = resident(end - queries, capacity, window)
            cache[b, :, :held] = by_heads(x[b, end - queries - held : end - queries])
    result = gqa.onnx.group_query_attention(
        *rows, *past, np.array(lengths) - 1, max(lengths), local_window_size=window, sliding_window_cache=1, **HEADS
    )
    assert_same_bits(result.output, want.output)


def test_a_padded_prompt_keeps_tokens_only(rng):
    """Padding is attended from, but not stored."""
    tensors = tokens_of(rng, 2, 7)
    past = np.zeros((2, 2, 4, 8), np.float32)
    options = {"local_window_size": 3, **HEADS}
    result = gqa.onnx.group_query_attention(*tensors, past, past.copy(), [6, 2], 7, sliding_window_cache=1, **options)
    want = gqa.onnx.group_query_attention(*tensors, None, None, [6, 2], 7, **options)
    assert_same_bits(result.output, want.output)
    assert_same_bits(result.present_key[0, :, :3].copy(), by_heads(tensors[1][0, 4:]).copy())
    assert_same_bits(result.present_key[1, :, :3].copy(), by_heads(tensors[1][1, :3]).copy())
    assert not result.present_key[:, :, 3:].any()


@pytest.mark.parametrize("kind", ["PER_TENSOR", "PER_CHANNEL"])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised(bits, kind, rng):
    total, capacity, window = 11, 5, 3
    tensors = tokens_of(rng, 1, total)
    scale = (rng.uniform(0.5, 2, 1 if kind == "PER_TENSOR" else 16) * 4 / 2**bits).astype(np.float32)
    options = {
        "k_scale": scale, "v_scale": scale, "k_quant_type": kind, "v_quant_type": kind, "kv_cache_bit_width": bits,
        "local_window_size": window, **HEADS,
    }  # fmt: skip
    dtype, width = (np.int8, 8) if bits == 8 else (np.uint8, 4)
    sliding, cache = (np.zeros((2, 1, 2, n, width), dtype) for n in (capacity, total))
    for i in range(total):
        step = [x[:, i : i + 1] for x in tensors]
        want = gqa.onnx.group_query_attention(*step, *cache, [i], i + 1, **options)
        result = gqa.onnx.group_query_attention(*step, *sliding, [i], i + 1, sliding_window_cache=1, **options)
        assert_same_bits(result.output, want.output)
        cache, sliding = want[1:3], result[1:3]
        held = resident(i + 1, capacity, window)
        assert_same_bits(sliding[0][:, :, :held].copy(), cache[0][:, :, i + 1 - held : i + 1].copy())
