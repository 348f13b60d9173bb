"""Score functions that misbehave: no crash, no leak of what is masked, and NumPy's numbers where they are defined."""

from __future__ import annotations

import itertools
import types

import numpy as np
import pytest

import gqa
import oracle
from compare import assert_close, assert_same_bits
from guarded import guarded


def tensors(rng, queries, keys, dtype=np.float32):
    q = rng.standard_normal((2, 4, queries, 16)).astype(dtype)
    k, v = rng.standard_normal((2, 2, 2, keys, 16)).astype(dtype)
    return q, k, v


FUNCTIONS = {
    "division by zero": lambda s, b, h, q, k: s + np.where(q == k, 0.0, 1 / (q - k)),
    "whole division by zero": lambda s, b, h, q, k: s + (q // (q - k)) * 0.25 + (q % (k - q)) * 0.125,
    "huge shifts": lambda s, b, h, q, k: s + (((k + 1) << 200) + (k >> 200) + ((k - 9) >> 999)) * 0.5,
    "negative shifts": lambda s, b, h, q, k: s + ((k + 1) << (k - 1000)),
    "overflow": lambda s, b, h, q, k: s + np.tanh(np.exp(np.exp(np.abs(s) + 9))),
    "nothing left": lambda s, b, h, q, k: -np.inf,
    "all the same": lambda s, b, h, q, k: 2.0,
    "minus infinity by where": lambda s, b, h, q, k: np.where((q + k) % 3 == 0, -np.inf, s),
    "very negative": lambda s, b, h, q, k: np.where(k > q, np.finfo(np.float32).min, s),
    "undefined behind where": lambda s, b, h, q, k: np.where(k <= q, s, np.sqrt(-1.0 - k)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("queries", [1, 5, 40])
def test_numbers(name, queries, isa, rng):
    q, k, v = tensors(rng, queries, 90)
    causal = {"causal": True}
    out, lse = gqa.attention(q, k, v, score_mod=FUNCTIONS[name], return_lse=True, **causal)
    expected, expected_lse = oracle.attention(q, k, v, score_mod=FUNCTIONS[name], **causal)
    assert_close(out, expected, 3.0)
    assert_close(lse, expected_lse, 100.0)


@pytest.mark.parametrize("queries", [1, 5, 40])
@pytest.mark.parametrize("value", [6e4, 7e4, -7e4, 1e30, -1e30, "most", "least"])
def test_large_scores(value, queries, isa, rng):
    """Of half of the heads all scores are the same, so that every key that they attend counts the same."""
    q, k, v = tensors(rng, queries, 90)
    limits = np.finfo(np.float32)
    value = {"most": limits.max, "least": limits.min}.get(value, value)
    out, lse = gqa.attention(
        q, k, v, score_mod=lambda s, b, h, q, k: np.where(h % 2 == 0, value, s), causal=True, return_lse=True
    )
    same = oracle.attention(q, k, v, score_mod=lambda s, b, h, q, k: np.where(h % 2 == 0, 0.0, s), causal=True)[0]
    assert_close(out, same, 3.0)
    if abs(value) < 1e38:  # beyond it base 2 does not hold it
        np.testing.assert_allclose(lse[:, ::2], value, rtol=1e-4 if abs(value) < 1e5 else 1e-6)


@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize("offset", [0, 2**22 - 20, 2**22, 2**24 + 1, -(2**22) - 3, -(2**24) - 1])
def test_distances_of_far_positions(offset, queries, isa, rng):
    """Whole numbers become floats once they are distances, however far off the positions are."""
    q, k, v = tensors(rng, queries, 90)

    def score_mod(s, b, h, q_idx, kv_idx):
        return s + (np.abs(q_idx - kv_idx).astype(np.float32) - float(abs(offset))) * 0.125

    out = gqa.attention(q, k, v, score_mod=score_mod, query_offset=offset)
    assert_close(out, oracle.attention(q, k, v, score_mod=score_mod, query_offset=offset)[0], 10.0)


@pytest.mark.parametrize("queries", [1, 40])
def test_a_score_that_is_not_a_number(queries, isa, rng):
    """Attended it gives a row that is none; behind a mask of any kind it does not show."""
    q, k, v = tensors(rng, queries, 90)

    def undefined(s, b, h, q_idx, kv_idx):
        return np.where((kv_idx == 60) & (h == 1), np.nan, s)

    out = gqa.attention(q, k, v, score_mod=undefined)
    assert np.isnan(out[:, 1]).all()
    assert np.isfinite(out[:, [0, 2, 3]]).all()
    hidden = np.arange(90) != 60
    plain = gqa.attention(q, k, v, mask=hidden)
    for options in ({"mask": hidden}, {"mask_mod": lambda b, h, q_idx, kv_idx: kv_idx != 60}):
        assert_close(gqa.attention(q, k, v, score_mod=undefined, **options), plain.astype(np.float64))


@pytest.mark.parametrize("queries", [1, 5, 40])
def test_what_mask_mod_hides_does_not_show(queries, isa, rng):
    q, k, v = tensors(rng, queries, 400)
    seen = rng.random(400) < 0.5
    seen[100:350] = False
    clean = gqa.attention(q, k, v, mask_mod=lambda b, h, q_idx, kv_idx: seen[kv_idx])
    k[:, :, ~seen], v[:, :, ~seen] = np.nan, np.inf
    assert_same_bits(gqa.attention(q, k, v, mask_mod=lambda b, h, q_idx, kv_idx: seen[kv_idx]), clean)
    assert_close(clean, oracle.attention(*(np.nan_to_num(x, posinf=0) for x in (q, k, v)), mask=seen)[0])


@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize("hidden", ["all", "one head", "one row"])
def test_rows_without_keys(queries, hidden, isa, rng):
    q, k, v = tensors(rng, queries, 90)
    mask_mod = {
        "all": lambda b, h, q_idx, kv_idx: False,
        "one head": lambda b, h, q_idx, kv_idx: h != 2,
        "one row": lambda b, h, q_idx, kv_idx: q_idx != 89,
    }[hidden]
    for sinks in (None, np.array([0.5, 1, -1, 3], np.float32)):
        out, lse = gqa.attention(q, k, v, mask_mod=mask_mod, sinks=sinks, return_lse=True)
        expected, expected_lse = oracle.attention(q, k, v, mask_mod=mask_mod, sinks=sinks)
        assert_close(out, expected)
        assert_close(lse, expected_lse, 10.0)


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("queries", [1, 40])
def test_nothing_is_read_outside_of_an_array(at_end, queries, isa, rng):
    """Whatever the function computes as an index; memory next to the arrays cannot be read."""
    q, k, v = tensors(rng, queries, 90)
    table = guarded(rng.standard_normal((3, 5)).astype(np.float32), at_end)
    flags, whole = guarded(np.arange(7) % 2 == 0, at_end), guarded(np.arange(11, dtype=np.int16), at_end)

    def score_mod(s, b, h, q_idx, kv_idx):
        wild = (kv_idx * 1000003) ^ (q_idx << 20)
        nonsense = np.where(s > 0, np.inf, -np.inf).astype(int)
        return s + table[wild, -wild] + table[h - 100, nonsense] + whole[wild - 2**20] * 0.01 + flags[kv_idx * wild]

    assert np.isfinite(gqa.attention(q, k, v, score_mod=score_mod)).all()
    assert np.isfinite(gqa.attention(*(x.astype(np.float64) for x in (q, k, v)), score_mod=score_mod)).all()


def test_indices_past_the_end_are_clamped(isa, rng):
    q, k, v = tensors(rng, 40, 90)
    table = rng.standard_normal(50).astype(np.float32)
    clamped = oracle.attention(q, k, v, score_mod=lambda s, b, h, q, k: s + table[np.minimum(k, 49)])[0]
    assert_close(gqa.attention(q, k, v, score_mod=lambda s, b, h, q, k: s + table[k]), clamped, 3.0)
    first = oracle.attention(q, k, v, score_mod=lambda s, b, h, q, k: s + table[np.clip(k - 60, 0, 49)] + table[-1])[0]
    assert_close(gqa.attention(q, k, v, score_mod=lambda s, b, h, q, k: s + table[k - 60] + table[-1]), first, 3.0)


@pytest.mark.parametrize("queries", [1, 40])
def test_an_array_that_shrank_after_the_trace(queries, isa, rng):
    q, k, v = tensors(rng, queries, 90)
    table = rng.standard_normal(90).astype(np.float32)
    program = gqa.trace(lambda s, b, h, q, k: s + table[k])
    gqa.attention(q, k, v, score_mod=program)
    table.resize(3, refcheck=False)
    expected = oracle.attention(q, k, v, score_mod=lambda s, b, h, q, k: s + table[np.minimum(k, 2)])[0]
    assert_close(gqa.attention(q, k, v, score_mod=program), expected, 3.0)


def test_arrays_are_read_when_attention_is_called(isa, rng):
    q, k, v = tensors(rng, 30, 90)
    table = np.zeros(90, np.float32)
    program = gqa.trace(lambda s, b, h, q, k: s + table[k])
    gqa.attention(q, k, v, score_mod=program)
    table[:] = rng.standard_normal(90)
    expected = oracle.attention(q, k, v, mask=table)[0]
    for score_mod in (program, lambda s, b, h, q, k: s + table[k]):
        assert_close(gqa.attention(q, k, v, score_mod=score_mod), expected, 3.0)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"])
def test_arrays_of_any_type_and_strides(dtype, isa, rng):
    q, k, v = tensors(rng, 30, 90)
    numbers = (rng.integers(0, 3, (8, 180, 3)) if dtype != "bool" else rng.random((8, 180, 3)) < 0.5).astype(dtype)
    for table in (numbers[::2, ::2, 1], numbers[3::-1, ::-2, 2], np.asfortranarray(numbers[:4, :90, 0])):
        expected = oracle.attention(q, k, v, score_mod=lambda s, b, h, q, k, t=table: s + t[h, k].astype(float))[0]
        actual = gqa.attention(q, k, v, score_mod=lambda s, b, h, q, k, t=table: s + t[h, k])
        assert_close(actual, expected, 3.0)


@pytest.mark.parametrize("queries", [1, 40])
def test_a_thousand_operations(queries, isa, rng):
    q, k, v = tensors(rng, queries, 90)

    def score_mod(s, b, h, q_idx, kv_idx):
        for i in range(500):
            s = s * 0.999 + np.float32(i % 7) * 0.001
        return s

    assert_close(gqa.attention(q, k, v, score_mod=score_mod), oracle.attention(q, k, v, score_mod=score_mod)[0], 4.0)


@pytest.mark.parametrize("queries", [1, 40])
def test_many_values_at_a_time(queries, isa, rng):
    """More than there are registers for."""
    q, k, v = tensors(rng, queries, 90)

    def score_mod(s, b, h, q_idx, kv_idx):
        values = [np.sin(s * (i + 1)) for i in range(60)]
        return s + sum(x * y for x, y in zip(values, reversed(values))) * 0.01

    assert_close(gqa.attention(q, k, v, score_mod=score_mod), oracle.attention(q, k, v, score_mod=score_mod)[0], 4.0)


@pytest.mark.parametrize(
    ("table", "message"),
    [(np.ones((3, 3)), "with 1 indices, expected one for each of its 2 axes"), (np.ones((0,)), "at least 1")],
)
def test_arrays_that_do_not_fit(table, message, rng):
    with pytest.raises(ValueError, match=message):
        gqa.attention(*tensors(rng, 3, 9), score_mod=lambda s, b, h, q, k: s + table[k])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ((3, 3), "has 2 axes, expected 1 as when it was traced"),
        ((0,), r"has shape \(0,\), expected at least 1 element"),
    ],
)
def test_arrays_that_changed_after_the_trace_are_named(changed, message, rng):
    bias = types.SimpleNamespace(table=np.ones(9))
    rows = [np.ones(9), np.ones(9)]
    programs = {
        "'bias.table' of score_mod": (gqa.trace(lambda s, b, h, q, k: s + bias.table[k]), bias.table),
        r"'rows\[1\]' of mask_mod": (gqa.trace(None, lambda b, h, q, k: rows[1][k] > rows[0][k] - 1), rows[1]),
    }
    for name, (program, array) in programs.items():
        array.resize(changed, refcheck=False)
        with pytest.raises(ValueError, match=f"the array {name} {message}"):
            gqa.attention(*tensors(rng, 3, 9), score_mod=program)


def test_numbers_that_do_not_fit(rng):
    """Whole numbers have 32 bits in float32, and 64 in float64."""
    q, k, v = tensors(rng, 3, 9)
    table = np.array([2**40])
    for where, score_mod in (
        ("the array 'table' of score_mod", lambda s, b, h, q, k: s + table[0] / 2**40),
        ("score_mod or mask_mod", lambda s, b, h, q, k: s + (k + 2**40) // 2**40),
    ):
        with pytest.raises(ValueError, match=f"{where} .* {2**40}, which .* 32 bits"):
            gqa.attention(q, k, v, score_mod=score_mod)
        wide = [x.astype(np.float64) for x in (q, k, v)]
        assert_close(gqa.attention(*wide, score_mod=score_mod), oracle.attention(*wide, score_mod=score_mod)[0], 3.0)


def test_nothing_is_written_where_a_function_is_refused(rng):
    cache = gqa.KVCache(2, 2, 32, 16)
    q, k, v = tensors(rng, 3, 3)
    for options in ({"score_mod": lambda s, b, h, q, k: s if q > k else 0}, {"mask_mod": lambda b, h, q, k: q - k}):
        with pytest.raises(TypeError):
            cache.attend(q, k, v, **options)
    assert cache.lengths.tolist() == [0, 0]


def test_a_function_is_called_once(rng):
    calls = itertools.count()

    def score_mod(s, b, h, q_idx, kv_idx):
        next(calls)
        return s * 2

    for _ in range(3):
        gqa.attention(*tensors(rng, 30, 90), score_mod=score_mod)
    assert next(calls) == 1
