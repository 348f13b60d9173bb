"""quantize: int8 with one scale per row, symmetric, rounding half to even; Quantized: accepted as k and v."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import gqa
import oracle
from compare import assert_close, assert_same_bits

TINY = np.finfo(np.float32).tiny


def test_rounds_half_to_even():
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]], np.float32)
    quantized = gqa.quantize(x)
    assert quantized.scale.tolist() == [1]
    assert quantized.data.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]


def test_is_symmetric(rng, dtype):
    x = rng.standard_normal((3, 4, 16)).astype(dtype)
    plus, minus = gqa.quantize(x), gqa.quantize(-x)
    assert_same_bits(plus.data, -minus.data)
    assert_same_bits(plus.scale, minus.scale)
    assert np.abs(plus.data).max(axis=-1).tolist() == [[127] * 4] * 3


def test_scale_of_each_token_and_head(rng, dtype):
    x = rng.standard_normal((2, 3, 5, 16)).astype(dtype)
    quantized = gqa.quantize(x)
    assert (quantized.data.dtype, quantized.scale.dtype) == (np.int8, np.float32)
    assert quantized.scale.shape == (2, 3, 5)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(quantized.scale, np.abs(wide).max(-1) / 127, rtol=2e-7)
    np.testing.assert_array_equal(
        quantized.data,
        np.rint(x.astype(np.float64 if dtype == np.float64 else np.float32) / quantized.scale[..., None]),
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(arrays.arrays(np.float32, (3, 4), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_error_is_at_most_half_a_step(x):
    quantized = gqa.quantize(x)
    error = np.abs(quantized.data * quantized.scale[:, None].astype(np.float64) - x)
    assert (error <= quantized.scale[:, None] * (0.5 + 127 * 2**-24)).all()
    assert (quantized.scale <= np.maximum(np.abs(x).max(-1) / np.float32(127), TINY)).all()


def test_rows_of_zeros_and_subnormals():
    quantized = gqa.quantize(np.array([[0, 0], [1e-45, -1e-40], [TINY, -TINY]], np.float32))
    assert quantized.data.tolist() == [[0, 0], [0, 0], [1, -1]]
    assert (quantized.scale == TINY).all()
    assert not gqa.quantize(np.zeros((2, 3), np.float64)).dequantize().any()


def test_large_values():
    largest = np.finfo(np.float32).max
    quantized = gqa.quantize(np.array([[largest, -largest]], np.float32))
    assert quantized.data.tolist() == [[127, -127]]
    assert np.isfinite(quantized.scale).all()
    assert gqa.quantize(np.array([[65504]], np.float16)).data.tolist() == [[127]]


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3)], ids=str)
def test_empty(shape):
    quantized = gqa.quantize(np.zeros(shape, np.float32))
    assert quantized.data.shape == shape
    assert quantized.scale.shape == shape[:-1]


def test_leaves_its_input_alone_and_reads_any_strides(rng):
    x = rng.standard_normal((4, 6, 8)).astype(np.float32)
    before = x.copy()
    quantized = gqa.quantize(x)
    assert_same_bits(x, before)
    assert_same_bits(gqa.quantize(x.transpose(1, 0, 2)).data, quantized.data.transpose(1, 0, 2).copy())
    assert_same_bits(gqa.quantize(x[:, ::-1]).scale, quantized.scale[:, ::-1].copy())


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("queries", [1, 7, 40])
def test_attention_over_quantised_keys_and_values(rng, isa, dtype, layout, queries):
    q = rng.standard_normal((2, 4, queries, 32)).astype(dtype)
    tensors = [gqa.quantize(rng.standard_normal((2, 2, n, 32))) for n in (300, 300, 50, 50)]
    names = ("past_key", "past_value", "k", "v")
    if layout == "bshd":
        q, tensors = q.swapaxes(1, 2), [gqa.Quantized(x.data.swapaxes(1, 2), x.scale.swapaxes(1, 2)) for x in tensors]
    call = dict(zip(names, tensors)) | {"layout": layout, "causal": True}
    out = gqa.attention(q, **call)
    assert_close(out, oracle.attention(q, **call)[0])
    mixed = call | {"k": tensors[2].dequantize()}
    assert_close(gqa.attention(q, **mixed), oracle.attention(q, **mixed)[0])


def test_rows_of_a_quantised_array(rng):
    x = gqa.quantize(rng.standard_normal((3, 4, 5, 8)))
    assert x.shape == (3, 4, 5, 8)
    assert x.nbytes == 3 * 4 * 5 * (8 + 4)
    part = x[1:, :, -2:]
    assert_same_bits(part.data, x.data[1:, :, -2:])
    assert_same_bits(part.scale, x.scale[1:, :, -2:])
    assert np.shares_memory(part.data, x.data)
    np.testing.assert_array_equal(x.dequantize(), x.data * x.scale[..., None])
    with pytest.raises(ValueError, match="scale has shape"):
        x[..., :4]


def test_quantized_cannot_be_changed_in_place_and_checks_itself():
    data, scale = np.zeros((2, 3), np.int8), np.ones(2, np.float32)
    with pytest.raises(dataclasses.FrozenInstanceError):
        gqa.Quantized(data, scale).scale = scale
    for wrong in ((data.astype(np.int16), scale), (data, scale.astype(np.float64))):
        with pytest.raises(TypeError, match="expected int8 and float32"):
            gqa.Quantized(*wrong)
    with pytest.raises(TypeError, match="data is a list"):
        gqa.Quantized([[1]], scale)
    for wrong in (scale[:1], scale[:, None], np.array(scale[0])):
        with pytest.raises(ValueError, match=r"scale has shape .*, expected \(2,\)"):
            gqa.Quantized(data, wrong)


@pytest.mark.parametrize("deviation", [0.5, 1, 1.5, 2, 5, 10])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_large_logits_keep_the_bits_of_queries(isa, rng, head_dim, deviation):
    """Within 2e-5 of attention over the dequantised keys, for any keys and queries of any size."""
    for keys in (511, 512, 4096):
        q = deviation * rng.standard_normal((1, 8, 1, head_dim), np.float32)
        k, v = (gqa.quantize(x) for x in rng.standard_normal((2, 1, 2, keys, head_dim), np.float32))
        expected, _ = oracle.attention(q, k, v)
        assert np.abs(gqa.attention(q, k, v) - expected).max() < 2e-5


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("head_dim", [500, 511, 512, 513, 1024])
def test_the_largest_sums_do_not_overflow(isa, head_dim, sign):
    """All channels of q and k at their limits: the lse is their product, to what float32 loses in equal terms.

    The scale is so small that logits are precise enough for integers.
    """
    keys = gqa.Quantized(np.full((1, 1, 700, head_dim), -128, np.int8), np.full((1, 1, 700), 1 / 1024, np.float32))
    for rows in (1, 2, 4):
        q = np.full((1, rows, 1, head_dim), sign, np.float32)
        _, lse = gqa.attention(q, keys, np.zeros((1, 1, 700, 4), np.float32), scale=1.0, return_lse=True)
        np.testing.assert_allclose(lse, np.full((1, rows, 1), -sign * head_dim / 8 + np.log(700)), rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (np.array([1, np.nan], np.float32), {}, ValueError, "x holds NaN"),
        (np.array([1, -np.inf], np.float16), {}, ValueError, "x holds NaN, infinity"),
        (np.array([np.nan], ml_dtypes.bfloat16), {}, ValueError, "x holds NaN"),
        (np.array([1e300]), {}, ValueError, "too large for a scale in float32"),
        (np.array(1.0), {}, ValueError, r"x has shape \(\)"),
        (np.array([1]), {}, TypeError, "x has dtype int64"),
        (np.array([1.0]).astype(">f8"), {}, TypeError, "x has dtype '>f8'"),
        ([1.0], {}, TypeError, "x is a list"),
        (np.array([1.0]), {"dtype": "int4"}, ValueError, "dtype is 'int4', expected 'int8'"),
    ],
    ids=str,
)
def test_refused(x, options, error, message):
    with pytest.raises(error, match=message):
        gqa.quantize(x, **options)
