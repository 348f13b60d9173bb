"""What tracing hands to the core, which checks and keeps it."""

from __future__ import annotations

import numpy as np
import pytest

from gqa import _core
from gqa.scores import tracing
from score_programs import OPERATIONS, STEPS, function_of

TABLES = (
    np.linspace(-1, 1, 4),
    np.arange(20).reshape(4, 5),
    np.arange(4) % 2 == 0,
    np.linspace(0, 3, 20).reshape(4, 5),
)


def test_operations_are_those_of_the_core():
    inputs = {"score", "b", "h", "q_idx", "kv_idx"}
    assert {*OPERATIONS, "to_whole", "constant", "gather", *inputs} == set(_core.SCORE_OPS)


@pytest.mark.parametrize("name", [*STEPS, "index"])
@pytest.mark.parametrize("slope", [False, True])
def test_the_core_takes_whatever_is_traced(name, slope):
    for choice in range(6):
        function = function_of([(name, [choice, choice + 1, choice + 2, choice + 3, 0])], [2, 0.5, True, -3], TABLES)
        core, arrays = tracing.bind(function, lambda b, h, q, k: TABLES[2][h] | (q >= k), slope=slope)
        assert isinstance(core, _core.ScoreProgram)
        assert all(any(x is table for table in TABLES) for x in arrays)


def test_nothing_is_handed_over_where_nothing_changes():
    assert tracing.bind(None, None) is None
    assert tracing.bind(lambda s, b, h, q, k: s, lambda b, h, q, k: True) is None


def test_an_array_without_axes_gets_one():
    scale = np.array(2.0)
    _, (array,) = tracing.bind(lambda s, b, h, q, k: s * scale, None)
    assert array.shape == (1,)
    assert np.shares_memory(array, scale)
