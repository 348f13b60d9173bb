"""How close a result must be to the float64 oracle's."""

from __future__ import annotations

import contextlib

import ml_dtypes
import numpy as np

ABSOLUTE = {"float32": 2e-6, "float64": 1e-14, "float16": 2e-6, "bfloat16": 2e-6}


def ulps(actual, expected):
    """The distance of `actual` from `expected` rounded to its dtype, in units in the last place there."""
    info = ml_dtypes.finfo(actual.dtype)
    rounded = expected.astype(actual.dtype).astype(np.float64)
    exponent = np.frexp(np.maximum(np.abs(rounded), float(info.tiny)))[1] - 1
    return np.abs(actual.astype(np.float64) - rounded) / np.ldexp(float(info.eps), exponent)


def assert_close(actual, expected, magnitude=1.0):
    """Within one unit in the last place (half precision rounds once), or within what float32 or float64 sums allow.

    magnitude: of the values, where they are not about 1.
    """
    assert actual.shape == expected.shape
    with np.errstate(invalid="ignore"):  # infinity - infinity
        error = np.abs(actual.astype(np.float64) - expected)
        near = error <= magnitude * ABSOLUTE[actual.dtype.name]
        if actual.dtype.itemsize == 2:
            near |= ulps(actual, expected) <= 1
    near |= (np.isnan(actual) & np.isnan(expected)) | (actual == expected)
    assert near.all(), (
        f"{np.sum(~near)} of {near.size} elements are off, by up to {np.max(error, where=~near, initial=0)}; "
        f"the first is {tuple(np.argwhere(~near)[0].tolist())}: {actual[~near][0]}, expected {expected[~near][0]}"
    )


def assert_lse_close(actual, expected):
    """As assert_close, relative to the value where that is large."""
    large = np.where(np.isfinite(expected), np.abs(expected), 1).clip(1)
    assert_close(actual, expected, magnitude=large)


def assert_same_bits(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.tobytes() == expected.tobytes()


@contextlib.contextmanager
def naming(*case):
    """Says which of a test's cases it was that failed."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{', '.join(map(str, case))}: {error}") from error
