"""Keys that a program hides from all rows near them are not read: a page of memory with nothing else cannot be."""

import itertools

import numpy as np
import pytest

from gqa.options import Options
from guarded import readable_pages
from score_program import Builder, attend, expected

KEYS = 1600
# Positions of the same document, in pages of 16 keys: 64 channels of float32.
DOCUMENTS = np.repeat(np.arange(10), [160, 16, 320, 64, 400, 16, 160, 240, 64, 160])


def distance(build):
    return build("sub", "whole", build.input("q_idx"), build.input("kv_idx"))


def causal(build):
    return build("le", "bool", build.input("kv_idx"), build.input("q_idx"))


def window(build):
    return build("and", "bool", causal(build), build("lt", "bool", distance(build), build.constant(100)))


def documents(build):
    ids = (build.gather(DOCUMENTS, build.input(i)) for i in ("q_idx", "kv_idx"))
    return build("eq", "bool", *ids)


def diagonal(build):
    return build("eq", "bool", build.input("q_idx"), build.input("kv_idx"))


def dilated(build):
    """Blocks of 64 keys, every fourth one."""
    block = build("floordiv", "whole", build.input("kv_idx"), build.constant(64))
    return build("eq", "bool", build("mod", "whole", block, build.constant(4)), build.constant(1))


def prefix(build):
    return build("or", "bool", diagonal(build), build("lt", "bool", build.input("kv_idx"), build.constant(70)))


def blocks(build):
    """A table of blocks, of two axes."""
    table = np.random.default_rng(3).random((25, 25)) < 0.2
    indices = (build("shr", "whole", build.input(i), build.constant(6)) for i in ("q_idx", "kv_idx"))
    return build.gather(table, *indices)


def by_float(build):
    far = build("abs", "float", build("to_float", "float", distance(build)))
    return build("lt", "bool", build("mul", "float", far, build.constant(0.5)), build.constant(30.0))


def per_head(build):
    widths = build.gather(np.array([40, 400]), build.input("h"))
    return build("lt", "bool", build("abs", "whole", distance(build)), widths)


def nothing(build):
    return build("lt", "bool", build.input("kv_idx"), build.constant(-1))


MASKS = (causal, window, documents, diagonal, dilated, prefix, blocks, by_float, per_head, nothing)


def tensors(rng, heads, kv_heads, queries, dtype=np.float32):
    q = rng.standard_normal((1, heads, queries, 64)).astype(dtype)
    k, v = rng.standard_normal((2, 1, kv_heads, KEYS, 64)).astype(dtype)
    return q, k, v


def near_attended(attended, block, rows):
    """Keys [block] of which some are attended by some of as many consecutive queries."""
    queries, keys = attended.shape
    near = np.zeros(keys, bool)
    for i, j in itertools.product(range(0, queries, rows), range(0, keys, block)):
        near[j : j + block] |= attended[i : i + rows, j : j + block].any()
    return near


@pytest.mark.parametrize("queries", [1, 5, 70, 600])
@pytest.mark.parametrize("mask", MASKS, ids=lambda f: f.__name__)
def test_hidden_blocks_are_not_read(isa, mask, queries, rng):
    q, k, v = tensors(rng, 2, 2, queries)
    build = Builder()
    value = mask(build)
    program = build.bind(mask=value)
    out, lse = attend(q, k, v, program, return_lse=True)
    wanted, wanted_lse = expected(q, k, v, build, mask=value)
    np.testing.assert_allclose(out, wanted, atol=2e-6)
    np.testing.assert_allclose(lse, wanted_lse, atol=1e-5)

    heads = np.arange(2)[:, None, None]
    positions = np.arange(queries)[:, None] + KEYS - queries
    attended = build.values(np.zeros(1), np.zeros(1, int), heads, positions, np.arange(KEYS))[value]
    attended = np.broadcast_to(attended, (2, queries, KEYS))
    # Blocks of 96 keys, or 64 within larger ones: whatever has an attended key may be read, on either grid.
    near = np.array([near_attended(a, 96, queries) | near_attended(a, 64, queries) for a in attended])
    assert mask is causal or queries > 5 or near.mean() < 0.9
    k, v = (readable_pages(x, near[None, :, :, None]) for x in (k, v))
    np.testing.assert_array_equal(attend(q, k, v, program), out)


