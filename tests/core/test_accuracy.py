"""How exact results are, against float64."""

import functools

import ml_dtypes
import numpy as np
import pytest

import cases
import gqa
import oracle
from compare import ulps

SIZES = [(queries, keys, head_dim) for queries in (1, 5, 40) for keys in (1, 64, 1000, 4096) for head_dim in (64, 128)]


def tensors(rng, queries, keys, head_dim, dtype):
    return cases.tensors(rng, queries, keys, dtype, batch=1, head_dim=head_dim, v_head_dim=head_dim)


MOST = pytest.mark.parametrize(("dtype", "most"), [("float32", 2e-6), ("float64", 1e-14)])


def check(most, arguments, expected=None, **options):
    out, lse = gqa.attention(*arguments, return_lse=True, **options)
    expected_out, expected_lse = expected or oracle.attention(*arguments, **options)
    assert np.abs(out - expected_out).max() <= most
    assert (np.abs(lse - expected_lse) / np.maximum(np.abs(expected_lse), 1)).max() <= most


def unit_normal(sizes, dtype):
    return tensors(np.random.default_rng(20240607), *sizes, dtype)


@functools.cache  # for all instruction sets
def unit_normal_expected(sizes, dtype):
    return oracle.attention(*unit_normal(sizes, dtype))


@MOST
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_unit_normal_data(isa, dtype, most, sizes):
    check(most, unit_normal(sizes, dtype), unit_normal_expected(sizes, dtype))


@MOST
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (50_000, 0)}], ids=str)
def test_a_cache_so_long_that_its_splits_have_several_blocks(isa, rng, dtype, most, queries, options):
    """Keys grow towards the end, so that every block raises the maximum of those before it."""
    q, k, v = tensors(rng, queries, 60_000, 8, dtype)
    k *= np.linspace(0.1, 2, 60_000, dtype=dtype)[:, None]
    check(most, (q, k, v), **options)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_rounds_once(isa, dtype):
    """Within 1 ulp almost everywhere, 2 at most but where the values cancel to less than float32 resolves of them."""
    distances, errors = [], []
    for sizes in SIZES:
        out, expected = gqa.attention(*unit_normal(sizes, dtype)), unit_normal_expected(sizes, dtype)[0]
        distances.append(ulps(out, expected).ravel())
        errors.append(np.abs(out.astype(np.float64) - expected).ravel())
    distances, errors = np.concatenate(distances), np.concatenate(errors)
    assert np.mean(distances <= 1) >= 0.999
    assert errors[distances > 2].max(initial=0) <= 2 * np.finfo(np.float32).eps  # values up to about 4


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_half_precision_number_comes_through(isa, dtype):
    """One key of weight 1 copies its value exactly: subnormals, infinities and NaN included."""
    numbers = np.arange(2**16, dtype=np.uint16).view(dtype).reshape(1, 1, 64, 1024)
    for rows in (1, 30):
        v = np.ascontiguousarray(numbers.reshape(64, 1, 1, 1024))
        q, k = np.zeros((64, 1, rows, 8), dtype), np.zeros((64, 1, 1, 8), dtype)
        out = gqa.attention(q, k, v)
        with np.errstate(invalid="ignore"):  # signalling NaN
            np.testing.assert_array_equal(out.astype(np.float32), np.broadcast_to(v, out.shape).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("rows", [1, 30])
def test_rounding_is_to_nearest_even(isa, rng, dtype, rows):
    """float32 values in a half-precision output: every exponent, ties, overflow and underflow."""
    exponents = np.arange(-150, 128)[:, None]
    fractions = np.concatenate([rng.random(100), np.arange(0, 2048, 32) / 2048]).astype(np.float32)
    values = np.ldexp(np.float32(1) + fractions, exponents)
    v = (values.astype(np.float32) * rng.choice([-1, 1], values.shape).astype(np.float32)).reshape(1, 1, 1, -1)
    v = v[..., (np.abs(v) >= np.finfo(np.float32).tiny).ravel()]
    q, k = np.zeros((1, 1, rows, 4), dtype), np.zeros((1, 1, 1, 4), dtype)
    with np.errstate(over="ignore"):
        expected = np.broadcast_to(v.astype(dtype), (1, 1, rows, v.shape[-1]))
    np.testing.assert_array_equal(gqa.attention(q, k, v), expected)


@MOST
@pytest.mark.parametrize("queries", [1, 5, 40])
@pytest.mark.parametrize("softcap", [0.25, 2.0, 20.0, 50.0, 1e4, 1e10])
def test_softcap(isa, rng, dtype, most, queries, softcap):
    check(most, tensors(rng, queries, 500, 64, dtype), softcap=softcap)


@pytest.mark.parametrize(("dtype", "most"), [("float32", 6e-7), ("float64", 2e-15)])
def test_softcap_over_its_whole_range(isa, dtype, most):
    """One key: the lse is the capped score itself."""
    scores = np.concatenate(
        [np.linspace(-12, 12, 4000), np.geomspace(1e-30, 1e30, 200), -np.geomspace(1e-30, 1e30, 200)]
    )
    q = scores.astype(dtype).reshape(1, 1, -1, 1)
    one = np.ones((1, 1, 1, 1), dtype)
    _, lse = gqa.attention(q, one, one, scale=1.0, softcap=1.0, return_lse=True)
    expected = np.tanh(q[..., 0].astype(np.float64))
    assert np.abs(lse / expected - 1).max() <= most


@pytest.mark.parametrize(("dtype", "most"), [("float32", 3e-7), ("float64", 1e-15)])
@pytest.mark.parametrize("queries", [1, 40])
def test_weights_over_the_range_of_the_exponential(isa, dtype, most, queries):
    """Two keys, the second with the value 1: the output is 1 / (1 + exp(x)), down to the smallest normal number."""
    x = np.linspace(0, 700 if dtype == "float64" else 87, 997).reshape(-1, 1, 1, 1).astype(dtype)
    q = np.broadcast_to(x, (997, 1, queries, 1))
    k = np.broadcast_to(np.array([0, -1], dtype).reshape(1, 1, 2, 1), (997, 1, 2, 1))
    v = np.broadcast_to(np.array([0, 1], dtype).reshape(1, 1, 2, 1), (997, 1, 2, 1))
    out = gqa.attention(q, k, v, scale=1.0)
    expected = 1 / (1 + np.exp(x.astype(np.float64)))
    tolerance = most + x.astype(np.float64) * np.finfo(dtype).eps  # that of x * log2(e)
    assert (np.abs(out / expected - 1) <= tolerance).all()


def test_large_values(isa, rng, dtype):
    """Values near the largest number do not overflow on the way."""
    largest = float(ml_dtypes.finfo(dtype).max)
    tolerance = {"float64": 1e-14, "float32": 2e-6}.get(np.dtype(dtype).name, 0)
    for queries in (1, 40):
        q, k, _ = tensors(rng, queries, 300, 8, dtype)
        v = np.full((1, 2, 300, 8), largest / 1024, dtype)
        np.testing.assert_allclose(
            gqa.attention(q, k, v).astype(np.float64), v[0, 0, 0, 0].astype(np.float64), rtol=tolerance
        )
