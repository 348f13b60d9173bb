"""What masks: only False, -inf, positions and lengths. Rows without keys, broadcasting, extreme scores."""

import ml_dtypes
import numpy as np
import pytest

import gqa
import oracle
from axes import DTYPES
from cases import tensors
from compare import assert_close, assert_lse_close, assert_same_bits, naming


def check(q, k, v, **options):
    out, lse = gqa.attention(q, k, v, return_lse=True, **options)
    expected_out, expected_lse = oracle.attention(q, k, v, **options)
    assert_close(out, expected_out)
    assert_lse_close(lse, expected_lse)
    return out, lse


# ---- rows without keys ----------------------------------------------------------------------------------------------


def hide(how, queries, keys):
    """Options that leave no key to any row of the first batch entry."""
    mask = np.ones((2, 1, queries, keys), bool)
    mask[0] = False
    return {
        "bool mask": {"mask": mask},
        "float mask": {"mask": np.where(mask, 0.5, -np.inf).astype(np.float32)},
        "lengths": {"kv_lengths": np.array([0, keys])},
        "causal": {"causal": True, "query_offset": np.array([-queries, keys - queries])},
        "left of the window": {"window": (2, None), "query_offset": np.array([keys + 2, 0])},
        "right of the window": {"window": (None, 1), "query_offset": np.array([-queries - 1, 0])},
    }[how]


HOW = pytest.mark.parametrize(
    "how", ["bool mask", "float mask", "lengths", "causal", "left of the window", "right of the window"]
)


@HOW
def test_rows_without_keys_are_zero(isa, rng, dtype, size, how):
    q, k, v = tensors(rng, *size, dtype)
    out, lse = check(q, k, v, **hide(how, *size))
    assert not out[0].any()
    assert np.isneginf(lse[0]).all()
    assert np.isfinite(lse[1]).all()


@HOW
def test_rows_without_keys_have_their_sink_as_lse(isa, rng, dtype, size, how):
    q, k, v = tensors(rng, *size, dtype)
    sinks = np.array([-3.0, 0.0, 2.5, 40.0], np.float32)
    out, lse = check(q, k, v, sinks=sinks, **hide(how, *size))
    assert not out[0].any()
    assert_lse_close(lse[0], np.repeat(sinks.astype(np.float64)[:, None], size[0], 1))


def test_no_keys_at_all(isa, rng, dtype):
    q, k, v = tensors(rng, 21, 0, dtype)
    for options in (
        {},
        {"causal": True},
        {"mask": np.ones((21, 1), bool)},
        {"mask": np.ones((21, 0), bool)},
        {"kv_lengths": [0, 0]},
    ):
        out, lse = gqa.attention(q, k, v, return_lse=True, **options)
        assert out.shape == (2, 4, 21, 12)
        assert not out.any()
        assert np.isneginf(lse).all()


# ---- only False and -inf mask ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_dtype", DTYPES)
def test_a_row_of_the_lowest_finite_mask_is_an_ordinary_row(isa, rng, dtype, mask_dtype, size):
    """The scores drown in it, so all keys weigh the same."""
    q, k, v = tensors(rng, *size, dtype)
    mask = np.full((1, 1), ml_dtypes.finfo(DTYPES[mask_dtype]).min)
    out, lse = gqa.attention(q, k, v, mask=mask, return_lse=True)
    if mask_dtype == "float16":
        assert_close(out, oracle.attention(q, k, v)[0], magnitude=2000)  # -65504 leaves the scores 7 bits in float32
    else:
        mean = np.repeat(v.astype(np.float64).mean(2, keepdims=True), 2, 1)
        assert_close(out, np.broadcast_to(mean, out.shape))
    assert np.isfinite(lse).all()


