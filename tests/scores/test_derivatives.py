"""The derivative of the new score by the old one, against differences of the function itself."""

from __future__ import annotations

import numpy as np
import pytest

from gqa.scores import tracing
from score_programs import coordinates, evaluated

table = np.linspace(-1, 1, 7)
FUNCTIONS = {
    "linear": lambda s, b, h, q, k: 3 * s - 2 + k,
    "bias": lambda s, b, h, q, k: s + table[k],
    "products": lambda s, b, h, q, k: s * s * table[k] + s / (s * s + 1) + 2 / (s * s + 3),
    "soft cap": lambda s, b, h, q, k: 20 * np.tanh(s / 20),
    "powers": lambda s, b, h, q, k: np.abs(s) ** 1.5 + 2.0**s + (s * s + 1) ** np.sin(s) + s**3,
    "exponentials": lambda s, b, h, q, k: np.exp(s / 4) + np.exp2(s / 3) + np.log(s * s + 1) + np.sqrt(s * s + 2),
    "waves": lambda s, b, h, q, k: np.sin(s) * np.cos(2 * s),
    "where": lambda s, b, h, q, k: np.where(s > 0.3, s * 2, np.where(q >= k, -s, 5.0)),
    "extremes": lambda s, b, h, q, k: np.minimum(s, 0.5) + 2 * np.maximum(s, table[k]) + np.clip(s, -1, 1) ** 2,
    "steps": lambda s, b, h, q, k: np.floor(s) + np.sign(s) + (s > 0) * 2.0 + s.astype(int) + s,
    "remainders": lambda s, b, h, q, k: s % 1.7 + s // 1.3 + 10 % (np.abs(s) + 3),
    "absolute": lambda s, b, h, q, k: np.abs(s - 0.1) - (-s),
    "a constant": lambda s, b, h, q, k: 2.0 * k,
}


def outputs(function, score):
    plan = tracing._traced(function, None, True)[0].plan
    captures = tracing._traced(function, None, True)[1]
    return evaluated(plan, plan.arrays_of(captures.arrays), {"score": score, **coordinates(keys=7, queries=5)})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_by_differences(name):
    score = np.random.default_rng(3).uniform(-3, 3, (2, 3, 5, 7))
    step = 1e-6
    low, high = (outputs(FUNCTIONS[name], score + sign * step)["score"] for sign in (-1, 1))
    expected = np.broadcast_to((high - low) / (2 * step), score.shape)
    actual = np.broadcast_to(outputs(FUNCTIONS[name], score)["slope"], score.shape)
    near = np.isclose(actual, expected, rtol=1e-5, atol=1e-7)
    assert near.all(), (actual[~near], expected[~near])


def test_it_is_made_only_when_asked_for():
    assert "slope" not in tracing._traced(FUNCTIONS["soft cap"], None, False)[0].plan.outputs
    assert "slope" not in tracing._traced(None, lambda b, h, q, k: q >= k, True)[0].plan.outputs


def test_nothing_undefined_behind_a_condition():
    """Where a branch is not taken, its derivative does not show."""
    score = np.zeros((2, 3, 5, 7))
    slope = outputs(lambda s, b, h, q, k: np.where(k > 100, np.log(s), s * 2), score)["slope"]
    np.testing.assert_array_equal(slope, np.full_like(slope, 2.0))
