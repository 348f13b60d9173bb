"""A cache after a signal in the middle of a call: every token that a length counts is there."""

import sys

import numpy as np
import pytest

import gqa
import oracle
from sequence_model import as_stored

PACKAGE = gqa.__path__[0]


class Interrupt(BaseException):
    """What a signal handler raises."""


def interrupted(call, line):
    """Run call until so many lines of the package have begun; whether it came to an end before."""
    left = line

    def trace(frame, event, _):
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Interrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Interrupt:
        return False
    finally:
        sys.settrace(before)
    return True


def every_line(make, call):
    """The caches that `make` gives after `call`, interrupted at each line of the package in turn."""
    for line in range(1, 5000):
        cache = make()
        done = interrupted(lambda cache=cache: call(cache), line)
        yield cache
        if done:
            return
    raise AssertionError("the call never ends")


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# Tokens (batch, tokens, kv_heads, head_dim), of which a cache has the first 6 and takes 3 more.
KEYS, VALUES = normal(0, 2, 9, 2, 4), normal(1, 2, 9, 2, 4)


@pytest.mark.parametrize("attends", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("ring", [{}, {"capacity": 5, "window": 3}, {"capacity": 4, "window": 4}])
def test_append(ring, dtype, attends):
    def make():
        cache = gqa.KVCache(2, 2, head_dim=4, dtype=dtype, layout="bshd", **{"capacity": 12} | ring)
        return cache.append(KEYS[:, :6], VALUES[:, :6])

    def call(cache):
        if attends:
            cache.attend(normal(2, 2, 3, 4, 4), KEYS[:, 6:], VALUES[:, 6:], lengths=[3, 2])
        else:
            cache.append(KEYS[:, 6:], VALUES[:, 6:], [3, 2])

    seen = set()
    for cache in every_line(make, call):
        seen.add(tuple(cache.lengths.tolist()))
        for b, length in enumerate(cache.lengths):
            p = np.arange(min(cache._slots.oldest[b], length), length)
            for x, tokens in ((cache.keys, KEYS), (cache.values, VALUES)):
                np.testing.assert_array_equal(
                    oracle.wide(x)[b, p % cache.capacity], as_stored(tokens[b, p], dtype), strict=True
                )
    assert seen == {(6, 6), (9, 8)}


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_paged_append(dtype):
    """Three sequences: one of its own, one and its fork, which share a page that is filled in part."""

    def make():
        cache = gqa.PagedKVCache(12, 4, 2, 4, dtype=dtype)
        cache.append([cache.add(), cache.add()], *packed([(0, 0, 6), (1, 0, 6)]), [6, 6])
        cache.fork(1)
        return cache

    def packed(parts):
        return (np.concatenate([x[b, first:last] for b, first, last in parts]) for x in (KEYS, VALUES))

    new = tuple(packed([(0, 6, 9), (1, 6, 9), (1, 6, 8)]))
    ends = set()
    for cache in every_line(make, lambda cache: cache.append([0, 1, 2], *new, [3, 3, 2])):
        ends.add(tuple(cache.lengths.values()))
        check_pages(cache, dtype)
        cache.truncate(1, 5).truncate(0, 6)  # and the cache goes on from there
        cache.append([1, 0], *packed([(1, 5, 7), (0, 6, 8)]), [2, 2])
        check_pages(cache, dtype)
    assert {(6, 6, 6), (9, 9, 8)} <= ends


def test_paged_truncate_and_free():
    def make():
        cache = gqa.PagedKVCache(12, 4, 2, 4)
        cache.append([cache.add(), cache.add()], *(np.concatenate([x[0], x[1]]) for x in (KEYS, VALUES)), [9, 9])
        cache.fork(1)
        return cache

    for call in (lambda cache: cache.truncate(1, 3), lambda cache: cache.free(1), lambda cache: cache.fork(0)):
        for cache in every_line(make, call):
            check_pages(cache, "float32")
            other = cache.add()
            cache.append([other], KEYS[0], VALUES[0], [9])
            cache.free(other)
            check_pages(cache, "float32")


def check_pages(cache, dtype):
    """Every sequence has its tokens (sequence 2 is a fork of 1, 3 of 0), and no page has two writers."""
    free = cache._pool.free
    tables = cache.block_tables
    for id_, length in cache.lengths.items():
        p = np.arange(length)
        assert not set(tables[id_].tolist()) & set(free)
        for x, tokens in ((cache.keys, KEYS), (cache.values, VALUES)):
            stored = oracle.wide(x)[tables[id_][p // 4], :, p % 4]
            np.testing.assert_array_equal(stored, as_stored(tokens[int(id_ in (1, 2)), :length], dtype))
