"""Traced functions against the same functions on NumPy's arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gqa
from score_programs import STEPS, coordinates, evaluated, function_of

TABLES = (
    np.linspace(-1, 1, 4),
    np.arange(20).reshape(4, 5),
    np.arange(4) % 2 == 0,
    np.linspace(0, 3, 20).reshape(4, 5),
)


def of_program(program, score, coordinates):
    return evaluated(program.plan, program.arrays, {"score": score, **coordinates})


def check(score_mod, rtol=0):
    """That the program of a function computes what the function computes on arrays."""
    where = coordinates()
    score = np.random.default_rng(7).standard_normal((2, 3, 5, 7)) * 3
    with np.errstate(all="ignore"):
        expected = np.broadcast_to(score_mod(score, *where.values()), score.shape)
    actual = of_program(gqa.trace(score_mod), score, where).get("score", score)
    np.testing.assert_allclose(np.broadcast_to(actual, score.shape), expected.astype(np.float64), rtol=rtol, atol=0)


CHOICES = st.lists(st.integers(0, 40), min_size=5, max_size=5)


@given(
    steps=st.lists(st.tuples(st.sampled_from([*STEPS, "index"]), CHOICES), max_size=12),
    constants=st.lists(st.integers(-9, 9) | st.floats(-8, 8) | st.booleans(), max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_random_functions(steps, constants):
    check(function_of(steps, constants, TABLES))


@pytest.mark.parametrize("name", STEPS)
def test_each_operation(name):
    """On operands of each kind that it takes; the choices walk through the values."""
    for choice in range(6):
        check(
            function_of([(name, [choice, choice + 1, choice + 2, choice + 3, choice])], [2, -3, 0.5, 0, True], TABLES)
        )


@pytest.mark.parametrize(
    "function",
    [
        lambda s, b, h, q, k: s**3 + s**-1 + s**0 + s**1,
        lambda s, b, h, q, k: np.abs(s) ** 0.5 + np.abs(s) ** np.tanh(s) + 2.0 ** (k - q) + 3.0**k,
        lambda s, b, h, q, k: s + (k + 1) ** 5 + (q - k) ** 3,
        lambda s, b, h, q, k: np.ceil(s) + np.trunc(s) + np.floor(k) + np.log2(abs(s)) + np.log10(abs(s)),
        lambda s, b, h, q, k: np.reciprocal(s) + np.positive(s) + np.isinf(1 / (k - q)) * 1.5,
        lambda s, b, h, q, k: s * np.float32(0.5) + np.int16(3) * k + np.bool_(True) + np.array(2.5),
        lambda s, b, h, q, k: 2 - s + 2 / s + 7 // (k + 1) + 7 % (k + 1) + (1 << k) + (64 >> k) + 2**k,
        lambda s, b, h, q, k: (True & (q > k)) + (1 ^ k) + (False | (k > q)) * 2.0 + s,
        lambda s, b, h, q, k: np.zeros_like(s) + np.ones_like(k) + s.clip(-1, 1) + np.clip(s, None, 0.5),
        lambda s, b, h, q, k: np.where(q < k, -np.inf, s),
        lambda s, b, h, q, k: np.where(q < k, np.nan, s),
        lambda s, b, h, q, k: np.minimum(np.where(q < k, np.nan, s), 0),
        lambda s, b, h, q, k: 1.0,
        lambda s, b, h, q, k: k,
        lambda s, b, h, q, k: s,
    ],
)
def test_functions(function):
    check(function, rtol=1e-11)


def test_masks():
    where = coordinates()
    document = np.array([0, 0, 1, 1, 1, 2, 2])
    for mask_mod in (
        lambda b, h, q, k: q >= k,
        lambda b, h, q, k: (document[q] == document[k]) & (q - k < 4) | (h == 1),
        lambda b, h, q, k: False,
        lambda b, h, q, k: np.isfinite(1 / (k - q)),
    ):
        actual = of_program(gqa.trace(mask_mod=mask_mod), np.zeros((2, 3, 5, 7)), where)["mask"]
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(*np.broadcast_arrays(actual, mask_mod(*where.values())))


def test_indices_past_the_end_are_clamped_and_constants_count_from_the_end():
    table = np.array([[1.0, 2, 3], [4, 5, 6]])
    program = gqa.trace(lambda s, b, h, q, k: table[-1, k - 2] + 10 * table[h, -3])
    actual = of_program(program, np.zeros((2, 3, 5, 7)), coordinates())["score"]
    expected = [4.0, 4, 4, 5, 6, 6, 6] + 10 * np.array([1, 4, 4])[:, None, None]
    np.testing.assert_array_equal(np.broadcast_to(actual, (1, 3, 5, 7)), np.broadcast_to(expected, (1, 3, 5, 7)))


def test_what_a_program_consists_of():
    """Nothing twice, nothing that is not needed, no operations on constants."""
    slopes = np.ones(3)

    def score_mod(score, b, h, q_idx, kv_idx):
        np.exp(score)
        distance = q_idx - kv_idx
        again = q_idx - kv_idx
        return score + slopes[h] * distance * np.where(True, 2.0, score) + slopes[h] * again * np.tanh(np.float64(0.0))

    ops = [x.op for x in gqa.trace(score_mod).plan.instructions]
    assert ops.count("sub") == ops.count("gather") == 1
    assert "exp" not in ops
    assert "where" not in ops
    assert "tanh" not in ops


def test_what_changes_nothing_is_left_out():
    assert gqa.trace().plan.outputs == {}
    assert gqa.trace(lambda s, b, h, q, k: s, lambda b, h, q, k: True).plan.outputs == {}
    assert [*gqa.trace(lambda s, b, h, q, k: s + 1, lambda b, h, q, k: q > q - 1).plan.outputs] == ["score", "mask"]


def test_programs_in_place_of_functions():
    table = np.arange(7.0)
    score_mod, mask_mod = (lambda s, b, h, q, k: s + table[k]), (lambda b, h, q, k: (q >= k) & (table[k] > 1))
    together = gqa.trace(score_mod, mask_mod)
    same = gqa.trace(gqa.trace(score_mod), gqa.trace(mask_mod=mask_mod))
    assert same.plan.instructions == gqa.trace(score_mod, mask_mod).plan.instructions
    assert gqa.trace(together).plan.instructions == together.plan.instructions
    assert gqa.trace(mask_mod=together).plan.outputs.keys() == {"score", "mask"}
    assert gqa.trace(together, together).plan.instructions == together.plan.instructions
    assert [x is table for x in same.arrays] == [True]
    with pytest.raises(ValueError, match="both have a score_mod"):
        gqa.trace(together, same)


def test_a_program_in_words():
    table = np.ones((3, 4))
    program = gqa.trace(
        lambda s, b, h, q, k: np.tanh(s / 20) * 20 + table[h, np.minimum(q - k, 3)], lambda b, h, q, k: ~(q < k)
    )
    assert repr(program).splitlines() == [
        "gqa.Program(score, mask) reading table: float[:, :]",
        "  v0 = score / 20.0",
        "  v1 = tanh(v0)",
        "  v2 = 20.0 * v1",
        "  v3 = q_idx - kv_idx",
        "  v4 = minimum(v3, 3)",
        "  v5 = table[h, v4]",
        "  v6 = v2 + v5",
        "  v7 = q_idx < kv_idx",
        "  v8 = ~v7",
        "  new score -> v6",
        "  mask -> v8",
    ]