@pytest.mark.parametrize("value", [-1e4, -3e38, 3e38])
def test_one_key_of_another_finite_mask_value(isa, rng, size, value):
    q, k, v = tensors(rng, *size)
    mask = np.zeros(size[1], np.float32)
    mask[size[1] // 2] = value
    out, lse = gqa.attention(q, k, v, mask=mask, return_lse=True)
    assert_close(out, oracle.attention(q, k, v, mask=mask)[0])
    assert np.isfinite(lse).all()  # near the largest number it saturates


def test_positive_infinity_in_a_mask_is_not_a_number(isa, rng, size):
    q, k, v = tensors(rng, *size)
    mask = np.zeros(size, np.float32)
    mask[0, 1] = np.inf
    out, _ = gqa.attention(q, k, v, mask=mask, return_lse=True)
    assert np.isnan(out[:, :, 0]).all()
    assert np.isfinite(out[:, :, 1:]).all()


def test_any_byte_but_zero_is_true(isa, rng, size):
    q, k, v = tensors(rng, *size)
    mask = rng.integers(0, 2, size).astype(np.uint8) * rng.integers(1, 256, size).astype(np.uint8)
    expected = gqa.attention(q, k, v, mask=mask != 0)
    assert_same_bits(gqa.attention(q, k, v, mask=mask.view(bool)), expected)


# ---- broadcasting ---------------------------------------------------------------------------------------------------


SHAPES = [
    (), (1,), ("T",), ("S", 1), (1, "T"), ("S", "T"), ("H", 1, 1), ("H", "S", "T"), (1, "S", "T"), ("H", 1, "T"),
    ("H", "S", 1), ("B", 1, 1, 1), ("B", 1, 1, "T"), ("B", 1, "S", "T"), (1, "H", "S", 1), (1, 1, 1, 1),
    ("B", "H", "S", "T"),
]  # fmt: skip


def masks(rng, shape, size):
    """A bool and a float mask of a shape named by axes."""
    sizes = {"B": 2, "H": 4, "S": size[0], "T": size[1], 1: 1}
    mask = np.asarray(rng.standard_normal([sizes[n] for n in shape]), np.float32)
    return np.asarray(mask > -0.5), mask


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_mask_broadcasts_by_numpy_rules_in_any_layout(isa, rng, size, shape):
    q, k, v = tensors(rng, *size)
    for mask in masks(rng, shape, size):
        with naming(mask.dtype):
            out, _ = check(q, k, v, mask=mask)
            swapped = (x.swapaxes(1, 2) for x in (q, k, v))
            assert_same_bits(gqa.attention(*swapped, mask=mask, layout="bshd").swapaxes(1, 2), out)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if len(shape) <= 3], ids=str)
def test_a_mask_without_the_batch(isa, rng, size, shape):
    q, k, v = (x[0] for x in tensors(rng, *size))
    for mask in masks(rng, shape, size):
        with naming(mask.dtype):
            check(q, k, v, mask=mask)


def test_a_mask_spans_all_keys_also_where_lengths_are_given(isa, rng, size):
    q, k, v = tensors(rng, *size)
    mask = rng.random(size) < 0.8
    check(q, k, v, mask=mask, kv_lengths=np.array([size[1] - 3, size[1] // 2]))
    with pytest.raises(ValueError, match="mask"):
        gqa.attention(q, k, v, mask=mask[:, :-3], kv_lengths=np.full(2, size[1] - 3))


# ---- extreme logits -------------------------------------------------------------------------------------------------


def test_extreme_logits(isa, rng, dtype, size):
    """Up to 1e4 and down to -1e4, far apart: each row has one winner, or equals that tie."""
    queries, keys = size
    q, k, v = tensors(rng, queries, keys, dtype)
    q[...], k[...] = 0, 0
    q[..., 0] = 1
    k[..., 0] = rng.integers(-2, 3, (2, 2, keys)) * 64  # exact in every dtype
    check(q, k, v, scale=1e4 / 128)
    check(q, k, v, scale=-1e4 / 128)
    k[..., 0] = -128  # the highest score is the lowest
    check(q, k, v, scale=1e4 / 128)


def test_sinks_join_the_denominator_only(isa, rng, dtype, size):
    q, k, v = tensors(rng, *size, dtype)
    check(q, k, v, sinks=np.array([-1e4, -1.0, 0.0, 2.0]).astype(dtype))
    out, lse = check(q, k, v, sinks=np.array([-np.inf, 1e4, 0.0, 5.0]).astype(dtype))
    plain, plain_lse = gqa.attention(q, k, v, return_lse=True)
    assert_same_bits(out[:, 0], plain[:, 0])
    assert_same_bits(lse[:, 0], plain_lse[:, 0])
    assert not out[:, 1].any()
