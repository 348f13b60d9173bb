"""merge_states: attention over parts of the keys, put together, is attention over all of them."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gqa
import oracle
from compare import assert_close, assert_lse_close, assert_same_bits, ulps


def normal(rng, *shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def parts_of(q, k, v, cuts, **options):
    """(outs, lses) over the keys between the cuts."""
    slices = [slice(*ends) for ends in zip([0, *cuts], [*cuts, k.shape[2]])]
    parts = [gqa.attention(q, k[:, :, keys], v[:, :, keys], return_lse=True, **options) for keys in slices]
    return [out for out, _ in parts], [lse for _, lse in parts]


@pytest.mark.parametrize("cuts", [[], [20], [1, 2, 39], [0, 0, 7, 7, 40], list(range(1, 40))], ids=str)
def test_parts_make_the_whole(rng, isa, dtype, cuts):
    q, k, v = (normal(rng, 2, n, t, 16, dtype=dtype) for n, t in ((4, 3), (2, 40), (2, 40)))
    out, lse = gqa.merge_states(*parts_of(q, k, v, cuts))
    expected_out, expected_lse = oracle.attention(q, k, v)
    assert out.dtype == dtype
    assert lse.dtype == (np.float64 if dtype is np.float64 else np.float32)
    # The parts themselves were rounded to half precision.
    unit = np.abs(expected_out).max() * float(ml_dtypes.finfo(dtype).eps)
    assert_close(out, expected_out, magnitude=1 if out.dtype.itemsize > 2 else unit / 2e-6)
    assert_lse_close(lse, expected_lse)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from([np.float32, np.float64]))
def test_any_number_in_any_order(count, seed, dtype):
    """Against the definition in longdouble: one rounding is all that a merge adds."""
    rng = np.random.default_rng(seed)
    outs = [normal(rng, 3, 2, dtype=dtype) for _ in range(count)]
    lses = [(30 * normal(rng, 3)).astype(dtype) for _ in range(count)]
    for out, lse in zip(outs, lses):
        empty = rng.random(3) < 0.3
        out[empty], lse[empty] = 0, -np.inf
    out, lse = gqa.merge_states(outs, lses)
    weights = np.exp(np.array(lses, np.longdouble))
    total = weights.sum(0)
    eps = np.finfo(dtype).eps
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.nan_to_num((weights[..., None] * outs).sum(0) / total[..., None])
        np.testing.assert_allclose(lse.astype(np.longdouble), np.log(total), rtol=2 * eps, atol=2 * eps)
    np.testing.assert_allclose(out.astype(np.longdouble), expected, rtol=2 * eps, atol=2 * eps)
    order = rng.permutation(count)
    again, again_lse = gqa.merge_states([outs[i] for i in order], [lses[i] for i in order])
    np.testing.assert_allclose(again, out, rtol=2 * eps, atol=2 * eps)
    np.testing.assert_allclose(again_lse, lse, rtol=2 * eps, atol=2 * eps)


@pytest.mark.parametrize("narrow", [np.float16, ml_dtypes.bfloat16])
def test_float32_parts_of_half_precision_are_rounded_once(rng, isa, narrow):
    """As the truth rounded, but for what a float32 sum leaves undecided; of rounded parts many elements differ."""
    q, k, v = (normal(rng, 2, n, t, 64, dtype=narrow) for n, t in ((8, 16), (2, 800), (2, 800)))
    truth = oracle.attention(q, k, v)[0]
    wide = parts_of(q, k, v, range(100, 800, 100), out_dtype="float32")
    out, lse = gqa.merge_states(*wide, dtype=narrow)
    assert (out.dtype, lse.dtype) == (narrow, np.float32)
    assert np.mean(ulps(out, truth) <= 1) > 0.999
    assert np.mean(ulps(out, truth) > 0) < 0.005
    rounded, _ = gqa.merge_states(*parts_of(q, k, v, range(100, 800, 100)))
    assert np.mean(ulps(rounded, truth) > 0) > 0.2


def test_the_result_is_rounded_once_from_float64(rng, isa):
    """Also where float32, on the way, would be halfway between two neighbours of half precision."""
    x = 1 + np.arange(1, 60) * 2.0**-11
    x = np.concatenate([sign * (x + tiny) for sign in (1, -1) for tiny in (0, 2.0**-40, -(2.0**-40), 2.0**-26)])
    x = np.concatenate([x, x * 2.0**-20, rng.standard_normal(100), [0, -0.0, np.inf, -np.inf, 7e4, 3e-8]])
    for step, target in ((2.0**-10, np.float16), (2.0**-7, ml_dtypes.bfloat16)):
        merged, _ = gqa.merge_states([x], [np.float64(3)[...]], dtype=target)
        assert_same_bits(gqa.merge_states([np.stack([x, -x])], [np.zeros(2)], dtype=target)[0][0], merged)
        if target is np.float16:
            with np.errstate(over="ignore"):
                assert_same_bits(merged, x.astype(np.float16))
        else:  # the nearest multiple of its last place, to even
            finite = np.isfinite(x) & (np.abs(x) > 1e-6)
            unit = np.exp2(np.floor(np.log2(np.abs(x[finite])))) * step
            assert_same_bits(merged.astype(np.float64)[finite], np.rint(x[finite] / unit) * unit)


TYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)


@pytest.mark.parametrize("channels", [1, 7, 64, 67, 130])
def test_parts_of_any_types_and_strides(rng, isa, channels):
    """Bits follow from the values: not from types that hold them, nor from where they lie."""
    outs = [normal(rng, 3, 4, 5, channels, dtype=TYPES[i % 4]) for i in range(5)]
    lses = [normal(rng, 3, 4, 5, dtype=TYPES[(i + i // 4) % 4]) for i in range(5)]
    expected, expected_lse = gqa.merge_states(
        [x.astype(np.float64) for x in outs], [x.astype(np.float64) for x in lses], dtype=np.float32
    )
    elsewhere = [
        lambda x: x,
        lambda x: x.copy("F"),
        lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
        lambda x: np.ascontiguousarray(x[::-1, :, ::-1])[::-1, :, ::-1],
        lambda x: np.repeat(x, 3, axis=1)[:, 1::3],
    ]
    for turn in range(len(elsewhere)):
        places = elsewhere[turn:] + elsewhere[:turn]
        given = [place(x) for place, x in zip(places, outs)], [place(x) for place, x in zip(places, lses)]
        out = places[0](np.zeros_like(expected))
        merged, lse = gqa.merge_states(*given, dtype="float32", out=out)
        assert merged is out
        assert_same_bits(merged.copy(), expected)
        assert_same_bits(lse, expected_lse)


def test_broadcast_parts(rng):
    out, lse = normal(rng, 1, 5, 8), normal(rng, 3, 1)
    parts = [np.broadcast_to(out, (3, 5, 8)), np.broadcast_to(lse, (3, 5))]
    merged, merged_lse = gqa.merge_states(parts[:1] * 2, parts[1:] * 2)
    again, again_lse = gqa.merge_states([parts[0].copy()] * 2, [parts[1].copy()] * 2)
    assert_same_bits(merged, again)
    assert_same_bits(merged_lse, again_lse)


def test_the_number_of_threads_changes_nothing(rng, isa, dtype):
    outs = [normal(rng, 7, 311, 48, dtype=dtype).swapaxes(0, 1) for _ in range(6)]
    lses = [normal(rng, 311, 7) for _ in range(6)]
    results = [gqa.merge_states(outs, lses, num_threads=threads) for threads in (1, 2, 5, 1000, None)]
    for out, lse in results:
        assert_same_bits(out, results[0][0])
        assert_same_bits(lse, results[0][1])
    row, row_lse = gqa.merge_states([x[100] for x in outs], [x[100] for x in lses])
    assert_same_bits(row, results[0][0][100])
    assert_same_bits(row_lse, results[0][1][100])


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 0, 4), (1,) * 30])
def test_shapes_without_rows_or_channels(shape):
    out, lse = gqa.merge_states([np.ones(shape)] * 2, [np.zeros(shape[:-1])] * 2)
    assert out.shape == shape
    np.testing.assert_allclose(lse, np.full(shape[:-1], np.log(2)))


def test_zeros_keep_their_sign(dtype):
    x = np.array([[0.0, -0.0]] * 2, dtype)
    assert_same_bits(gqa.merge_states([x, x], [np.zeros(2)] * 2, dtype=dtype)[0], x)


def test_interleaved_with_an_input_without_sharing_memory(rng):
    whole = normal(rng, 4, 2, 6)
    part, out = whole[:, 0], whole[:, 1]
    lse, kept = normal(rng, 4), part.copy()
    expected, _ = gqa.merge_states([kept], [lse])
    merged, _ = gqa.merge_states([part], [lse], out=out)
    assert merged is out
    assert_same_bits(out.copy(), expected)
    assert_same_bits(part.copy(), kept)


def test_one_part_stays_as_it_is(rng, dtype):
    out = normal(rng, 2, 3, 5, dtype=dtype)
    lse = normal(rng, 2, 3, dtype=np.float64 if dtype is np.float64 else np.float32)
    merged = gqa.merge_states([out], [lse])
    assert_same_bits(merged[0], out)
    assert_same_bits(merged[1], lse)


def test_parts_without_keys_change_nothing(rng):
    out, lse = normal(rng, 4, 5), normal(rng, 4)
    empty = np.zeros_like(out), np.full_like(lse, -np.inf)
    merged = gqa.merge_states([empty[0], out, empty[0]], [empty[1], lse, empty[1]])
    assert_same_bits(merged[0], out)
    assert_same_bits(merged[1], lse)
    merged = gqa.merge_states([empty[0]] * 3, [empty[1]] * 3)
    assert_same_bits(merged[0], empty[0])
    assert_same_bits(merged[1], empty[1])


def test_what_a_part_without_keys_holds_does_not_matter():
    out = np.array([[np.nan, np.inf], [1, 2]], np.float32)
    merged, lse = gqa.merge_states(
        [out, out[::-1]], [np.array([-np.inf, 3], np.float32), np.array([3, -np.inf], np.float32)]
    )
    assert (merged == [1, 2]).all()
    assert (lse == 3).all()


@pytest.mark.parametrize("level", [-3e38, -1e5, 0, 1e5, 3e38])
def test_no_overflow(level):
    outs = [np.full((1, 2), x, np.float32) for x in (1, 3)]
    out, lse = gqa.merge_states(outs, [np.array([level], np.float32)] * 2)
    assert (out == 2).all()
    np.testing.assert_allclose(lse, level + np.log(2), rtol=1e-6)
    out, lse = gqa.merge_states(outs, [np.array([x], np.float32) for x in (level, level / 2 - 200)])
    assert np.isfinite(out).all()
    assert np.isfinite(lse).all()


def test_nan_stays_in_its_row():
    outs = [np.array([[np.nan], [1]], np.float32), np.array([[2], [3]], np.float32)]
    out, lse = gqa.merge_states(outs, [np.array([np.nan, 0], np.float32), np.zeros(2, np.float32)])
    assert np.isnan(out[0]).all()
    assert np.isnan(lse[0])
    assert out[1] == 2


def test_sinks_belong_to_one_part(rng):
    q, k, v = normal(rng, 1, 4, 3, 8), normal(rng, 1, 2, 20, 8), normal(rng, 1, 2, 20, 8)
    sinks = normal(rng, 4)
    first = gqa.attention(q, k[:, :, :6], v[:, :, :6], sinks=sinks, return_lse=True)
    second = gqa.attention(q, k[:, :, 6:], v[:, :, 6:], return_lse=True)
    out, lse = gqa.merge_states(*zip(first, second))
    expected_out, expected_lse = oracle.attention(q, k, v, sinks=sinks)
    assert_close(out, expected_out)
    assert_lse_close(lse, expected_lse)


def test_stacked_parts_and_inputs_left_alone(rng):
    outs, lses = normal(rng, 3, 4, 5), normal(rng, 3, 4)
    before = outs.copy(), lses.copy()
    stacked = gqa.merge_states(outs, lses)
    assert_same_bits(outs, before[0])
    assert_same_bits(lses, before[1])
    assert_same_bits(stacked[0], gqa.merge_states(list(outs), tuple(lses))[0])


def test_mixed_dtypes(rng):
    out, lse = gqa.merge_states([normal(rng, 4, 5, dtype=np.float16), normal(rng, 4, 5)], [normal(rng, 4)] * 2)
    assert (out.dtype, lse.dtype) == (np.float16, np.float32)
    out, lse = gqa.merge_states(
        [normal(rng, 4, 5), normal(rng, 4, 5)], [normal(rng, 4), normal(rng, 4, dtype=np.float64)]
    )
    assert (out.dtype, lse.dtype) == (np.float32, np.float64)


X, LSE = np.ones((2, 3), np.float32), np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"out": X}, ValueError, r"out overlaps outs\[0\] in memory"),
        ({"out": X[::-1]}, ValueError, r"out overlaps outs\[0\] in memory"),
        ({"out": np.ones((2, 3))}, TypeError, r"out has dtype float64, expected float32 as outs\[0\]"),
        ({"out": X.copy(), "dtype": "float64"}, TypeError, "out has dtype float32, expected float64 as dtype"),
        ({"out": np.ones((3, 2), np.float32)}, ValueError, r"out has shape \(3, 2\), expected \(2, 3\)"),
        ({"out": [[1.0]]}, TypeError, "out is a list"),
        ({"out": np.broadcast_to(np.float32(1), (2, 3))}, ValueError, "out is read-only"),
        ({"out": np.lib.stride_tricks.as_strided(np.ones(3, np.float32), (2, 3), (0, 4))}, ValueError, "share memory"),
        ({"dtype": "int8"}, TypeError, "dtype is int8, expected float32, float64"),
        ({"dtype": ">f4"}, TypeError, "native byte order"),
        ({"num_threads": 0}, ValueError, "num_threads is 0, expected at least 1"),
        ({"num_threads": "2"}, TypeError, "num_threads is '2'"),
    ],
)
def test_wrong_options(options, error, message):
    before = X.copy()
    with pytest.raises(error, match=message):
        gqa.merge_states([X], [LSE], **options)
    assert_same_bits(X, before)


@pytest.mark.parametrize(
    ("outs", "lses", "error", "message"),
    [
        ([], [], ValueError, "there are 0 outs and 0 lses"),
        ([np.ones((2, 3))], [], ValueError, "there are 1 outs and 0 lses"),
        ([np.ones((2, 3))] * 2, [np.ones(2), np.ones(3)], ValueError, r"lses\[1\] has shape \(3,\), expected \(2,\)"),
        (
            [np.ones((2, 3)), np.ones((2, 4))],
            [np.ones(2)] * 2,
            ValueError,
            r"outs\[1\] has shape \(2, 4\), expected \(2, 3\)",
        ),
        ([np.ones((2, 3))], [np.ones((2, 3))], ValueError, r"lses\[0\] has shape \(2, 3\), expected \(2,\)"),
        ([np.array(1.0)], [np.array(1.0)], ValueError, r"outs\[0\] has shape \(\)"),
        ([np.ones((2, 3), int)], [np.ones(2)], TypeError, r"outs\[0\] has dtype int64"),
        ([np.ones((2, 3))], [np.ones(2, np.int8)], TypeError, r"lses\[0\] has dtype int8"),
        ([np.ones((2, 3)).astype(">f8")], [np.ones(2)], TypeError, r"outs\[0\] has dtype '>f8'"),
        ([[[1.0]]], [np.ones(1)], TypeError, r"outs\[0\] is a list"),
    ],
)
def test_refused(outs, lses, error, message):
    with pytest.raises(error, match=message):
        gqa.merge_states(outs, lses)
