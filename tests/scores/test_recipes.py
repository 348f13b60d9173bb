"""The examples' score functions in every front door, against the oracle, which calls them with NumPy's arrays."""

from __future__ import annotations

import numpy as np
import pytest

import gqa
import oracle
from axes import SIZES
from compare import assert_close, assert_lse_close, assert_same_bits
from recipes import RECIPES, recipe


def tensors(rng, queries, keys, dtype=np.float32, batch=2, heads=(4, 2), head_dim=16):
    q = rng.standard_normal((batch, heads[0], queries, head_dim)).astype(dtype)
    k, v = rng.standard_normal((2, batch, heads[1], keys, head_dim)).astype(dtype)
    return q, k, v


def check(q, k, v, magnitude=3.0, **options):
    threads = options.pop("num_threads", None)
    out, lse = gqa.attention(q, k, v, return_lse=True, num_threads=threads, **options)
    expected, expected_lse = oracle.attention(q, k, v, **options)
    assert_close(out, expected, magnitude)
    assert_lse_close(lse, expected_lse)


@pytest.mark.parametrize("name", RECIPES)
def test_sizes(name, size, isa, rng):
    q, k, v = tensors(rng, *size)
    check(q, k, v, **recipe(name, 2, 4, size[1], rng))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_dtypes_and_layouts(name, dtype, layout, isa, rng):
    for size in ("few", "blocks"):
        q, k, v = tensors(rng, *SIZES[size], dtype)
        if layout == "bshd":
            q, k, v = (np.ascontiguousarray(x.swapaxes(1, 2)) for x in (q, k, v))
        check(q, k, v, layout=layout, **recipe(name, 2, 4, SIZES[size][1], rng))


@pytest.mark.parametrize("name", RECIPES)
def test_the_number_of_threads_changes_nothing(name, isa, rng):
    for size in ("split", "tiles"):
        q, k, v = tensors(rng, *SIZES[size])
        options = recipe(name, 2, 4, SIZES[size][1], rng)
        one, *others = (gqa.attention(q, k, v, num_threads=n, **options) for n in (1, 2, 5))
        for other in others:
            assert_same_bits(other, one)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("queries", [3, 40])
def test_other_options(name, queries, isa, rng):
    """A past, lengths, masks, a soft cap, sinks: in the order that attention has."""
    q, k, v = tensors(rng, queries, 150)
    mods = recipe(name, 2, 4, 190, rng)
    past = {"past_key": k[:, :, :40], "past_value": v[:, :, :40]}
    mask = rng.random((2, 1, queries, 150)) < 0.8
    bias = rng.standard_normal((4, queries, 190)).astype(np.float32)
    for options in (
        {"causal": True},
        {"window": (20, 5)},
        {"kv_lengths": np.array([150, 61])},
        {"query_offset": np.array([0, 30])},
        {"mask": mask, "sinks": np.array([0.5, -1, 2, 0], np.float32)},
        {"mask": bias, "softcap": 1.5, "scale": 0.4, **past},
        {"causal": True, "softcap": 3.0, "kv_lengths": np.array([190, 100]), **past},
    ):
        check(q, k, v, **mods, **options)


@pytest.mark.parametrize("name", RECIPES)
def test_packed_batches(name, isa, rng):
    """b is the number of the sequence, and positions are those within it."""
    lengths = [(5, 40), (0, 3), (30, 90), (1, 60)]
    q, k, v = (rng.standard_normal((n, h, 16)).astype(np.float32) for n, h in ((36, 4), (193, 2), (193, 2)))
    ends = [np.concatenate([[0], np.cumsum([pair[i] for pair in lengths])]) for i in range(2)]
    mods = recipe(name, 4, 4, 90, rng)
    out, lse = gqa.varlen_attention(q, k, v, *ends, return_lse=True, **mods)
    for n in range(4):
        rows, keys = (slice(end[n], end[n + 1]) for end in ends)
        parts = [x[None].swapaxes(1, 2) for x in (q[rows], k[keys], v[keys])]
        shifted = {key: in_batch_entry(mod, n) for key, mod in mods.items()}
        expected, expected_lse = oracle.attention(*parts, **shifted)
        assert_close(out[rows], expected[0].swapaxes(0, 1), 3.0)
        assert_lse_close(lse[:, rows], expected_lse[0])


def in_batch_entry(mod, n):
    """A score function for one entry of a batch alone."""

    def alone(*args):
        b = -4  # from the last: the score, if any, comes before it
        return mod(*args[:b], args[b] + n, *args[b + 1 :])

    return alone


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("window", [None, 40])
def test_caches(name, window, isa, rng):
    """Positions count all tokens of a sequence, those that a ring has dropped included."""
    cache = gqa.KVCache(2, 2, 128 if window is None else 48, 16, window=window)
    mods = recipe(name, 2, 4, 100, rng)
    q, k, v = tensors(rng, 100, 100)
    expected, _ = oracle.attention(q, k, v, causal=True, window=None if window is None else (window - 1, None), **mods)
    begin = 0
    for tokens in (30, 1, 1, 60, 5, 3):
        part = [x[:, :, begin : begin + tokens] for x in (q, k, v)]
        assert_close(cache.attend(*part, **mods), expected[:, :, begin : begin + tokens], 3.0)
        begin += tokens


@pytest.mark.parametrize("name", RECIPES)
def test_pages(name, isa, rng):
    """b is the index in ids."""
    cache = gqa.PagedKVCache(num_pages=40, page_size=8, kv_heads=2, head_dim=16)
    ids = [cache.add() for _ in range(3)]
    counts = [33, 1, 50]
    mods = recipe(name, 3, 4, 50, rng)
    q, k, v = (rng.standard_normal((84, h, 16)).astype(np.float32) for h in (4, 2, 2))
    out = cache.attend(ids, q, counts, k, v, **mods)
    begin = 0
    for n, count in enumerate(counts):
        rows = slice(begin, begin + count)
        parts = [x[rows][None].swapaxes(1, 2) for x in (q, k, v)]
        shifted = {key: in_batch_entry(mod, n) for key, mod in mods.items()}
        assert_close(out[rows], oracle.attention(*parts, causal=True, **shifted)[0][0].swapaxes(0, 1), 3.0)
        begin += count


@pytest.mark.parametrize("name", RECIPES)
def test_programs_and_functions_give_the_same_bits(name, rng):
    q, k, v = tensors(rng, 9, 70)
    mods = recipe(name, 2, 4, 70, rng)
    program = gqa.trace(**mods)
    expected = gqa.attention(q, k, v, **mods)
    assert_same_bits(gqa.attention(q, k, v, score_mod=program), expected)
    assert_same_bits(gqa.attention(q, k, v, mask_mod=program), expected)


@pytest.mark.parametrize("name", RECIPES)
def test_shapes(name, rng):
    q, k, v = tensors(rng, 9, 70)
    shapes = {"q": q.shape, "k": k.shape, "v": v.shape}
    found = gqa.infer_shapes(shapes, dict.fromkeys(shapes, "float32"), **recipe(name, 2, 4, 70, rng))
    assert found["out"] == (q.shape, "float32")
