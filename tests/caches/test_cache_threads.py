"""One cache and several threads: they may attend it together, and change it in turns; chaos is no crash."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gqa
from compare import assert_same_bits

THREADS, TOKENS = 4, 40


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("make", ["kv", "ring", "paged"])
def test_threads_that_attend_the_same_cache(make):
    """Without new keys nothing changes, so nobody has to wait."""
    k, v = random(0, 1, 2, TOKENS, 16), random(1, 1, 2, TOKENS, 16)
    queries = [random(2 + i, 1, 4, 3, 16) for i in range(THREADS)]
    if make == "paged":
        cache = gqa.PagedKVCache(20, 4, 2, 16)
        cache.append([cache.add()], k[0].swapaxes(0, 1), v[0].swapaxes(0, 1), [TOKENS])

        def attend(q):
            return cache.attend([0], q[0].swapaxes(0, 1), [3])
    else:
        ring = {"window": 8, "capacity": 12} if make == "ring" else {"capacity": TOKENS}
        cache = gqa.KVCache(1, 2, head_dim=16, **ring).append(k, v)
        attend = cache.attend
    expected = [attend(q) for q in queries]

    def work(i):
        for _ in range(20):
            assert_same_bits(attend(queries[i]), expected[i])

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_threads_that_append_in_turns(dtype):
    """Each writes its number as the tokens of a row of its own; a lock keeps them apart."""
    cache = gqa.KVCache(THREADS, 1, TOKENS * THREADS, 4, dtype=dtype)
    pages = gqa.PagedKVCache(TOKENS * THREADS, 1, 1, 4, dtype=dtype)
    ids = [pages.add() for _ in range(THREADS)]
    lock = threading.Lock()

    def work(i):
        token = np.full((THREADS, 1, 1, 4), i + 1, np.float32)
        for _ in range(TOKENS):
            with lock:
                cache.append(token, token, [int(row == i) for row in range(THREADS)])
                pages.append([ids[i]], token[0], token[0], [1])

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    assert cache.lengths.tolist() == [TOKENS] * THREADS
    assert pages.lengths == dict.fromkeys(ids, TOKENS)
    for i in range(THREADS):
        stored = cache.keys.dequantize() if dtype == "int8" else cache.keys
        np.testing.assert_allclose(stored[i, 0, :TOKENS], i + 1, rtol=1e-6)
        stored = pages.keys.dequantize() if dtype == "int8" else pages.keys
        np.testing.assert_allclose(stored[pages.block_tables[ids[i]], 0, 0], i + 1, rtol=1e-6)


def test_threads_that_take_no_turns():
    """What a cache holds then is nobody's promise; that the process lives, and that errors are exceptions, is."""
    cache = gqa.KVCache(2, 1, 64, 4)
    ring = gqa.KVCache(2, 1, 8, 4, window=5)
    pages = gqa.PagedKVCache(32, 4, 1, 4)

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(150):
            n = int(rng.integers(1, 6))
            x = rng.standard_normal((2, 1, n, 4), np.float32)
            with contextlib.suppress(ValueError, KeyError, IndexError, RuntimeError, TypeError):
                match rng.integers(8):
                    case 0 | 1:
                        cache.attend(x, x, x)
                    case 2:
                        cache.truncate(np.minimum(cache.lengths, 3))
                    case 3:
                        ring.attend(x, x, x)
                    case 4:
                        pages.add()
                    case 5 | 6:
                        id_ = int(rng.choice(list(pages.lengths)))
                        pages.attend([id_], x[0].swapaxes(0, 1), [n], x[0].swapaxes(0, 1), x[0].swapaxes(0, 1))
                    case 7:
                        pages.free(int(rng.choice(list(pages.lengths))))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    x = random(9, 2, 1, 5, 4)
    fresh = gqa.KVCache(2, 1, 64, 4).attend(x, x, x)
    assert_same_bits(cache.reset().attend(x, x, x), fresh)
