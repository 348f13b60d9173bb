"""GroupQueryAttention's rotary embedding and RMS normalisation of queries and keys."""

from __future__ import annotations

import numpy as np
import pytest

import gqa
from compare import assert_close, assert_same_bits
from group_query import STEPS, Call


def tables(half, rows=24, dtype=np.float32):
    angles = np.outer(np.arange(rows), 0.7 ** np.arange(half))
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def turned(x, cos, sin, positions, interleaved):
    """x (B, S, heads, D) rotated in float64, position by position, and rounded to its own type."""
    half = cos.shape[1]
    y = x.astype(np.float64)
    first, second = (y[..., i : 2 * half : 2] if interleaved else y[..., i * half : i * half + half] for i in range(2))
    c, s = (t.astype(np.float64)[positions][:, :, None] for t in (cos, sin))
    first[...], second[...] = first * c - second * s, first * s + second * c
    return y.astype(x.dtype)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("half", [1, 3, 4])
@pytest.mark.parametrize("step", STEPS)
def test_rotation_by_position(step, half, interleaved, rng):
    """Queries and keys turn by their place in the sequence, and keys are stored turned."""
    call = Call(rng, **STEPS[step])
    cos, sin = tables(half)
    result = call.run(cos_cache=cos, sin_cache=sin, do_rotary=1, rotary_interleaved=interleaved)
    positions = call.before[:, None] + np.arange(call.q.shape[1])
    call.q, call.k = (turned(x, cos, sin, positions, interleaved) for x in (call.q, call.k))
    call.check(result, call.expected(), magnitude=4)
    assert_close(result.present_key, call.cache()[0].astype(np.float64), magnitude=2)
    assert_same_bits(result.present_value, call.cache()[1])


@pytest.mark.parametrize("step", ["decode", "chunk", "prompt"])
def test_rotation_by_position_ids(step, rng):
    """As given; in a first prompt the very first is where all sequences start."""
    call = Call(rng, **STEPS[step])
    cos, sin = tables(4)
    batch, queries = call.q.shape[:2]
    ids = rng.integers(0, 10, (batch, queries))
    result = call.run(cos_cache=cos, sin_cache=sin, do_rotary=1, position_ids=ids)
    positions = np.broadcast_to(ids[0, 0] + np.arange(queries), ids.shape) if step == "prompt" else ids
    call.q, call.k = (turned(x, cos, sin, positions, False) for x in (call.q, call.k))
    call.check(result, call.expected(), magnitude=4)


def test_position_ids_and_tables_mean_nothing_without_rotation(rng):
    call = Call(rng)
    cos, sin = tables(4)
    result = call.run(cos_cache=cos, sin_cache=sin, position_ids=np.full((2, 3), 99))
    assert_same_bits(result.output, call.run().output)


@pytest.mark.parametrize("step", ["decode", "chunk", "prompt"])
@pytest.mark.parametrize("do_rotary", [0, 1])
def test_normalisation_goes_before_the_rotation(step, do_rotary, rng):
    call = Call(rng, **STEPS[step])
    cos, sin = tables(4)
    weights = rng.standard_normal((2, 8)).astype(np.float32)
    result = call.run(
        q_norm_weight=weights[0], k_norm_weight=weights[1], qk_norm_epsilon=0.1, do_rotary=do_rotary, cos_cache=cos,
        sin_cache=sin,
    )  # fmt: skip
    norm = lambda x, w: x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True) + 0.1) * w  # noqa: E731
    call.q, call.k = norm(call.q, weights[0]), norm(call.k, weights[1]).astype(np.float32)
    positions = call.before[:, None] + np.arange(call.q.shape[1])
    if do_rotary:
        call.q, call.k = (turned(x, cos, sin, positions, False) for x in (call.q, call.k))
    assert_close(result.output, call.expected().reshape(result.output.shape), magnitude=8)
    assert_close(result.present_key, call.cache()[0].astype(np.float64), magnitude=4)


def test_normalisation_leaves_heads_of_zeros_0_without_an_epsilon(rng):
    call, weight = Call(rng), np.ones(8, np.float32)
    call.q[0, 0, 0] = call.k[0, 1, 0] = 0
    result = call.run(q_norm_weight=weight, k_norm_weight=weight, qk_norm_epsilon=0.0)
    norm = lambda x: x / np.maximum(np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True)), 1e-30)  # noqa: E731
    call.q, call.k = norm(call.q), norm(call.k).astype(np.float32)
    assert_close(result.output, call.expected().reshape(result.output.shape), magnitude=8)


def test_half_precision_is_rotated_in_its_own_type(rng):
    """What the cache holds is rounded once, and it is that which is attended."""
    call = Call(rng, dtype=np.float16)
    cos, sin = tables(4, dtype=np.float16)
    result = call.run(cos_cache=cos, sin_cache=sin, do_rotary=1)
    positions = call.before[:, None] + np.arange(3)
    call.q, call.k = (gqa.rotary(x, cos, sin, positions=positions, layout="bshd") for x in (call.q, call.k))
    call.check(result, call.expected())
