"""int8 values, which some processors multiply as integers: as precise as in floats, whatever the weights are."""

import numpy as np
import pytest

import gqa
import oracle


def quantised(rng, *shape):
    return gqa.quantize(rng.standard_normal(shape, np.float32))


@pytest.mark.parametrize("keys", [63, 64, 65, 513, 769, 1600])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 7])
def test_groups_and_keys(isa, rng, group, keys):
    q = rng.standard_normal((2, 2 * group, 1, 64), np.float32)
    k, v = quantised(rng, 2, 2, keys, 64), quantised(rng, 2, 2, keys, 64)
    expected, _ = oracle.attention(q, k, v)
    assert np.abs(gqa.attention(q, k, v) - expected).max() < 2e-5


@pytest.mark.parametrize("v_head_dim", [1, 5, 16, 17, 48, 63, 64, 65, 100, 128, 130, 256, 600])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_channels(isa, rng, group, v_head_dim):
    q = rng.standard_normal((1, group, 1, 32), np.float32)
    k, v = rng.standard_normal((1, 1, 700, 32), np.float32), quantised(rng, 1, 1, 700, v_head_dim)
    expected, _ = oracle.attention(q, k, v)
    np.testing.assert_allclose(gqa.attention(q, k, v), expected, atol=2e-6)


def test_small_weights_beside_a_large_one_are_not_lost(isa):
    """One key has nearly all the weight; what it leaves to 2000 others is a millionth each, and their values agree."""
    keys = 2001
    q = np.ones((1, 1, 1, 16), np.float32)
    k = np.zeros((1, 1, keys, 16), np.float32)
    k[0, 0, 5] = np.log(1e6) / 16
    v = gqa.Quantized(np.full((1, 1, keys, 64), 127, np.int8), np.full((1, 1, keys), 1 / 127, np.float32))
    v.data[0, 0, 5] = 0
    expected = 2000 / (1e6 + 2000)
    np.testing.assert_allclose(gqa.attention(q, k, v, scale=1.0), np.full((*q.shape[:3], 64), expected), rtol=2e-4)


def test_blocks_whose_weights_are_all_small(isa, rng):
    """The first 768 keys have weights of e-60 to e-100 of the last one's, below what float32 holds."""
    q = np.ones((1, 4, 1, 16), np.float32)
    k = np.zeros((1, 1, 1536, 16), np.float32)
    k[0, 0, :768] = -np.linspace(60, 100, 768)[:, None] / 16
    v = quantised(rng, 1, 1, 1536, 64)
    expected, _ = oracle.attention(q, k, v, scale=1.0)
    np.testing.assert_allclose(gqa.attention(q, k, v, scale=1.0), expected, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_scales_that_are_not_positive_numbers(isa, rng, bad):
    """Attended, they are what arithmetic makes of them; hidden, they do not show."""
    q = rng.standard_normal((1, 4, 1, 32), np.float32)
    k, v = quantised(rng, 1, 1, 600, 32), quantised(rng, 1, 1, 600, 64)
    v.scale[0, 0, 300] = bad
    result = gqa.attention(q, k, v)
    if bad < 0:
        expected, _ = oracle.attention(q, k, v)
        np.testing.assert_allclose(result, expected, atol=2e-4)  # values are up to 127 there
    else:
        assert not np.isfinite(result).any()
    hidden = np.arange(600) != 300
    expected, _ = oracle.attention(q, k.dequantize()[:, :, hidden], v.dequantize()[:, :, hidden])
    np.testing.assert_allclose(gqa.attention(q, k, v, mask=hidden), expected, atol=2e-5)


def test_bits_do_not_depend_on_threads_batch_or_pages(isa, rng):
    q = rng.standard_normal((2, 8, 1, 64), np.float32)
    k, v = quantised(rng, 2, 2, 3000, 64), quantised(rng, 2, 2, 3000, 64)
    one = gqa.attention(q, k, v, num_threads=1)
    np.testing.assert_array_equal(one, gqa.attention(q, k, v, num_threads=2))
    np.testing.assert_array_equal(one[1:], gqa.attention(q[1:], k[1:], v[1:], num_threads=1))
    cache = gqa.PagedKVCache(200, 16, 2, 64, dtype="int8")
    sequence = cache.add()
    rows = [rng.standard_normal((3000, 2, 64), np.float32) for _ in range(2)]
    cache.append([sequence], *rows, [3000])
    whole = [gqa.quantize(x.transpose(1, 0, 2)[None].copy()) for x in rows]
    np.testing.assert_array_equal(cache.attend([sequence], q[:1, :, 0], [1]), gqa.attention(q[:1], *whole)[:, :, 0])
