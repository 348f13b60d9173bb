"""merge_states: attention over parts of the keys, put together, is attention over all of them."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gqa
import oracle
from compare import assert_close, assert_lse_close, assert_same_bits


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
