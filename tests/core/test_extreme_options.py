"""Finite numbers near the ends of float32, as options: no NaN comes of them."""

import numpy as np
import pytest

import cases
import gqa
from compare import assert_same_bits


@pytest.mark.parametrize("rows", [1, 30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sinks_of_any_size(isa, rows, dtype):
    q, k, v = cases.tensors(np.random.default_rng(0), rows, 40, dtype)
    largest = np.finfo(dtype).max
    plain, plain_lse = gqa.attention(q, k, v, return_lse=True)
    sinks = np.array([largest, -largest, largest / 2, -largest / 2], dtype)
    out, lse = gqa.attention(q, k, v, sinks=sinks, return_lse=True)
    for head, sink in enumerate((largest / 1.5, None, largest / 2, None)):
        if sink is None:
            assert_same_bits(out[:, head], plain[:, head])
            assert_same_bits(lse[:, head], plain_lse[:, head])
        else:
            assert (out[:, head] == 0).all()
            np.testing.assert_allclose(lse[:, head], sink, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 30])
@pytest.mark.parametrize("softcap", [1e-50, 1e-300, 5e-324, 1e-21])
def test_softcaps_of_any_size(isa, rows, dtype, softcap):
    """Scores are all but 0, those that were 0 too: the mean of the values."""
    q, k, v = cases.tensors(np.random.default_rng(0), rows, 40, dtype)
    q[:, :, 0] = 0
    expected = gqa.attention(q, k, v, scale=0)
    assert_same_bits(gqa.attention(q, k, v, softcap=softcap), expected)


@pytest.mark.parametrize("scale", [1e31, -1e31, 3e38, 1e300])
def test_scales_that_would_overflow_are_refused(scale):
    q, k, v = cases.tensors(np.random.default_rng(0), 3, 40)
    with pytest.raises(ValueError, match=r"scale is .*, expected a number from -1e30 to 1e30"):
        gqa.attention(q, k, v, scale=scale)
    assert np.isfinite(gqa.attention(q, k, v, scale=np.copysign(1e30, scale))).all()
