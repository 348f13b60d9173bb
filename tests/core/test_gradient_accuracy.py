"""How exact gradients are, against float64."""

import functools

import ml_dtypes
import numpy as np
import pytest

import cases
import gqa
import gradient_oracle
from compare import ulps

SIZES = {  # (heads, queries, keys, head_dim): options
    ((4, 2), 40, 64, 64): {},
    ((4, 2), 128, 128, 64): {"causal": True},
    ((4, 1), 300, 300, 128): {"causal": True},
    ((2, 2), 40, 1000, 64): {"softcap": 5.0},
    ((2, 1), 1024, 1024, 64): {"window": (500, 0)},
    ((1, 1), 300, 900, 128): {},
}
NAMES = ("dq", "dk", "dv")


@functools.cache  # for all instruction sets
def problem(sizes, dtype):
    """(dout, q, k, v) of unit-normal data, and gradients in float64."""
    heads, queries, keys, head_dim = sizes
    rng = np.random.default_rng(20240607)
    sized = {"batch": 1, "heads": heads, "head_dim": head_dim, "v_head_dim": head_dim}
    q, k, v = cases.tensors(rng, queries, keys, dtype, **sized)
    dout = rng.standard_normal(q.shape).astype(dtype)
    return (dout, q, k, v), gradient_oracle.attention_vjp(dout, q, k, v, **SIZES[sizes])[0]


@pytest.mark.parametrize(("dtype", "most"), [("float32", 3e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_unit_normal_data(isa, sizes, dtype, most):
    """Errors as parts of the largest element."""
    (dout, q, k, v), expected = problem(sizes, dtype)
    out, lse = gqa.attention(q, k, v, return_lse=True, **SIZES[sizes])
    actual = gqa.attention_vjp(dout, q, k, v, out, lse, **SIZES[sizes])
    for name in NAMES:
        assert np.abs(getattr(actual, name) - expected[name]).max() <= most * np.abs(expected[name]).max(), name


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("out_dtype", [None, "float32"])
def test_half_precision(isa, dtype, out_dtype):
    """Within 1 ulp of the rounded truth in 99.5 % of elements, of dq and dk where out has not been rounded.

    sum(dout * out) is part of these: a rounded out shifts all gradients of its row by half an ulp of dout's size.
    """
    near = {name: [] for name in NAMES}
    for sizes, options in SIZES.items():
        (dout, q, k, v), expected = problem(sizes, dtype)
        out, lse = gqa.attention(q, k, v, return_lse=True, out_dtype=out_dtype, **options)
        actual = gqa.attention_vjp(dout, q, k, v, out, lse, **options)
        for name in NAMES:
            near[name].append((ulps(getattr(actual, name), expected[name]) <= 1).ravel())
    for name in NAMES:
        least = 0.995 if name == "dv" or out_dtype else 0.95
        assert np.concatenate(near[name]).mean() >= least, name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("causal", [False, True])
def test_peaked_softmax(isa, rng, dtype, causal):
    """Whole scores up to hundreds, which float32 holds exactly: a few keys have all the weight of a row."""
    q, k = (rng.integers(-2, 3, (1, h, n, 16)).astype(dtype) for h, n in ((4, 50), (2, 130)))
    v = rng.standard_normal((1, 2, 130, 16)).astype(dtype)
    dout = rng.standard_normal(q.shape).astype(dtype)
    options = {"scale": 8.0, "causal": causal}
    out, lse = gqa.attention(q, k, v, return_lse=True, **options)
    actual = gqa.attention_vjp(dout, q, k, v, out, lse, **options)
    expected, magnitudes = gradient_oracle.attention_vjp(dout, q, k, v, **options)
    most = {np.float32: 3e-6, np.float64: 1e-14}[dtype]
    for name in NAMES:
        assert np.abs(getattr(actual, name) - expected[name]).max() <= most * magnitudes[name], name


@pytest.mark.parametrize("value", [-1e9, float(np.finfo(np.float32).min)])
def test_masks_of_very_negative_numbers(isa, rng, value):
    """As code that does not have -inf writes them: what they hide has no gradient."""
    q, dout = rng.standard_normal((2, 1, 4, 50, 16)).astype(np.float32)
    k, v = rng.standard_normal((2, 1, 2, 130, 16)).astype(np.float32)
    hidden = np.triu(np.ones((50, 130), bool), 81)
    options = {"mask": np.where(hidden, np.float32(value), np.float32(0))}
    out, lse = gqa.attention(q, k, v, return_lse=True, **options)
    actual = gqa.attention_vjp(dout, q, k, v, out, lse, mask_grad=True, **options)
    masked_out, masked_lse = gqa.attention(q, k, v, return_lse=True, mask=~hidden)
    plain = gqa.attention_vjp(dout, q, k, v, masked_out, masked_lse, mask=~hidden)
    for x, y in zip(actual[:3], plain[:3]):
        np.testing.assert_allclose(x, y, rtol=0, atol=3e-6 * np.abs(y).max())
    assert not actual.dmask[hidden].any()
