"""KVCache: appending and attending in place is attention over everything appended so far."""

import numpy as np
import pytest

import gqa
import oracle
from compare import assert_close, assert_lse_close, assert_same_bits
from sequence_model import Sequence, as_stored

LAYOUTS = ["bhsd", "bshd"]


def tokens(rng, count, *, batch=2, heads=2, head_dim=16, dtype=np.float32, layout="bhsd"):
    shape = (batch, heads, count, head_dim) if layout == "bhsd" else (batch, count, heads, head_dim)
    return rng.standard_normal(shape).astype(dtype)


def new_tokens(rng, count, **options):
    """k and v, with 16 and 24 channels."""
    return tokens(rng, count, **options), tokens(rng, count, **options | {"head_dim": 24})


def make(batch=2, capacity=64, **options):
    return gqa.KVCache(batch, 2, capacity, 16, v_head_dim=24, **options)


def by_token(x, layout):
    return x if layout == "bshd" else x.swapaxes(1, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stored", ["float32", "float64", "float16", "bfloat16"])
def test_prompt_and_steps_equal_attention_over_all_tokens(rng, isa, dtype, stored, layout):
    cache, all_k, all_v = make(dtype=stored, layout=layout), [], []
    for count in (7, 1, 3, 1):
        k, v = new_tokens(rng, count, layout=layout)
        q = tokens(rng, count, heads=6, layout=layout, dtype=dtype)
        out, lse = cache.attend(q, k, v, return_lse=True)
        all_k, all_v = [*all_k, as_stored(k, stored)], [*all_v, as_stored(v, stored)]
        axis = 2 if layout == "bhsd" else 1
        keys, values = np.concatenate(all_k, axis), np.concatenate(all_v, axis)
        expected, expected_lse = oracle.attention(q, keys, values, causal=True, layout=layout)
        assert out.dtype == dtype
        assert_close(out, expected)
        assert_lse_close(lse, expected_lse)
        np.testing.assert_array_equal(oracle.wide(cache.keys), keys)
        np.testing.assert_array_equal(oracle.wide(cache.values), values)
        assert_same_bits(cache.attend(q), gqa.attention(q, cache.keys, cache.values, causal=True, layout=layout))
    assert cache.lengths.tolist() == [12, 12]


def test_attending_new_tokens_is_appending_then_attending(rng, isa):
    one, two = make(), make()
    for count in (40, 1, 5, 1):
        k, v = new_tokens(rng, count)
        q = tokens(rng, count, heads=8)
        two.append(k, v)
        assert_same_bits(one.attend(q, k, v), two.attend(q))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_sequence_takes_its_first_tokens(rng, isa, layout):
    cache = make(batch=3, layout=layout)
    model = [Sequence.empty(2, 16, 24)] * 3
    for lengths in ([5, 0, 3], [1, 1, 0], [0, 9, 9], [2, 1, 3]):
        count = max(lengths)
        k, v = new_tokens(rng, count, batch=3, layout=layout)
        q = tokens(rng, count, batch=3, heads=4, layout=layout)
        rows_k, rows_v, rows_q = (by_token(x, layout) for x in (k, v, q))
        for b, n in enumerate(lengths):
            rows_k[b, n:] = rows_v[b, n:] = rows_q[b, n:] = np.nan  # what lies past them has no effect
        before = [len(sequence) for sequence in model]
        model = [s.append(rows_k[b, :n], rows_v[b, :n], "float32") for b, (s, n) in enumerate(zip(model, lengths))]
        out, lse = cache.attend(q, k, v, lengths=lengths, return_lse=True)
        rows_lse = lse if layout == "bshd" else lse.swapaxes(1, 2)
        for b, n in enumerate(lengths):
            expected, expected_lse = model[b].attend(rows_q[b, :n], query_offset=before[b])
            assert_close(by_token(out, layout)[b, :n], expected)
            assert_lse_close(rows_lse[b, :n], expected_lse)
            assert not by_token(out, layout)[b, n:].any()
            assert np.isneginf(rows_lse[b, n:]).all()
        assert cache.lengths.tolist() == [len(sequence) for sequence in model]
        for b, sequence in enumerate(model):
            np.testing.assert_array_equal(by_token(cache.keys, layout)[b, : len(sequence)], sequence.keys)
            np.testing.assert_array_equal(by_token(cache.values, layout)[b, : len(sequence)], sequence.values)


def test_options_are_those_of_attention(rng, isa):
    k, v = new_tokens(rng, 30)
    q, mask = tokens(rng, 4, heads=6), rng.random((2, 6, 4, 30)) < 0.7
    for options in (
        {"causal": False},
        {"window": (5, None)},
        {"window": (3, 2), "causal": False},
        {"mask": mask},
        {"mask": np.where(mask, 0.5, -np.inf).astype(np.float32)},
        {"scale": 0.3, "softcap": 1.5},
        {"sinks": rng.standard_normal(6).astype(np.float32)},
    ):
        old, new = make(), make()
        old.append(k, v)
        new.append(k[:, :, :26], v[:, :, :26])
        expected, expected_lse = oracle.attention(q, k, v, **{"causal": True} | options)
        for out, lse in (
            old.attend(q, return_lse=True, **options),
            new.attend(q, k[:, :, 26:], v[:, :, 26:], return_lse=True, **options),
        ):
            assert_close(out, expected)
            assert_lse_close(lse, expected_lse)


def test_a_mask_is_as_wide_as_the_longest_sequence(rng):
    """Ragged lengths 9 and 5, one token more each: T is 10, and columns are tokens."""
    cache, model = make(), [Sequence.empty(2, 16, 24)] * 2
    for lengths in ([9, 5], [1, 1]):
        k, v = new_tokens(rng, max(lengths))
        model = [
            s.append(k[b, :, :n].swapaxes(0, 1), v[b, :, :n].swapaxes(0, 1), "float32")
            for b, (s, n) in enumerate(zip(model, lengths))
        ]
        q, mask = tokens(rng, max(lengths), heads=4), rng.random((2, 4, max(lengths), len(model[0]))) < 0.6
        out = cache.attend(q, k, v, lengths=lengths, mask=mask)
        for b, n in enumerate(lengths):
            sequence, rows = model[b], q[b, :, :n].swapaxes(0, 1)
            allowed = mask[b, :, :n, : len(sequence)]
            expected, _ = sequence.attend(rows, mask=allowed)
            assert_close(out[b, :, :n].swapaxes(0, 1), expected)
    with pytest.raises(ValueError, match=r"mask"):
        cache.attend(q, *new_tokens(rng, 1), mask=mask)  # T is 11 now
    assert cache.lengths.tolist() == [10, 6]


def test_fewer_and_more_queries_than_new_tokens(rng):
    cache = make()
    k, v = new_tokens(rng, 6)
    q = tokens(rng, 9, heads=4)
    fewer = cache.copy().attend(q[:, :, :2], k, v)  # at the first two new tokens
    expected, _ = oracle.attention(q[:, :, :6], k, v, causal=True)
    assert_close(fewer, expected[:, :, :2])
    more = cache.attend(q, k, v)
    assert_close(more[:, :, :6], expected)
    assert not more[:, :, 6:].any()


@pytest.mark.parametrize("sinks", [None, np.array([0.5, -1, 3, 0], np.float32)], ids=["", "sinks"])
def test_lse_of_rows_without_keys_and_of_padding(rng, sinks):
    """A row that attends nothing has its sink; padding has -inf in any case."""
    cache, (k, v) = make(), new_tokens(rng, 3)
    mask = np.array([False, True, True])[:, None]  # for every key
    options = {"lengths": [3, 2], "mask": mask, "sinks": sinks, "return_lse": True}
    out, lse = cache.attend(tokens(rng, 3, heads=4), k, v, **options)
    assert not out[:, :, 0].any()
    want = np.full(4, -np.inf) if sinks is None else sinks
    np.testing.assert_array_equal(lse[:, :, 0], np.broadcast_to(want, (2, 4)))
    assert np.isfinite(lse[:, :, 1]).all()
    assert not out[1, :, 2].any()
    assert np.isneginf(lse[1, :, 2]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_results_of_half_precision(rng, isa, layout):
    """Parts of a cache that are merged with one rounding."""
    cache, (k, v) = make(dtype="float16", layout=layout), new_tokens(rng, 9, layout=layout, dtype=np.float16)
    q = tokens(rng, 9, heads=6, layout=layout, dtype=np.float16)
    rounded = cache.copy().attend(q, k, v)
    out, lse = cache.attend(q, k, v, out_dtype="float32", return_lse=True)
    assert out.dtype == np.float32
    assert_same_bits(out.astype(np.float16), rounded)
    merged, _ = gqa.merge_states([out], [lse], dtype="float16")
    assert_same_bits(merged, rounded)
    with pytest.raises(TypeError, match="out_dtype is float64, expected float16 as q, or float32"):
        cache.attend(q, out_dtype="float64")


def test_new_tokens_of_any_strides_and_dtype(rng):
    k, v = new_tokens(rng, 9)
    plain = make()
    plain.append(k, v)
    for given_k, given_v in (
        (k.astype(np.float64), v.astype(np.float64)),
        (np.asfortranarray(k), np.asfortranarray(v)),
        (k[:, ::-1, ::-1].copy()[:, ::-1, ::-1], v.swapaxes(1, 2).copy().swapaxes(1, 2)),
    ):
        cache = make()
        cache.append(given_k, given_v)
        assert_same_bits(cache.keys, plain.keys)
        assert_same_bits(cache.values, plain.values)


def test_keys_and_values_are_views(rng):
    cache = make(capacity=8)
    cache.append(*new_tokens(rng, 3))
    keys, values = cache.keys, cache.values
    assert keys.shape == (2, 2, 3, 16)
    assert values.shape == (2, 2, 3, 24)
    assert np.shares_memory(keys, cache.keys)
    keys[:] = 1.5
    assert (cache.keys == 1.5).all()
    assert cache.nbytes == 2 * 2 * 8 * (16 + 24) * 4


def test_out_is_written_and_returned(rng):
    cache = make()
    k, v = new_tokens(rng, 5)
    q = tokens(rng, 5, heads=4)
    expected = cache.copy().attend(q, k, v)
    out = np.full((24, 2, 4, 5), np.nan, np.float32).transpose(1, 2, 3, 0)
    assert cache.attend(q, k, v, out=out) is out
    assert_same_bits(out, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_truncate_drops_the_last_tokens(rng, layout):
    cache, longer = make(layout=layout), make(layout=layout)
    k, v = new_tokens(rng, 12, layout=layout)
    cache.append(k, v)
    assert cache.truncate([4, 9]) is cache
    assert cache.lengths.tolist() == [4, 9]
    longer.append(k, v, [4, 9])
    k, v = new_tokens(rng, 3, layout=layout)
    q = tokens(rng, 3, heads=4, layout=layout)
    assert_same_bits(cache.attend(q, k, v), longer.attend(q, k, v))
    assert cache.truncate(2).lengths.tolist() == [2, 2]
    assert cache.truncate(np.int64(0)).lengths.tolist() == [0, 0]


def test_select_repeats_reorders_and_drops_sequences(rng):
    cache = make(batch=3)
    cache.append(*new_tokens(rng, 9, batch=3), lengths=[2, 9, 5])
    keys = cache.keys.copy()
    assert cache.select([1, 1, 2, 0]) is cache
    assert cache.lengths.tolist() == [9, 9, 5, 2]
    for b, (row, n) in enumerate(zip([1, 1, 2, 0], [9, 9, 5, 2])):
        assert_same_bits(cache.keys[b, :, :n], keys[row, :, :n])
    cache.append(*new_tokens(rng, 1, batch=4))
    assert not np.array_equal(cache.keys[0], cache.keys[1])  # their own memory
    assert cache.select(np.array([], int)).lengths.shape == (0,)


def test_grow_keeps_the_tokens(rng):
    cache = make(capacity=5)
    k, v = new_tokens(rng, 5)
    cache.append(k, v)
    assert cache.grow(9) is cache
    assert cache.capacity == 9
    assert_same_bits(cache.keys, k)
    assert_same_bits(cache.values, v)
    cache.append(*new_tokens(rng, 4))
    assert cache.truncate(3).grow(3).capacity == 3
    assert_same_bits(cache.keys, k[:, :, :3].copy())


def test_reset_and_copy(rng):
    cache = make()
    k, v = new_tokens(rng, 5)
    cache.append(k, v)
    other = cache.copy()
    assert cache.reset() is cache
    assert cache.lengths.tolist() == [0, 0]
    assert cache.keys.shape == (2, 2, 0, 16)
    cache.append(-k, -v)
    assert_same_bits(other.keys, k)
    assert_same_bits(other.values, v)


@pytest.mark.parametrize("options", [{"batch": 0}, {"capacity": 0}])
def test_nothing_to_store(rng, options):
    cache = make(**options)
    batch = options.get("batch", 2)
    k, v = new_tokens(rng, 0, batch=batch)
    assert cache.attend(tokens(rng, 0, batch=batch, heads=4), k, v).shape == (batch, 4, 0, 24)
    assert not cache.attend(tokens(rng, 3, batch=batch, heads=4)).any()
    assert cache.copy().reset().lengths.tolist() == [0] * batch


def test_channels_of_size_0(rng):
    cache = gqa.KVCache(1, 2, 4, 0, v_head_dim=3)
    k, v = tokens(rng, 2, batch=1, head_dim=0), tokens(rng, 2, batch=1, head_dim=3)
    out = cache.attend(tokens(rng, 2, batch=1, heads=4, head_dim=0), k, v)
    assert_close(out[:, :, 1], np.repeat(v, 2, axis=1).mean(axis=2, dtype=np.float64))


def test_threads_and_neighbours_change_no_bit(rng, threads):
    k, v = new_tokens(rng, 1700)
    q = tokens(rng, 1, heads=4)
    cache = make(capacity=1701)
    cache.append(k, v, [1700, 3])
    step_k, step_v = new_tokens(rng, 1)
    out = cache.copy().attend(q, step_k, step_v, num_threads=threads)
    for b in range(2):
        alone = cache.copy().select([b])
        assert_same_bits(
            out[b : b + 1], alone.attend(q[b : b + 1], step_k[b : b + 1], step_v[b : b + 1], num_threads=1)
        )
