"""Small examples with answers that can be seen, over every loop that computes them."""

import numpy as np
import pytest

import gqa


def test_zeros(isa):
    q, k = np.zeros((2, 9, 4, 8), np.float32), np.zeros((2, 3, 6, 8), np.float32)
    out = gqa.attention(q, k, k)
    assert out.shape == (2, 9, 4, 8)
    assert not out.any()


def test_equal_scores_give_the_mean_of_the_values_of_the_kv_head(isa, rng):
    """Query head h attends with KV head h // 3."""
    v = rng.standard_normal((2, 3, 6, 8)).astype(np.float32)
    out = gqa.attention(np.zeros((2, 9, 4, 8), np.float32), np.zeros_like(v), v)
    for h in range(9):
        for i in range(4):
            np.testing.assert_allclose(out[:, h, i], v[:, h // 3].mean(1), rtol=1e-6, atol=1e-7)


def test_heads_that_do_not_divide():
    q, k = np.zeros((2, 8, 4, 8), np.float32), np.zeros((2, 3, 6, 8), np.float32)
    with pytest.raises(ValueError, match="k has 3 heads, which does not divide the 8 heads of q"):
        gqa.attention(q, k, k)


def test_a_past_in_half_precision(isa, rng):
    """9 query heads, 3 KV heads, 12 past and 6 new keys, a mask over all 18."""
    q, k, v = (rng.random((2, heads, n, 8)).astype(np.float16) for heads, n in ((9, 4), (3, 6), (3, 6)))
    past_key, past_value = (rng.random((2, 3, 12, 8)).astype(np.float16) for _ in range(2))
    mask = rng.random((4, 18)).astype(np.float16)
    out = gqa.attention(q, k, v, past_key=past_key, past_value=past_value, mask=mask)
    keys, values = (np.concatenate(pair, 2).repeat(3, 1).astype(float) for pair in ((past_key, k), (past_value, v)))
    weights = np.exp(q.astype(float) @ keys.swapaxes(2, 3) / np.sqrt(8) + mask)
    expected = (weights / weights.sum(-1, keepdims=True)) @ values
    assert out.dtype == np.float16
    np.testing.assert_allclose(out, expected, rtol=2**-10)


@pytest.mark.parametrize("queries", [1, 2, 30])
def test_positions_are_counted_from_the_end_of_the_keys(isa, queries):
    """Values that number the keys, one-hot scores: row i sees as many as causal allows."""
    keys = 40
    k = np.zeros((1, 1, keys, 1), np.float32)
    v = np.eye(keys, dtype=np.float32)[None, None]
    out = gqa.attention(np.zeros((1, 1, queries, 1), np.float32), k, v, causal=True)
    seen = np.count_nonzero(out[0, 0], axis=1)
    np.testing.assert_array_equal(seen, keys - queries + 1 + np.arange(queries))
    out = gqa.attention(np.zeros((1, 1, queries, 1), np.float32), k, v, causal=True, query_offset=0)
    np.testing.assert_array_equal(np.count_nonzero(out[0, 0], axis=1), 1 + np.arange(queries))


@pytest.mark.parametrize("queries", [3, 30])
def test_a_window_counts_the_keys_beside_the_current_one(isa, queries):
    keys = 50
    q, k = np.zeros((1, 1, queries, 1), np.float32), np.zeros((1, 1, keys, 1), np.float32)
    v = np.eye(keys, dtype=np.float32)[None, None]
    for (left, right), seen in (((2, 0), 3), ((0, 0), 1), ((2, 1), 4), ((1, 3), 5)):
        out = gqa.attention(q, k, v, window=(left, right), query_offset=10)
        np.testing.assert_array_equal(np.count_nonzero(out[0, 0], axis=1), seen)
        np.testing.assert_array_equal(out[0, 0].argmax(1), 10 - left + np.arange(queries))


@pytest.mark.parametrize("queries", [4, 30])
def test_a_soft_cap_comes_before_the_mask(isa, rng, queries):
    """Under a causal mask row 0 sees key 0 alone, and its output is that key's value."""
    q, k, v = rng.standard_normal((3, 1, 2, queries, 8)).astype(np.float32)
    out = gqa.attention(100 * q, k, v, causal=True, softcap=2.0)
    np.testing.assert_array_equal(out[:, :, 0], v[:, :, 0])


def test_the_lse_of_zeros_is_the_logarithm_of_their_number(isa, dtype):
    q, k = np.zeros((1, 1, 2, 4), dtype), np.zeros((1, 1, 10, 4), dtype)
    _, lse = gqa.attention(q, k, k, return_lse=True)
    np.testing.assert_allclose(lse, np.log(10), rtol=1e-6)
    _, lse = gqa.attention(q, k, k, return_lse=True, sinks=np.zeros(1))
    np.testing.assert_allclose(lse, np.log(11), rtol=1e-6)


def test_a_cache_alone(isa, rng):
    q, past_key, past_value = rng.standard_normal((3, 1, 4, 5, 8)).astype(np.float32)
    out = gqa.attention(q, past_key=past_key, past_value=past_value)
    np.testing.assert_array_equal(out, gqa.attention(q, past_key, past_value))
