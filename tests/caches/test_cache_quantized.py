"""int8 caches: what gqa.quantize makes of each token, attended as it is."""

import numpy as np
import pytest

import gqa
import oracle
from compare import assert_close, assert_same_bits
from sequence_model import MAGNITUDES

MAGNITUDE = MAGNITUDES["int8"]


def problem(rng, count=300):
    k, v = rng.standard_normal((1, 2, count, 64), np.float32), rng.standard_normal((1, 2, count, 32), np.float32)
    k *= rng.uniform(0.01, 5, (1, 2, count, 1)).astype(np.float32)
    return k, v


def make(**options):
    return gqa.KVCache(1, 2, 320, 64, v_head_dim=32, dtype="int8", **options)


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_stored_bits_are_those_of_quantize(rng, dtype, layout):
    k, v = (x.astype(dtype) if layout == "bhsd" else x.astype(dtype).swapaxes(1, 2) for x in problem(rng))
    tokens = (slice(None),) * (2 if layout == "bhsd" else 1)
    cache = make(layout=layout)
    for begin, end in ((0, 7), (7, 8), (8, 300)):
        cache.append(k[(*tokens, slice(begin, end))], v[(*tokens, slice(begin, end))])
    for stored, given in ((cache.keys, k), (cache.values, v)):
        expected = gqa.quantize(given)
        np.testing.assert_array_equal(stored.data, expected.data)
        np.testing.assert_array_equal(stored.scale, expected.scale)


def test_quantised_tokens_are_stored_as_they_are(rng):
    k, v = (gqa.quantize(x) for x in problem(rng))
    cache, floats = make(), gqa.KVCache(1, 2, 320, 64, v_head_dim=32)
    for each in (cache, floats):
        each.append(k[:, :, :100], v[:, :, :100])
        each.append(k[:, :, 100:], v[:, :, 100:])
    np.testing.assert_array_equal(cache.keys.data, k.data)
    np.testing.assert_array_equal(cache.values.scale, v.scale)
    np.testing.assert_array_equal(floats.keys, k.dequantize())


@pytest.mark.parametrize("queries", [1, 4, 30])
def test_attention_is_that_over_the_dequantised_cache(rng, isa, dtype, queries):
    k, v = problem(rng)
    q = rng.standard_normal((1, 8, queries, 64)).astype(dtype)
    cache = make()
    cache.append(k[:, :, : 300 - queries], v[:, :, : 300 - queries])
    out = cache.attend(q, k[:, :, 300 - queries :], v[:, :, 300 - queries :])
    expected = gqa.attention(q.astype(np.float64), oracle.wide(cache.keys), oracle.wide(cache.values), causal=True)
    assert out.dtype == dtype
    assert_close(out, expected, magnitude=MAGNITUDE if dtype != np.float64 else 1)


def test_error_against_the_tokens_themselves(rng):
    q, k, v = (rng.standard_normal((1, heads, 1000, 128), np.float32) for heads in (8, 2, 2))
    cache = gqa.KVCache(1, 2, 1000, 128, dtype="int8")
    out, exact = cache.attend(q, k, v), gqa.attention(q, k, v, causal=True)
    assert np.linalg.norm(out - exact) <= 1.5e-2 * np.linalg.norm(exact)


def test_no_part_is_widened_or_kept_twice():
    cache = gqa.KVCache(1, 2, 1000, 128, dtype="int8")
    assert cache.nbytes == 2 * 2 * 1000 * (128 + 4)
    assert cache.keys.data.dtype == np.int8
    assert not np.shares_memory(cache.keys.data, cache.copy().keys.data)


def test_tokens_that_are_not_finite_are_refused(rng):
    cache = make()
    k, v = problem(rng, 3)
    for bad in (np.nan, np.inf, -np.inf):
        for broken in (0, 1):
            given = [k.copy(), v.copy()]
            given[broken][0, 1, 2, 3] = bad
            with pytest.raises(ValueError, match=f"{'kv'[broken]} holds NaN, infinity or values too large"):
                cache.append(*given)
            cache.append(*given, lengths=[2])  # the last token is not taken
            cache.reset()


def test_ring_pages_and_plain_cache_hold_the_same_numbers(rng):
    k, v = problem(rng, 40)
    plain, ring = make(), gqa.KVCache(1, 2, 50, 64, v_head_dim=32, dtype="int8", window=50)
    pages = gqa.PagedKVCache(8, 7, 2, 64, v_head_dim=32, dtype="int8")
    plain.append(k, v)
    ring.append(k, v)
    id_ = pages.add()
    pages.append([id_], k[0].swapaxes(0, 1), v[0].swapaxes(0, 1), [40])
    q = rng.standard_normal((1, 4, 1, 64), np.float32)
    expected = plain.attend(q)
    assert_same_bits(ring.attend(q), expected)
    assert_same_bits(pages.attend([id_], q[:, :, 0], [1])[None, 0, :, None], expected)
    rows = [divmod(p, 7) for p in range(40)]
    table = pages.block_tables[id_]
    for p, (page, slot) in enumerate(rows):
        np.testing.assert_array_equal(pages.keys.data[table[page], :, slot], plain.keys.data[0, :, p])
        np.testing.assert_array_equal(pages.values.scale[table[page], :, slot], plain.values.scale[0, :, p])
