"""Every operation of score programs, on values of every rate, in both loops.

Each row attends one key, so that its lse is the score that the program gave.
"""

import itertools

import numpy as np
import pytest

from gqa import _core
from score_program import NUMPY, Builder, attend

KEYS = 200
RATES = ("call", "row", "key", "full")


def eighths(x):
    """Near x, and such that float32 holds all products, sums and remainders: roundings go the same way everywhere."""
    return np.rint(8 * x) / 8


def operand(build, kind, rate, which, rng):
    """A value of a kind and a rate; `which` of the operation's operands it is, so that operands differ."""
    if kind == "bool":
        whole = operand(build, "whole", rate, which, rng)
        return build("eq", "bool", build("and", "whole", whole, build.constant(1)), build.constant(which % 2))
    if rate == "call":
        return build.constant(float(which) - 0.75 if kind == "float" else 3 - 2 * which)
    if rate == "full":
        score = build("mul", "float", build.input("score"), build.constant(1.5 if which else -2.0))
        return score if kind == "float" else build("to_whole", "whole", score)
    position = build.input("q_idx" if rate == "row" else "kv_idx")
    size = 3.0 if kind == "float" else 9.0
    table = eighths(rng.standard_normal(KEYS + 7 * which) * size)
    if which:
        table[::7] = 0
    return build.gather(table if kind == "float" else table.astype(np.int16), position)


SAFE = {"log", "sqrt", "pow"}  # the first operand is made positive, elsewhere the result is NaN


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("queries", [3, 40])
@pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name in NUMPY for form in range(len(_core.SCORE_OPS[name]))]
)
def test_an_operation_is_that_of_numpy(isa, name, form, queries, dtype, rng):
    kinds, result = _core.SCORE_OPS[name][form]
    heads = 2
    # The score of row i of head h with key j is x[h, i] * y[j].
    x = eighths(rng.uniform(-4, 4, (1, heads, queries, 1))).astype(dtype)
    y = eighths(rng.uniform(-2, 2, (1, heads, KEYS, 1))).astype(dtype)
    chosen = rng.integers(0, KEYS, (heads, KEYS))
    for rates in itertools.product(RATES, repeat=len(kinds)) if len(kinds) < 3 else [("key", "row", "full")]:
        build = Builder()
        operands = [operand(build, kind, rate, i, rng) for i, (kind, rate) in enumerate(zip(kinds, rates))]
        if name in SAFE:
            operands[0] = build("add", "float", build("abs", "float", operands[0]), build.constant(0.125))
        value = build(name, result, *operands)
        score = value if result == "float" else build("to_float", "float", value)
        here = build.gather(chosen, build.input("h"), build.input("q_idx"))
        mask = build("eq", "bool", build.input("kv_idx"), here)
        _, lse = attend(x, y, y, build.bind(score=score, mask=mask), return_lse=True, scale=1.0)

        h, i = np.arange(heads)[:, None], np.arange(queries)
        j = chosen[h, i + KEYS - queries]
        scores = (x[0, h, i, 0].astype(dtype) * y[0, h, j, 0]).astype(dtype)
        values = build.values(scores, np.zeros((1, 1), int), h, i + KEYS - queries, j)
        wanted = np.broadcast_to(values[score], lse[0].shape)
        wanted = np.where(np.isposinf(wanted), np.nan, wanted)  # which softmax makes NaN
        if name in ("div", "floordiv"):  # by a 0 of either sign, which depends on how a product is summed
            wanted, lse = (np.where(np.isinf(a), np.nan, a) for a in (wanted, lse))
        tolerance = 3e-5 if dtype == np.float32 else 1e-12
        np.testing.assert_allclose(lse[0], wanted, rtol=tolerance, atol=tolerance, err_msg=f"{rates}")
