"""What caches allocate: a step costs what its own tokens cost, whatever the past, and no tensor is held twice."""

import sys
import tracemalloc

import numpy as np
import pytest

import gqa
from child import output_of

KIB = 1024


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def peak_of(call):
    """Bytes that NumPy and Python allocate at most at a time during the call."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def contiguous_step(tokens, count=1, **options):
    """A step that can be repeated: it appends `count` tokens to `tokens`, and takes them back."""
    cache = gqa.KVCache(1, 4, tokens + 2 * count, 64, **options)
    cache.append(*[ones(1, 4, tokens, 64)] * 2)
    q, k, out = ones(1, 8, count, 64), ones(1, 4, count, 64), ones(1, 8, count, 64)

    def step():
        cache.attend(q, k, k, out=out)
        cache.truncate(tokens)

    return step


def paged_step(tokens, **options):
    cache = gqa.PagedKVCache(tokens // 16 + 1, 16, 4, 64, **options)
    id_ = cache.add()
    cache.append([id_], *[ones(tokens, 4, 64)] * 2, [tokens])
    q, k, out = ones(1, 8, 64), ones(1, 4, 64), ones(1, 8, 64)

    def step():
        cache.attend([id_], q, [1], k, k, out=out)
        cache.truncate(id_, tokens)

    return step


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_step_allocates_nothing_that_grows_with_the_past(dtype):
    short, long = (peak_of(contiguous_step(tokens, dtype=dtype)) for tokens in (64, 16384))
    assert long <= short + KIB
    assert long <= 16 * KIB


def test_a_step_in_a_ring_allocates_as_little():
    cache = gqa.KVCache(1, 4, 1024, 64, window=512)
    cache.append(*[ones(1, 4, 100_000, 64)] * 2)
    q, k, out = ones(1, 8, 1, 64), ones(1, 4, 1, 64), ones(1, 8, 1, 64)
    assert peak_of(lambda: cache.attend(q, k, k, out=out)) <= 16 * KIB


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_step_over_pages_allocates_a_row_of_numbers_for_each(dtype):
    short, long = (peak_of(paged_step(tokens, dtype=dtype)) for tokens in (64, 16384))
    assert long <= short + 16384 // 16 * 2 * 32 + KIB  # the table of runs; keys and values are 4 KiB and more a page


def test_a_prompt_is_written_without_a_copy():
    step = contiguous_step(64, count=1024)
    assert peak_of(step) <= 16 * KIB  # k and v are 1 MiB each


def test_a_converted_prompt_allocates_the_tokens_and_no_more():
    cache, k = gqa.KVCache(1, 4, 4096, 64, dtype="float16"), ones(1, 4, 1024, 64)
    assert peak_of(lambda: cache.reset().append(k, k)) <= 1.1 * k.nbytes  # half the size, twice


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["contiguous", "paged"])
def test_the_kernel_never_widens_an_int8_cache(kind):
    """The process's own high-water mark, which counts what the kernel allocates as well."""
    measure = """
        import re, sys
        import numpy as np, gqa

        def kib(field):
            return int(re.search(field + r":\\s*(\\d+) kB", open("/proc/self/status").read())[1])

        tokens, kind = 32768, sys.argv[1]
        k = gqa.Quantized(np.ones((tokens, 4, 128), np.int8), np.ones((tokens, 4), np.float32))
        if kind == "contiguous":
            cache = gqa.KVCache(1, 4, tokens, 128, dtype="int8", layout="bshd")
            cache.append(k[None], k[None])
            step = lambda: cache.attend(np.ones((1, 1, 8, 128), np.float32), num_threads=1)
        else:
            cache = gqa.PagedKVCache(tokens // 16, 16, 4, 128, dtype="int8")
            cache.add()
            cache.append([0], k, k, [tokens])
            step = lambda: cache.attend([0], np.ones((1, 8, 128), np.float32), [1], num_threads=1)
        gqa.attention(*[np.ones((1, 8, 300, 128), np.float32)] * 3, num_threads=1)
        before = kib("VmRSS")
        step()
        print(kib("VmHWM") - before)
    """
    widened = 32768 * 4 * 128 * 4 // KIB
    assert int(output_of(measure, kind)) < widened / 8
