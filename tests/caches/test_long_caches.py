"""Very long caches: the bits of a result do not depend on the storage that holds the keys, or on what it dropped."""

import numpy as np
import pytest

import gqa
from compare import assert_same_bits

LENGTHS = [49_000, 49_152, 100_000, 300_000]
CHUNKS = [1, 3, 30, 100]  # channels in the lanes, rows in the lanes, several tiles of them


@pytest.fixture(scope="module", params=LENGTHS)
def tokens(request):
    """k and v (1, 1, tokens, 16), of which all but the last 134 make the past."""
    rng = np.random.default_rng(request.param)
    return rng.standard_normal((2, 1, 1, request.param + sum(CHUNKS), 16), np.float32)


def chunks(tokens):
    """(q, k, v) of each chunk behind the past."""
    rng = np.random.default_rng(0)
    end = tokens.shape[3] - sum(CHUNKS)
    for count in CHUNKS:
        q = rng.standard_normal((1, 2, count, 16), np.float32)
        yield q, *tokens[:, :, :, end : end + count]
        end += count


def filled(tokens, **options):
    past = tokens[:, :, :, : -sum(CHUNKS)]
    capacity = options.pop("capacity", tokens.shape[3])
    return gqa.KVCache(1, 1, capacity, 16, **options).append(*past)


@pytest.mark.parametrize(("window", "capacity"), [(1000, 1008), (768, 1536), (40_000, 41_000)])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_ring_has_the_bits_of_the_full_cache(tokens, isa, dtype, window, capacity):
    full, ring = filled(tokens, dtype=dtype), filled(tokens, dtype=dtype, window=window, capacity=capacity)
    for q, k, v in chunks(tokens):
        results = (
            full.attend(q, k, v, window=(window - 1, None), return_lse=True),
            ring.attend(q, k, v, return_lse=True),
        )
        for one, other in zip(*results):
            assert_same_bits(one, other)


def test_pages_packed_batches_and_arrays_have_the_bits_of_the_cache(tokens):
    cache, pages = filled(tokens), gqa.PagedKVCache(tokens.shape[3] // 48 + 2, 48, 1, 16)
    id_, past = pages.add(), tokens.shape[3] - sum(CHUNKS)
    pages.append([id_], *(x[0].swapaxes(0, 1) for x in tokens[:, :, :, :past]), [past])
    end = past
    for q, k, v in chunks(tokens):
        count = q.shape[2]
        want = cache.attend(q, k, v)
        packed_q, packed_k, packed_v = (x[0].swapaxes(0, 1) for x in (q, k, v))
        assert_same_bits(pages.attend([id_], packed_q, [count], packed_k, packed_v), want[0].swapaxes(0, 1).copy())
        end += count
        keys, values = tokens[:, :, :, :end]
        assert_same_bits(gqa.attention(q, keys, values, causal=True), want)
        split = end // 3
        options = {"past_key": keys[:, :, :split], "past_value": values[:, :, :split], "causal": True}
        assert_same_bits(gqa.attention(q, keys[:, :, split:], values[:, :, split:], **options), want)
        packed = (x[0].swapaxes(0, 1) for x in (keys, values))
        out = gqa.varlen_attention(packed_q, *packed, [0, count], [0, end], causal=True)
        assert_same_bits(out, want[0].swapaxes(0, 1).copy())