@pytest.mark.parametrize("queries", [4, 90])
def test_a_score_of_minus_infinity_hides(isa, queries, rng):
    q, k, v = tensors(rng, 4, 2, queries)
    build = Builder()
    kept = window(build)
    score = build("where", "float", kept, build.input("score"), build.constant(-np.inf))
    out = attend(q, k, v, build.bind(score=score))
    np.testing.assert_allclose(out, expected(q, k, v, build, score=score)[0], atol=2e-6)
    hidden = np.arange(KEYS) < KEYS - queries - 99
    k[:, :, hidden] = np.nan
    v[:, :, hidden] = np.nan
    np.testing.assert_array_equal(attend(q, k, v, build.bind(score=score)), out)
    far = np.arange(KEYS) < (KEYS - queries - 99) // 768 * 768
    k, v = (readable_pages(x, ~far[:, None]) for x in (k, v))
    np.testing.assert_array_equal(attend(q, k, v, build.bind(score=score)), out)


@pytest.mark.parametrize("queries", [3, 100])
@pytest.mark.parametrize("mask", [causal, window, documents, blocks], ids=lambda f: f.__name__)
def test_a_mask_found_by_ranges_is_the_one_asked_for_score_by_score(isa, mask, queries, rng):
    """A remainder of floats, which ranges know nothing of, joins the mask: to the last bit the same result."""
    q, k, v = tensors(rng, 4, 2, queries)
    build = Builder()
    value = mask(build)
    unknown = build("mod", "float", build("to_float", "float", build.input("kv_idx")), build.constant(1.0))
    slow = build("and", "bool", value, build("eq", "bool", unknown, build.constant(0.0)))
    np.testing.assert_array_equal(
        attend(q, k, v, build.bind(mask=value)), attend(q, k, v, build.bind(mask=slow))
    )  # fmt: skip


@pytest.mark.parametrize("mask", MASKS, ids=lambda f: f.__name__)
def test_bits_do_not_depend_on_threads_or_batch(isa, mask, threads, rng):
    q, k, v = tensors(rng, 4, 2, 300)
    build = Builder()
    program = build.bind(mask=mask(build))
    alone = attend(q, k, v, program, num_threads=1)
    three = [np.concatenate([x, x[:, :, ::-1], x]) for x in (q, k, v)]
    together = attend(*three, program, num_threads=threads)
    np.testing.assert_array_equal(together[[0, 2]], np.concatenate([alone, alone]))


@pytest.mark.parametrize("head", range(3))
def test_one_head_of_a_group_that_tiles_of_rows_cut(isa, head, rng):
    q, k, v = tensors(rng, 6, 2, 70)
    build = Builder()
    h = build("mod", "whole", build.input("h"), build.constant(3))
    value = build("eq", "bool", h, build.constant(head))
    out = attend(q, k, v, build.bind(mask=value))
    np.testing.assert_allclose(out, expected(q, k, v, build, mask=value)[0], atol=2e-6)


@pytest.mark.parametrize("queries", [2, 64])
def test_causal_windows_and_lengths_join_a_mask(isa, queries, rng):
    q, k, v = tensors(rng, 4, 2, queries)
    build = Builder()
    program = build.bind(mask=documents(build))
    native = attend(q, k, v, program, causal=True, window=(120, None))
    both = build("and", "bool", build("and", "bool", causal(build), documents(build)),
                 build("le", "bool", distance(build), build.constant(120)))  # fmt: skip
    np.testing.assert_allclose(native, expected(q, k, v, build, mask=both)[0], atol=2e-6)
    assert Options._fields[-4] == "program"
