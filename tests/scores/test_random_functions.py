"""Random functions in attention, in both loops, against the oracle in float64."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import gqa
import oracle
from compare import assert_close
from gqa import _core
from score_programs import STEPS, function_of

TABLES = (
    np.linspace(-1, 1, 4),
    np.arange(20).reshape(4, 5),
    np.arange(4) % 2 == 0,
    np.linspace(0, 3, 20).reshape(4, 5),
)
# Those of which the last bit is the same everywhere: others may cross a floor or a comparison.
EXACT = sorted(set(STEPS) - {"exp", "exp2", "log", "tanh", "sin", "cos", "mod", "floor_divide"})
CHOICES = st.lists(st.integers(0, 40), min_size=5, max_size=5)


@given(
    steps=st.lists(st.tuples(st.sampled_from([*EXACT, "index"]), CHOICES), max_size=12),
    constants=st.lists(st.integers(-9, 9) | st.floats(-8, 8) | st.booleans(), max_size=3),
    queries=st.sampled_from([1, 4, 13]),
    keys=st.sampled_from([3, 20, 150]),
    isa=st.sampled_from(_core.available_isas()),
    seed=st.integers(0, 100),
)
@settings(max_examples=150, deadline=None)
def test_random_functions(steps, constants, queries, keys, isa, seed):
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((2, 4, queries, 8))
    k, v = rng.standard_normal((2, 2, 2, keys, 8))
    score_mod = function_of(steps, constants, TABLES)
    before = _core.isa()
    _core.use_isa(isa)
    try:
        out = gqa.attention(q, k, v, score_mod=score_mod, query_offset=3)
    finally:
        _core.use_isa(before)
    assert_close(out, oracle.attention(q, k, v, score_mod=score_mod, query_offset=3)[0], 100.0)
