"""KVCache with a window: a ring of fixed size whose attention is that of a full cache with the window."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gqa
import oracle
from compare import assert_close, assert_same_bits


def pair(window, capacity, batch=1, **options):
    """A ring and a cache that keeps everything."""
    sizes = {"kv_heads": 2, "head_dim": 8, **options}
    return (
        gqa.KVCache(batch, capacity=capacity, window=window, **sizes),
        gqa.KVCache(batch, capacity=4000, **sizes),
    )


def tokens(rng, *shape, heads=2, layout="bhsd"):
    batch, count = shape
    return rng.standard_normal((batch, heads, count, 8) if layout == "bhsd" else (batch, count, heads, 8), np.float32)


def assert_step_equal(rng, ring, full, count, window, layout="bhsd", queries=None, **options):
    """Both attend `count` new tokens with the same bits."""
    batch = len(ring.lengths)
    q = tokens(rng, batch, count if queries is None else queries, heads=4, layout=layout)
    k, v = tokens(rng, batch, count, layout=layout), tokens(rng, batch, count, layout=layout)
    results = (
        ring.attend(q, k, v, return_lse=True, **options),
        full.attend(q, k, v, return_lse=True, window=(window - 1, None), **options),
    )
    for one, other in zip(*results):
        assert_same_bits(one, other)
    assert ring.lengths.tolist() == full.lengths.tolist()


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int8"])
def test_steps_and_chunks_have_the_bits_of_a_full_cache(rng, isa, dtype, layout):
    for window, capacity in ((1, 1), (5, 5), (5, 8), (16, 17)):
        ring, full = pair(window, capacity, dtype=dtype, layout=layout)
        for count in (1, 1, 7, 1, 40, 3, 1, 1):
            assert_step_equal(rng, ring, full, count, window, layout)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 8), st.lists(st.integers(0, 30), max_size=8), st.integers(0, 99))
def test_any_chunking(window, room, chunks, seed):
    ring, full = pair(window, window + room)
    rng = np.random.default_rng(seed)
    for count in chunks:
        assert_step_equal(rng, ring, full, count, window)


def test_long_windows_over_many_blocks_of_keys(rng, isa):
    ring, full = pair(1000, 1100)
    for count in (700, 900, 1, 800, 1, 1):
        assert_step_equal(rng, ring, full, count, 1000)


def test_the_result_is_attention_with_the_window(rng, isa):
    ring, _ = pair(6, 9, batch=2)
    keys, values = tokens(rng, 2, 50), tokens(rng, 2, 50)
    begin = 0
    for count in (4, 1, 13, 1, 31):
        q, new = tokens(rng, 2, count, heads=4), slice(begin, begin + count)
        out = ring.attend(q, keys[:, :, new], values[:, :, new])
        begin += count
        expected, _ = oracle.attention(q, keys[:, :, :begin], values[:, :, :begin], causal=True, window=(5, None))
        assert_close(out, expected)


def test_ragged_lengths_and_a_mask_over_all_tokens(rng):
    ring, full = pair(4, 6, batch=3)
    for lengths in ([9, 0, 3], [1, 1, 0], [0, 20, 9], [2, 1, 3]):
        total = int((full.lengths + lengths).max())
        mask = rng.random((3, 4, max(lengths), total)) < 0.7
        assert_step_equal(rng, ring, full, max(lengths), 4, lengths=lengths, mask=mask)


def test_a_narrower_window_and_one_to_the_right(rng):
    ring, full = pair(8, 12)
    for count in (20, 5, 1):
        q, k, v = tokens(rng, 1, count, heads=4), tokens(rng, 1, count), tokens(rng, 1, count)
        for one, other in (((2, None), (2, None)), ((None, 1), (7, 1)), ((99, 1), (7, 1)), ((3, 0), (3, 0))):
            assert_same_bits(
                ring.copy().attend(q, k, v, window=one, causal=False),
                full.copy().attend(q, k, v, window=other, causal=False),
            )
        ring.append(k, v)
        full.append(k, v)


def test_token_p_is_in_slot_p_modulo_capacity(rng):
    ring, full = pair(3, 5)
    k, v = tokens(rng, 1, 13), tokens(rng, 1, 13)
    for begin, end in ((0, 2), (2, 9), (9, 13)):
        ring.append(k[:, :, begin:end], v[:, :, begin:end])
    for p in range(8, 13):
        assert_same_bits(ring.keys[:, :, p % 5], k[:, :, p].copy())
        assert_same_bits(ring.values[:, :, p % 5], v[:, :, p].copy())
    assert ring.lengths.tolist() == [13]
    assert ring.keys.shape == (1, 2, 5, 8)
    assert ring.nbytes < full.nbytes / 100


def test_rows_without_new_tokens_see_what_is_left(rng):
    ring, full = pair(4, 6)
    k, v = tokens(rng, 1, 20), tokens(rng, 1, 20)
    ring.append(k, v)
    full.append(k, v)
    q = tokens(rng, 1, 4, heads=4)
    for queries in (1, 2, 3):  # row 0 stands at 20 - queries and sees 3 tokens before it; 14 to 19 are left
        rows = q[:, :, :queries]
        assert_same_bits(ring.attend(rows), full.attend(rows, window=(3, None)))
    with pytest.raises(ValueError, match=r"row 0 of sequence 0 sees tokens from 13 on, but the ring has dropped .* 14"):
        ring.attend(q)
    assert_same_bits(ring.attend(q, window=(2, None)), full.attend(q, window=(2, None)))


@pytest.mark.parametrize(("window", "capacity", "least"), [(4, 7, 6), (3, 4, 8), (1, 2, 0), (1, 5, 0), (5, 5, 9)])
def test_truncate_keeps_what_the_next_token_attends_or_refuses(rng, window, capacity, least):
    ring, full = pair(window, capacity)
    assert_step_equal(rng, ring, full, 10, window)
    for kept in range(1, least):
        with pytest.raises(ValueError, match=rf"lengths\[0\] is {kept}, but the next token attends those from"):
            ring.truncate(kept)
    for kept in range(least, 11):
        shorter, whole = ring.copy().truncate(kept), full.copy().truncate(kept)
        for count in (1, 9, 1):
            assert_step_equal(rng, shorter, whole, count, window)
    assert_step_equal(rng, ring.reset(), full.reset(), 2, window)


def test_select_grow_and_copy(rng):
    ring, full = pair(4, 5, batch=2)
    assert_step_equal(rng, ring, full, 9, 4, lengths=[9, 6])
    for change, arguments in (("select", [[1, 0, 1]]), ("grow", [11]), ("grow", [4]), ("copy", [])):
        ring = getattr(ring, change)(*arguments)
        full = full if change == "grow" else getattr(full, change)(*arguments)
        for count in (1, 3, 15):
            assert_step_equal(rng, ring, full, count, 4)
    with pytest.raises(ValueError, match="capacity is 3, expected at least 4"):
        ring.grow(3)


def test_a_smaller_ring_has_dropped_more(rng):
    ring, full = pair(4, 9)
    assert_step_equal(rng, ring, full, 9, 4)
    ring.copy().truncate(5)
    ring.grow(4)
    with pytest.raises(ValueError, match="from 4 on, of which the ring has dropped those before 5"):
        ring.truncate(7)
    assert_step_equal(rng, ring, full, 1, 4)
