"""Captured arrays: of every dtype and stride, and never read outside, whatever the function computes as an index."""

import numpy as np
import pytest

from guarded import guarded
from score_program import Builder, attend, expected

FLOATS = (np.float16, np.float32, np.float64)
INTEGERS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)


def tensors(rng, queries, dtype):
    q = rng.standard_normal((2, 4, queries, 24)).astype(dtype)
    k, v = rng.standard_normal((2, 2, 2, 150, 24)).astype(dtype)
    return q, k, v


def check(q, k, v, build, tolerance=2e-5, **outputs):
    out = attend(q, k, v, build.bind(**outputs))
    np.testing.assert_allclose(out, expected(q, k, v, build, **outputs)[0], atol=tolerance)


@pytest.mark.parametrize("compute", [np.float32, np.float64])
@pytest.mark.parametrize("queries", [2, 50])
@pytest.mark.parametrize("dtype", FLOATS + INTEGERS + (np.bool_,))
def test_dtypes(isa, dtype, queries, compute, rng):
    q, k, v = tensors(rng, queries, compute)
    build = Builder()
    table = (rng.standard_normal((4, 150)) * 3).round(1)
    table = (np.abs(table) if dtype in INTEGERS and np.issubdtype(dtype, np.unsignedinteger) else table).astype(dtype)
    value = build.gather(table, build.input("h"), build.input("kv_idx"))
    if dtype not in FLOATS:
        value = build("to_float", "float", value)
    check(q, k, v, build, score=build("add", "float", build.input("score"), value))


@pytest.mark.parametrize("compute", [np.float32, np.float64])
@pytest.mark.parametrize("queries", [2, 50])
@pytest.mark.parametrize("layout", ["reversed", "strided", "transposed", "broadcast", "eight axes"])
def test_strides(isa, layout, queries, compute, rng):
    q, k, v = tensors(rng, queries, compute)
    build = Builder()
    table = {
        "reversed": rng.standard_normal((4, 150))[::-1, ::-1],
        "strided": rng.standard_normal((8, 300))[1::2, ::2],
        "transposed": rng.standard_normal((150, 4)).T,
        "broadcast": np.broadcast_to(rng.standard_normal(150), (4, 150)),
        "eight axes": rng.standard_normal((1, 1, 1, 1, 1, 1, 4, 150)),
    }[layout]
    zero = build.constant(0)
    indices = [zero] * (table.ndim - 2) + [build.input("h"), build.input("kv_idx")]
    value = build.gather(table, *indices)
    check(q, k, v, build, score=build("add", "float", build.input("score"), value))


@pytest.mark.parametrize("queries", [2, 50])
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("compute", [np.float32, np.float64])
def test_no_index_reads_outside(isa, compute, at_end, queries, rng):
    """Arrays between pages that cannot be read; indices that are far off in both directions, wrapped ones too."""
    q, k, v = tensors(rng, queries, compute)
    for factor in (-1, 1, 10**6, -(10**6), 2**31 - 1):
        build = Builder()
        score = build("mul", "float", build.input("score"), build.constant(1e30))
        far = build("mul", "whole", build.input("kv_idx"), build.constant(factor))
        indices = [build("to_whole", "whole", score), build("mul", "whole", far, far), far]
        for index in indices:
            for dtype in (np.float32, np.int32, np.bool_, np.float64):
                value = build.gather(guarded(rng.standard_normal(37).astype(dtype), at_end), index, from_end=(True,))
                kind = build.kind(value)
                value = value if kind == "float" else build("to_float", "float", value)
                score = build("add", "float", build.input("score"), value)
        mask = build("ne", "bool", build.gather(guarded(np.arange(9), at_end), far), build.constant(4))
        attend(q, k, v, build.bind(score=score, mask=mask))


def test_an_array_of_more_than_32_bits_of_bytes(isa, rng):
    """Elements too far apart for offsets of 32 bits: a view of few pages with enormous strides is beyond NumPy, so that
    a stride of 0 makes the array large and its elements few.
    """
    q, k, v = tensors(rng, 50, np.float32)
    build = Builder()
    wide = np.lib.stride_tricks.as_strided(rng.standard_normal(150).astype(np.float32), (2**33, 150), (0, 4))
    value = build.gather(wide, build.constant(2**31 - 1), build.input("kv_idx"))
    score = build("add", "float", build.input("score"), value)
    program = build.bind(score=score)
    small = Builder()
    value = small.gather(wide[0], small.input("kv_idx"))
    score = small("add", "float", small.input("score"), value)
    np.testing.assert_array_equal(attend(q, k, v, program), attend(q, k, v, small.bind(score=score)))


def test_arrays_are_read_at_the_call(isa, rng):
    q, k, v = tensors(rng, 50, np.float32)
    build = Builder()
    index = build("add", "whole", build.input("kv_idx"), build.constant(0))
    score = build("add", "float", build.input("score"), build.gather(np.zeros(150), index))
    program, _ = build.bind(score=score)
    for table in (rng.standard_normal(150), rng.standard_normal(20), rng.standard_normal(1)):  # shrunken ones too
        out = attend(q, k, v, (program, (table,)))
        build.arrays[0] = table
        np.testing.assert_allclose(out, expected(q, k, v, build, score=score)[0], atol=2e-5)
