"""Axes as fixtures: instruction sets, element types, sizes, numbers of threads."""

from __future__ import annotations

import numpy as np
import pytest

from axes import DTYPES, SIZES
from gqa import _core


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
