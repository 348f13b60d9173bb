"""What caches tell of themselves, return from their methods, and leave behind when they are copied or pickled."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import gqa
from compare import assert_same_bits
from sequence_model import bytes_of

DTYPES = ["float32", "float64", "float16", "bfloat16", "int8"]
COPIES = {
    "copy method": lambda cache: cache.copy(),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda cache: pickle.loads(pickle.dumps(cache)),
}


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def plain(rng, **options):
    cache = gqa.KVCache(2, 2, 16, 8, v_head_dim=4, **options)
    return cache.append(normal(rng, 2, 2, 9, 8), normal(rng, 2, 2, 9, 4), [9, 5])


def paged(rng, **options):
    cache = gqa.PagedKVCache(8, 4, 2, 8, v_head_dim=4, **options)
    cache.append([cache.add(), cache.add()], normal(rng, 14, 2, 8), normal(rng, 14, 2, 4), [9, 5])
    cache.fork(0)
    return cache


def step(rng, cache):
    """One more token for every sequence, attended."""
    if isinstance(cache, gqa.KVCache):
        return cache.attend(normal(rng, 2, 4, 1, 8), normal(rng, 2, 2, 1, 8), normal(rng, 2, 2, 1, 4))
    return cache.attend([0, 1, 2], normal(rng, 3, 4, 8), [1, 1, 1], normal(rng, 3, 2, 8), normal(rng, 3, 2, 4))


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("make", [plain, paged])
def test_copies_are_whole_and_independent(rng, make, dtype, duplicate):
    cache = make(rng, dtype=dtype)
    other = duplicate(cache)
    before = bytes_of(cache.keys, cache.values), str(cache.lengths)
    first = step(np.random.default_rng(1), other)
    second = step(np.random.default_rng(2), other)
    assert (bytes_of(cache.keys, cache.values), str(cache.lengths)) == before
    assert_same_bits(step(np.random.default_rng(1), cache), first)
    assert_same_bits(step(np.random.default_rng(2), cache), second)
    assert bytes_of(cache.keys, cache.values) == bytes_of(other.keys, other.values)


def test_a_copy_of_the_callers_storage_is_its_own(rng):
    storage = np.zeros((8, 2, 4, 8), np.float32), np.zeros((8, 2, 4, 4), np.float32)
    cache = paged(rng, storage=storage)
    before = bytes_of(*storage)
    step(rng, cache.copy())
    assert bytes_of(*storage) == before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [plain, paged])
def test_dtype_and_nbytes(rng, make, dtype):
    cache = make(rng, dtype=dtype)
    want = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert cache.dtype == want
    tokens = 2 * 16 if make is plain else 8 * 4
    assert cache.nbytes == tokens * 2 * (12 * want.itemsize + (2 * 4 if dtype == "int8" else 0))


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_layout(layout):
    cache = gqa.KVCache(1, 1, 1, 1, layout=layout)
    assert cache.layout == layout
    assert cache.copy().layout == layout


def test_methods_that_change_a_cache_return_it(rng):
    cache = plain(rng)
    k, v = normal(rng, 2, 2, 1, 8), normal(rng, 2, 2, 1, 4)
    for call in (
        lambda: cache.append(k, v),
        lambda: cache.truncate(3),
        lambda: cache.select([1, 0]),
        lambda: cache.grow(20),
        cache.reset,
    ):
        assert call() is cache
    pages = paged(rng)
    k, v = normal(rng, 1, 2, 8), normal(rng, 1, 2, 4)
    assert pages.append([0], k, v, [1]) is pages
    assert pages.truncate(0, 3) is pages
    assert pages.free(0) is pages


@pytest.mark.parametrize("number", [int, np.int64, np.uint8, np.array])
def test_ids_may_be_any_integers(rng, number):
    cache = paged(rng)
    fork = cache.fork(number(1))
    assert cache.truncate(number(1), number(2)).lengths == {0: 9, 1: 2, 2: 9, fork: 5}
    assert cache.free(number(0)).lengths == {1: 2, 2: 9, fork: 5}
    cache.free(number(2)).free(number(1)).free(number(fork))
    assert cache.free_pages == 8
