"""PagedKVCache: sequences in pages of one pool, attended as if each were contiguous."""

import itertools

import numpy as np
import pytest

import gqa
from compare import assert_close, assert_lse_close, assert_same_bits
from sequence_model import MAGNITUDES, Sequence, bytes_of

PAGE_SIZES = [1, 5, 16]
DTYPES = ["float32", "float64", "float16", "bfloat16", "int8"]


def make(num_pages=40, page_size=5, **options):
    return gqa.PagedKVCache(num_pages, page_size, 2, 16, v_head_dim=24, **options)


def packed(rng, count, heads=2, head_dim=16, dtype=np.float32):
    return rng.standard_normal((count, heads, head_dim)).astype(dtype)


def new_tokens(rng, count):
    return packed(rng, count), packed(rng, count, head_dim=24)


def parts(lengths):
    """The rows of each sequence in a packed array."""
    ends = np.cumsum([0, *lengths])
    return [slice(begin, end) for begin, end in itertools.pairwise(ends)]


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("stored", DTYPES)
def test_prompts_and_steps_in_one_call(rng, isa, stored, page_size):
    """Each round some sequences take a chunk, some one token, some none."""
    cache = make(300 // page_size, page_size, dtype=stored)
    ids = [cache.add() for _ in range(3)]
    model = dict.fromkeys(ids, Sequence.empty(2, 16, 24))
    for order, lengths in (([0, 1, 2], [7, 0, 20]), ([2, 0], [1, 1]), ([1, 2, 0], [33, 1, 5]), ([1], [1])):
        chosen = [ids[i] for i in order]
        q, (k, v) = packed(rng, sum(lengths), heads=6), new_tokens(rng, sum(lengths))
        out, lse = cache.attend(chosen, q, lengths, k, v, return_lse=True)
        for id_, rows in zip(chosen, parts(lengths)):
            model[id_] = model[id_].append(k[rows], v[rows], stored)
            expected, expected_lse = model[id_].attend(q[rows])
            assert_close(out[rows], expected, magnitude=MAGNITUDES.get(stored, 1))
            assert_lse_close(lse[:, rows].T, expected_lse)
        assert cache.lengths == {id_: len(sequence) for id_, sequence in model.items()}


@pytest.mark.parametrize("shape", [(3, 6, 7, 30), (1, 1, 7, 30), (3, 1, 1, 30), (3, 6, 7, 1), (30,)], ids=str)
@pytest.mark.parametrize("kind", ["bool", "float32"])
def test_masks_count_from_the_first_query_and_token_of_a_sequence(rng, isa, kind, shape):
    """A row of the mask for each new token and a column for each token, of the sequence that has most."""
    cache, model = make(), Sequence.empty(2, 16, 24)
    ids, before, lengths = [cache.add() for _ in range(3)], [23, 0, 12], [7, 5, 1]
    mask = rng.random(shape) < 0.7 if kind == "bool" else rng.standard_normal(shape).astype(kind)
    old, new = new_tokens(rng, sum(before)), new_tokens(rng, sum(lengths))
    cache.append(ids, *old, before)
    q = packed(rng, sum(lengths), heads=6)
    out, lse = cache.attend(ids, q, lengths, *new, mask=mask, return_lse=True)
    again = cache.attend(ids, q, lengths, mask=mask)
    assert_same_bits(out, again)
    for b, (past, rows) in enumerate(zip(parts(before), parts(lengths))):
        sequence = model.append(*(x[past] for x in old), "float32").append(*(x[rows] for x in new), "float32")
        part = np.broadcast_to(mask, (3, 6, 7, 30))[b, :, : lengths[b], : len(sequence)]
        expected, expected_lse = sequence.attend(q[rows], mask=part)
        assert_close(out[rows], expected, magnitude=2)
        assert_lse_close(lse[:, rows].T, expected_lse)


def test_float32_results_of_half_precision(rng, isa):
    cache, lengths = make(dtype="float16"), [7, 1]
    ids, q, new = [cache.add(), cache.add()], packed(rng, 8, heads=6, dtype=np.float16), new_tokens(rng, 8)
    out = cache.attend(ids, q, lengths, *new, out_dtype=np.float32)
    assert out.dtype == np.float32
    assert_same_bits(out.astype(np.float16), cache.attend(ids, q, lengths))


def test_bits_are_those_of_a_contiguous_cache(rng, isa, dtype):
    pages, plain = make(200, 16), gqa.KVCache(1, 2, 3000, 16, v_head_dim=24, layout="bshd")
    id_ = pages.add()
    for count in (1700, 1, 20, 1):
        q, (k, v) = packed(rng, count, heads=6, dtype=dtype), new_tokens(rng, count)
        assert_same_bits(pages.attend([id_], q, [count], k, v), plain.attend(q[None], k[None], v[None])[0])


def test_options_are_those_of_varlen_attention(rng, isa):
    cache, lengths, queries = make(), [30, 12, 9], [4, 0, 9]
    ids = [cache.add() for _ in lengths]
    k, v = new_tokens(rng, sum(lengths))
    cache.append(ids, k, v, lengths)
    q = packed(rng, sum(queries), heads=4)
    for options in (
        {"causal": False},
        {"window": (5, None)},
        {"window": (3, 2), "causal": False},
        {"scale": 0.3, "softcap": 1.5},
        {"sinks": rng.standard_normal(4).astype(np.float32)},
    ):
        out, lse = cache.attend(ids, q, queries, return_lse=True, **options)
        expected, expected_lse = gqa.varlen_attention(
            q, k, v, np.cumsum([0, *queries]), np.cumsum([0, *lengths]), return_lse=True, **{"causal": True} | options
        )
        assert_same_bits(out, expected)
        assert_same_bits(lse, expected_lse)


def test_queries_past_the_beginning_have_no_keys(rng):
    cache = make()
    ids = [cache.add(), cache.add()]
    k, v = new_tokens(rng, 2)
    cache.append(ids, k, v, [2, 0])
    out, lse = cache.attend(ids, packed(rng, 6, heads=4), [4, 2], return_lse=True)  # the first stand before token 0
    assert not out[:2].any()
    assert out[2:4].all()
    assert not out[4:].any()
    assert np.isneginf(lse[:, [0, 1, 4, 5]]).all()


def test_pages_come_and_go(rng):
    cache = make(num_pages=6, page_size=4)
    one, two = cache.add(), cache.add()
    cache.append([one, two], *new_tokens(rng, 14), [9, 5])
    assert cache.free_pages == 1
    table = cache.block_tables
    assert [len(table[one]), len(table[two])] == [3, 2]
    assert len({*table[one].tolist(), *table[two].tolist()}) == 5
    cache.truncate(one, 8)
    assert cache.free_pages == 2
    assert cache.block_tables[one].tolist() == table[one][:2].tolist()
    cache.truncate(one, 8)
    cache.truncate(two, 0)
    assert cache.free_pages == 4
    cache.free(one)
    assert cache.free_pages == 6
    assert cache.lengths == {two: 0}
    assert cache.add() not in (one, two)


def test_the_block_table_says_where_tokens_are(rng):
    cache = make(num_pages=9, page_size=4)
    other, id_ = cache.add(), cache.add()
    cache.append([other], *new_tokens(rng, 6), [6])
    k, v = new_tokens(rng, 11)
    cache.append([id_], k[:3], v[:3], [3])
    cache.append([other], *new_tokens(rng, 3), [3])
    cache.append([id_], k[3:], v[3:], [8])
    table = cache.block_tables[id_]
    for p in range(11):
        assert_same_bits(cache.keys[table[p // 4], :, p % 4].copy(), k[p])
        assert_same_bits(cache.values[table[p // 4], :, p % 4].copy(), v[p])


@pytest.mark.parametrize("shared", [8, 10])  # a whole number of pages, and half a page more
def test_forks_share_pages_until_they_write(rng, shared):
    cache = make(num_pages=12, page_size=4)
    one = cache.add()
    k, v = new_tokens(rng, shared)
    cache.append([one], k, v, [shared])
    used = 12 - cache.free_pages
    two, three = cache.fork(one), cache.fork(one)
    assert cache.free_pages == 12 - used
    model = dict.fromkeys((one, two, three), Sequence.empty(2, 16, 24).append(k, v, "float32"))
    for ids, lengths in (([two], [1]), ([one, two, three], [1, 1, 1]), ([three], [5])):
        q, (k, v) = packed(rng, sum(lengths), heads=4), new_tokens(rng, sum(lengths))
        out = cache.attend(ids, q, lengths, k, v)
        for id_, rows in zip(ids, parts(lengths)):
            model[id_] = model[id_].append(k[rows], v[rows], "float32")
            assert_close(out[rows], model[id_].attend(q[rows])[0])
    tables = cache.block_tables
    assert tables[one][:2].tolist() == tables[two][:2].tolist() == tables[three][:2].tolist()
    assert len({int(tables[id_][2]) for id_ in (one, two, three)}) == 3
    cache.free(one)
    q = packed(rng, 2, heads=4)
    out = cache.attend([two, three], q, [1, 1])
    for row, id_ in enumerate((two, three)):
        assert_close(out[row : row + 1], model[id_].attend(q[row : row + 1])[0])
    cache.free(two)
    cache.free(three)
    assert cache.free_pages == 12


def test_the_last_owner_of_a_page_writes_in_place(rng):
    """Two sequences share a page filled in part; one copy serves both writers, with one free page."""
    cache = make(num_pages=2, page_size=4)
    one = cache.add()
    cache.append([one], *new_tokens(rng, 2), [2])
    two = cache.fork(one)
    cache.append([one, two], *new_tokens(rng, 2), [1, 1])
    assert cache.free_pages == 0
    assert cache.block_tables[one].tolist() != cache.block_tables[two].tolist()


def test_a_fork_truncated_into_a_shared_page_does_not_change_it(rng):
    cache = make(num_pages=6, page_size=4)
    one = cache.add()
    cache.append([one], *new_tokens(rng, 7), [7])
    q = packed(rng, 1, heads=4)
    before = cache.attend([one], q, [1])
    two = cache.fork(one)
    cache.truncate(two, 5)
    cache.append([two], *new_tokens(rng, 2), [2])
    assert_same_bits(cache.attend([one], q, [1]), before)


def test_threads_and_neighbours_change_no_bit(rng, threads):
    cache = make(200, 16)
    ids = [cache.add() for _ in range(3)]
    cache.append(ids, *new_tokens(rng, 1903), [1700, 3, 200])
    q = packed(rng, 6, heads=4)
    out = cache.attend(ids, q, [1, 2, 3], num_threads=threads)
    for id_, rows in zip(ids, parts([1, 2, 3])):
        assert_same_bits(out[rows], cache.attend([id_], q[rows], [rows.stop - rows.start], num_threads=1))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_the_callers_storage(rng, tmp_path, dtype):
    """Arrays, or files mapped into memory, are written and read where they are."""
    shapes = (8, 2, 5, 16), (8, 2, 5, 24)
    arrays = tuple(np.zeros(shape, dtype) for shape in shapes)
    files = tuple(np.memmap(tmp_path / f"{i}", dtype, "w+", shape=shape) for i, shape in enumerate(shapes))
    k, v = new_tokens(rng, 17)
    q = packed(rng, 3, heads=4)
    own = make(8, dtype=dtype)
    id_ = own.add()
    expected = own.attend([id_], packed(rng, 17, heads=4), [17], k, v)
    expected = own.attend([id_], q, [3])
    for storage in (arrays, files):
        cache = make(8, dtype=dtype, storage=storage)
        id_ = cache.add()
        cache.append([id_], k, v, [17])
        assert_same_bits(cache.attend([id_], q, [3]), expected)
        for given, held in zip(storage, (cache.keys, cache.values)):
            assert np.shares_memory(given, held.data if dtype == "int8" else held)
    files[0].flush()
    again = np.memmap(tmp_path / "0", dtype, "r", shape=shapes[0])
    np.testing.assert_array_equal(again, arrays[0])


def test_out_is_written_and_returned(rng):
    cache = make()
    id_ = cache.add()
    k, v = new_tokens(rng, 5)
    q = packed(rng, 5, heads=4)
    out = np.full((24, 5, 4), np.nan, np.float32).transpose(1, 2, 0)
    assert cache.attend([id_], q, [5], k, v, out=out) is out
    assert_close(out, Sequence.empty(2, 16, 24).append(k, v, "float32").attend(q)[0])


def test_no_sequences_and_no_tokens(rng):
    cache = make()
    assert cache.attend([], packed(rng, 0, heads=4), []).shape == (0, 4, 24)
    id_ = cache.add()
    cache.append([id_], *new_tokens(rng, 0), [0])
    assert cache.attend([id_], packed(rng, 0, heads=4), [0], *new_tokens(rng, 0)).shape == (0, 4, 24)
    assert cache.free_pages == 40
    assert bytes_of(cache.keys) == bytes_of(np.zeros((40, 2, 5, 16), np.float32))
    empty = make(0)
    assert not empty.attend([empty.add()], packed(rng, 2, heads=4), [2]).any()
