"""Axes that the tests run over: instruction sets, element types, numbers of threads."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from gqa import _core

# (queries, keys) that between them run every loop, with groups of two heads: channels in the lanes over one block, over
# several (of float64) and over several splits; rows in the lanes over one block, over several, and in several tiles.
SIZES = {
    "decode": (1, 40), "few": (3, 300), "split": (2, 1700), "rows": (12, 50), "blocks": (15, 290), "tiles": (40, 200),
}  # fmt: skip
DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture(params=_core.available_isas())
def isa(request):
    """Runs the test on each instruction set of this machine."""
    before = _core.isa()
    _core.use_isa(request.param)
    yield request.param
    _core.use_isa(before)


@pytest.fixture(params=DTYPES)
def dtype(request):
    return DTYPES[request.param]


@pytest.fixture(params=SIZES)
def size(request):
    return SIZES[request.param]


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(20240607)
