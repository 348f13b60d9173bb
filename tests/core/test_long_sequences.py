"""The bits of a result follow from the sequence alone, for any number of keys: threads, layouts, padding, chunks.

Sizes on both sides of what a design could trip over: 64 splits of 768 keys are 49,152.
"""

import numpy as np
import pytest

import gqa
from compare import assert_same_bits

LENGTHS = [49_000, 49_152, 100_000, 300_000]
QUERIES = [1, 5, 16, 64]  # of two rows each, which have splits of 768 keys, 1536 and 6144


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(7)
    k, v = rng.standard_normal((2, 1, 1, max(LENGTHS) + max(QUERIES), 16), np.float32)
    return rng.standard_normal((1, 2, max(QUERIES), 16), np.float32), k, v


def assert_same(actual, expected):
    for x, y in zip(actual, expected, strict=True):
        assert_same_bits(x, y)


@pytest.mark.parametrize("queries", QUERIES)
@pytest.mark.parametrize("length", LENGTHS)
def test_threads_and_layouts(isa, tokens, length, queries):
    """However many parts a sequence is cut into, and whatever strides lead to it."""
    q, k, v = tokens
    arguments = {"q": q[:, :, :queries], "k": k[:, :, :length], "v": v[:, :, :length], "causal": True}
    one = gqa.attention(**arguments, return_lse=True, num_threads=1)
    for threads in (2, 3, 16):
        assert_same(gqa.attention(**arguments, return_lse=True, num_threads=threads), one)
    swapped = {name: x.swapaxes(1, 2) if name in "qkv" else x for name, x in arguments.items()}
    out = gqa.attention(**swapped, layout="bshd", num_threads=2)
    assert_same_bits(out.swapaxes(1, 2).copy(), one[0])


@pytest.mark.parametrize("queries", QUERIES)
def test_padding_and_batch(isa, tokens, queries):
    """Sequences of a batch, and packed ones, give what they give alone."""
    q, k, v = tokens
    lengths = [49_152, 3, 49_000]
    rows = np.concatenate([q[:, :, :queries]] * 3)
    keys, values = (np.broadcast_to(x[:, :, :50_000], (3, *x[:, :, :50_000].shape[1:])) for x in (k, v))
    together = gqa.attention(rows, keys, values, kv_lengths=lengths, return_lse=True, num_threads=3)
    ends = np.cumsum([0, *lengths])
    packed = [np.concatenate([x[0, :, :n] for n in lengths], axis=1).swapaxes(0, 1) for x in (k, v)]
    varlen = gqa.varlen_attention(
        np.concatenate([q[0, :, :queries].swapaxes(0, 1)] * 3), *packed, np.arange(4) * queries, ends, num_threads=2
    )
    for b, length in enumerate(lengths):
        alone = gqa.attention(rows[b : b + 1], k[:, :, :length], v[:, :, :length], return_lse=True)
        assert_same([x[b : b + 1] for x in together], alone)
        assert_same_bits(varlen[b * queries : (b + 1) * queries].swapaxes(0, 1)[None].copy(), alone[0])


@pytest.mark.parametrize("window", [None, (2000, 0)])
def test_chunks_of_a_prompt(isa, window):
    """Chunks of 64 rows, counted over the group, or more."""
    rng = np.random.default_rng(8)
    tokens = 13_000
    q = rng.standard_normal((1, 2, tokens, 16), np.float32)
    k, v = rng.standard_normal((2, 1, 1, tokens, 16), np.float32)
    whole = gqa.attention(q, k, v, causal=True, window=window)
    for size in (32, 1001, 6500):
        for start in range(0, tokens - size + 1, size):
            end = start + size
            chunk = gqa.attention(q[:, :, start:end], k[:, :, :end], v[:, :, :end], causal=True, window=window)
            assert_same_bits(chunk, whole[:, :, start:end].copy())


@pytest.mark.parametrize("queries", QUERIES)
def test_pieces_meet_at_multiples_of_split_keys(isa, tokens, queries):
    """A piece listed by itself, at its own place among all keys, has the bits it has within the whole sequence."""
    q, k, v = tokens
    begin, end = 2 * gqa.SPLIT_KEYS, 3 * gqa.SPLIT_KEYS
    rows = q[:, :, :queries]
    ring = gqa.KVCache(1, 1, gqa.SPLIT_KEYS, 16, window=gqa.SPLIT_KEYS)
    ring.append(k[:, :, :end], v[:, :, :end])
    piece = ring.attend(rows, causal=False, window=(None, None), return_lse=True) if queries == 1 else None
    window = {"mask": np.arange(end) >= begin}
    within = gqa.attention(rows, k[:, :, :end], v[:, :, :end], **window, return_lse=True)
    alone = gqa.attention(rows, k[:, :, begin:end], v[:, :, begin:end], return_lse=True)
    assert_same(alone, within)
    if piece is not None:
        assert_same(piece, within)
    halves = [gqa.attention(rows, k[:, :, a:b], v[:, :, a:b], return_lse=True) for a, b in ((0, begin), (begin, end))]
    merged, lse = gqa.merge_states(*zip(*halves, strict=True))
    whole, whole_lse = gqa.attention(rows, k[:, :, :end], v[:, :, :end], return_lse=True)
    np.testing.assert_allclose(merged, whole, atol=1e-6)
    np.testing.assert_allclose(lse, whole_lse, rtol=1e-6)
