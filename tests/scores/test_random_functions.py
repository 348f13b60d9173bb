"""Random functions in attention, in both loops, against the oracle in float64."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import gqa
import oracle
from compare import assert_close
from gqa import _core
from score_programs import STEPS, coordinates, evaluated, function_of

TABLES = (
    np.linspace(-1, 1, 4),
    np.arange(20).reshape(4, 5),
    np.arange(4) % 2 == 0,
    np.linspace(0, 3, 20).reshape(4, 5),
)
# Those of which the last bit is the same everywhere: others may cross a floor or a comparison.
EXACT = sorted(set(STEPS) - {"exp", "exp2", "log", "tanh", "sin", "cos", "mod", "floor_divide"})
CHOICES = st.lists(st.integers(0, 40), min_size=5, max_size=5)
CONSTANTS = st.lists(st.integers(-9, 9) | st.floats(-8, 8) | st.booleans(), max_size=3)


@given(
    steps=st.lists(st.tuples(st.sampled_from([*EXACT, "index"]), CHOICES), max_size=12),
    constants=CONSTANTS,
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
    out = on(isa, lambda: gqa.attention(q, k, v, score_mod=score_mod, query_offset=3))
    assert_close(out, oracle.attention(q, k, v, score_mod=score_mod, query_offset=3)[0], 100.0)


@given(
    steps=st.lists(st.tuples(st.sampled_from([*STEPS, "index"]), CHOICES), min_size=1, max_size=12),
    constants=CONSTANTS,
    queries=st.sampled_from([1, 4, 40]),
    isa=st.sampled_from(_core.available_isas()),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 100),
)
@settings(max_examples=150, deadline=None)
def test_scores_of_random_functions(steps, constants, queries, isa, dtype, seed):
    """Of all operations, the last value itself as the score, as near as roundings within the function let it be.

    Each row attends one key, so that its lse is the score. The function is evaluated in float64 once as it is, and
    again and again with each number that is not exact off by some units in the last place, up or down: a score may be
    as far off as those are. Where they take another turn, at a floor or a comparison, anything may come out.
    """
    rng = np.random.default_rng(seed)
    batch, heads, keys, channels, offset = 2, 4, 50, 8, 3
    q = rng.standard_normal((batch, heads, queries, channels)).astype(dtype)
    k = rng.standard_normal((batch, heads, keys, channels)).astype(dtype)
    seen = rng.integers(0, keys, (batch, heads, queries, 1))
    program = gqa.trace(function_of(steps, constants, TABLES, last_alone=True))
    _, lse = on(
        isa,
        lambda: gqa.attention(
            q, k, k, score_mod=program, mask=np.arange(keys) == seen, query_offset=offset, return_lse=True
        ),
    )

    where = {**coordinates(batch, heads, queries, keys, offset), "kv_idx": seen}
    products = q.astype(float)[..., None, :] * np.take_along_axis(k.astype(float), seen, axis=2)[..., None, :]
    inputs = {"score": products.sum(-1) / np.sqrt(channels), **where}
    limits = np.finfo(dtype)
    within = np.ones(seen.shape, bool)

    def perturbed(op, value):
        if value.dtype.kind != "f":
            return value
        off = 16 * limits.eps * rng.choice((-1, 1), (*value.shape[:-1], seen.shape[-1]) if value.ndim else ())
        if op == "score":
            return value + off * np.abs(products).sum(-1)
        return np.where(value == value.astype(np.float32), value, value * (1 + off))  # dyadic numbers are exact

    def in_range(op, value):
        """Whether the arithmetic holds it: whole numbers of its lanes wrap, and floats overflow."""
        if value.dtype.kind == "f":
            size = np.abs(value)
            within[...] &= ~((size < limits.tiny * 1e6) & (size > 0) | (size > limits.max / 1e6) & np.isfinite(size))
        elif value.dtype.kind == "i":
            within[...] &= np.abs(value) < (2**31 if dtype == np.float32 else 2**62)
        return value

    def score(replaced):
        wanted = evaluated(program.plan, program.arrays, inputs, replaced).get("score")
        wanted = replaced("score", inputs["score"]) if wanted is None else wanted  # nothing was changed
        return np.broadcast_to(wanted, seen.shape)[..., 0].astype(float)

    wanted = score(in_range)
    wanted = np.where(np.isposinf(wanted), np.nan, wanted)  # which softmax makes NaN
    others = np.stack([score(perturbed) for _ in range(8)])
    with np.errstate(invalid="ignore"):
        spread = np.abs(others - wanted).max(0)
        near = np.abs(lse - wanted) <= 2 * spread + 16 * limits.eps * np.abs(wanted)
    same = (lse == wanted) | np.isnan(lse) & np.isnan(wanted)
    assert (near | same | ~within[..., 0] | ~np.isfinite(spread)).all(), (lse, wanted, spread)


def on(isa, run):
    """What run() gives on an instruction set."""
    before = _core.isa()
    _core.use_isa(isa)
    try:
        return run()
    finally:
        _core.use_isa(before)
