"""What cannot be traced, and what the error says to write instead."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gqa
from gqa.scores.graph import MOST_INSTRUCTIONS

table, names = np.ones((3, 4)), ["a", "b"]
listed, looked_up = [1.0, 2.0], {0: 1.0}
objects, words = np.array([object()]), np.array(["a"])
kept = []


def without_end(s, b, h, q, k):
    while True:
        s = s + 1


def without_end_or_change(s, b, h, q, k):
    while True:
        q + 1


def calls_itself(s, b, h, q, k):
    return calls_itself(s + 1, b, h, q, k)


def calls_itself_unchanged(s, b, h, q, k):
    return calls_itself_unchanged(s, b, h, q, k)


def many_operations(s, b, h, q, k):
    for i in range(MOST_INSTRUCTIONS):
        s = s * 1.5 + i
    return s


def assigns(s, b, h, q, k):
    s[0] = 1
    return s


def assigns_to_an_array(s, b, h, q, k):
    table[h, 0] = s
    return s


def leaks(s, b, h, q, k):
    if kept:
        return s + kept[0]
    kept.append(s)
    return s + 1


SCORES = {
    "if": (lambda s, b, h, q, k: s if q > k else 0, TypeError, "instead of `if` use np.where"),
    "and": (lambda s, b, h, q, k: q > k and s, TypeError, "instead of `and`, `or`, `not` .* use &"),
    "chain": (lambda s, b, h, q, k: np.where(0 < q - k < 3, s, 0), TypeError, r"\(a < b\) & \(b < c\)"),
    "min": (lambda s, b, h, q, k: min(q, k), TypeError, "np.minimum for min"),
    "loop": (lambda s, b, h, q, k: sum(x for x in q), TypeError, "loops over a symbol"),
    "range": (lambda s, b, h, q, k: sum(x for x in range(q)), TypeError, "loop over numbers that are known"),
    "without end": (without_end, ValueError, "more than 4096 operations"),
    "without end or change": (without_end_or_change, ValueError, "more than 16384 operations"),
    "recursion": (calls_itself, ValueError, "score_mod calls itself without end|operations"),
    "recursion without change": (calls_itself_unchanged, ValueError, "score_mod calls itself without end"),
    "many operations": (many_operations, ValueError, "more than 4096 operations: .* put what is known in an array"),
    "assign": (assigns, TypeError, r"assigns to a part of a symbol: use np.where"),
    "assign to an array": (assigns_to_an_array, TypeError, "uses the array 'table' and assigns to it"),
    "out": (lambda s, b, h, q, k: np.add(s, 1, out=s), TypeError, "add with the argument out: .* use the result"),
    "in place": (lambda s, b, h, q, k: s.add_(1), TypeError, "add_, which changes a symbol in place: use add"),
    "too few indices": (lambda s, b, h, q, k: s + table[h], ValueError, r"\(3, 4\), with 1 indices, .* its 2 axes"),
    "too many": (lambda s, b, h, q, k: s + table[h, q, k], ValueError, "with 3 indices, expected one for each"),
    "a slice": (lambda s, b, h, q, k: s + table[h, :], TypeError, "'table' with slice.*, expected one whole number"),
    "a new axis": (lambda s, b, h, q, k: s + table[h, None], TypeError, "'table' with None"),
    "a float index": (lambda s, b, h, q, k: s + table[h, q / 2], TypeError, r"with a float, .* astype\(int\), or //"),
    "a bool index": (lambda s, b, h, q, k: s + table[h, q > k], TypeError, "with a bool, expected whole numbers"),
    "a whole array": (lambda s, b, h, q, k: s + table, TypeError, r"index it, table\[i, j\]"),
    "a whole array first": (lambda s, b, h, q, k: table * s, TypeError, r"index it, table\[i, j\]"),
    "a function of an array": (lambda s, b, h, q, k: s + np.abs(table)[h, k], TypeError, "hands it to absolute"),
    "a method of an array": (lambda s, b, h, q, k: s + table.T[h, k], TypeError, "asks it for 'T'"),
    "nine axes": (lambda s, b, h, q, k: s + NINE[(h,) * 9], ValueError, "an array of 9 axes, expected at most 8"),
    "an array made within": (lambda s, b, h, q, k: s + np.arange(4)[h], TypeError, "not those made in it"),
    "an array not indexed": (lambda s, b, h, q, k: s + np.arange(4), TypeError, r"array of shape \(4,\) as a number"),
    "a list": (lambda s, b, h, q, k: s + listed[h], TypeError, "make a list an array"),
    "a dict": (lambda s, b, h, q, k: s + looked_up[h], TypeError, "use an array in place of the dict"),
    "objects": (lambda s, b, h, q, k: s + objects[h], TypeError, "'objects' of dtype object, expected"),
    "words": (lambda s, b, h, q, k: s + words[h], TypeError, "'words' of dtype <U1"),
    "math": (lambda s, b, h, q, k: math.exp(s), TypeError, "NumPy's functions in place of math's"),
    "int": (lambda s, b, h, q, k: int(s), TypeError, r"use astype\(int\)"),
    "round": (lambda s, b, h, q, k: round(s), TypeError, "np.floor"),
    "text": (lambda s, b, h, q, k: f"{s:.2f}", TypeError, "writes a symbol as text"),
    "item": (lambda s, b, h, q, k: s.item(), TypeError, "asks for the number"),
    "len": (lambda s, b, h, q, k: len(s), TypeError, "asks for the length of a symbol"),
    "index the score": (lambda s, b, h, q, k: s[h], TypeError, "indexes a symbol"),
    "contains": (lambda s, b, h, q, k: 1 in s, TypeError, "looks for something in a symbol"),
    "matmul": (lambda s, b, h, q, k: s @ s, TypeError, "multiplies matrices"),
    "complex": (lambda s, b, h, q, k: s * 1j, TypeError, "computes with a complex"),
    "complex()": (lambda s, b, h, q, k: complex(s), TypeError, "complex number"),
    "a string": (lambda s, b, h, q, k: s + "a", TypeError, "computes with a str"),
    "unknown": (lambda s, b, h, q, k: np.arctan(s), TypeError, "calls arctan, which cannot be traced; the functions"),
    "cumsum": (lambda s, b, h, q, k: np.cumsum(s), TypeError, "calls cumsum"),
    "reduce": (lambda s, b, h, q, k: np.add.reduce(s), TypeError, r"calls add\.reduce"),
    "sum": (lambda s, b, h, q, k: s.sum(), TypeError, "asks a symbol for 'sum'"),
    "where of one": (lambda s, b, h, q, k: np.where(q > k), TypeError, "where takes a condition and two values"),
    "dtype": (lambda s, b, h, q, k: s.astype(np.int8), TypeError, "the dtype int8, expected float32"),
    "no dtype": (lambda s, b, h, q, k: s.astype("nonsense"), TypeError, "the dtype nonsense"),
    "bits of a float": (lambda s, b, h, q, k: s & 1, TypeError, "on a float, expected bools or whole numbers"),
    "shift of a float": (lambda s, b, h, q, k: s << 1, TypeError, "shifts a float"),
    "difference of bools": (lambda s, b, h, q, k: (q > k) - (k > q), TypeError, r"subtracts bools, .* use \^"),
    "minus a bool": (lambda s, b, h, q, k: -(q > k), TypeError, "negates a bool: use ~"),
    "negative power": (lambda s, b, h, q, k: s + (q + 1) ** -1, ValueError, "to the power -1: make it a float"),
    "a large integer": (lambda s, b, h, q, k: q + 2**70, ValueError, "the integer 1180591620717411303424, expected"),
    "None": (lambda s, b, h, q, k: None, TypeError, "returns None, expected a number: is there a `return`"),
    "a bool": (lambda s, b, h, q, k: q > k, TypeError, "returns a bool, expected a number: np.where"),
    "a tuple": (lambda s, b, h, q, k: (s, s), TypeError, "returns a tuple, expected a number"),
    "too few arguments": (lambda s: s, TypeError, r"cannot be called as score_mod\(score, b, h, q_idx, kv_idx\)"),
    "no function": (3, TypeError, "score_mod is a int, expected a function, or what gqa.trace returns"),
}  # fmt: skip
NINE = np.ones((1,) * 9)
MASKS = {
    "a number": (lambda b, h, q, k: q - k, TypeError, "mask_mod returns a whole, expected a bool: compare it"),
    "None": (lambda b, h, q, k: None, TypeError, "mask_mod returns None, expected a bool"),
    "a list": (lambda b, h, q, k: [q > k], TypeError, "mask_mod returns a list, expected a bool"),
    "if": (lambda b, h, q, k: q if q > k else k, TypeError, "mask_mod asks whether a symbol is true"),
    "five arguments": (lambda s, b, h, q, k: q > k, TypeError, r"cannot be called as mask_mod\(b, h, q_idx, kv_idx\)"),
    "no function": ("causal", TypeError, "mask_mod is a str"),
}


@pytest.mark.parametrize("name", SCORES)
def test_score_mod(name):
    function, error, message = SCORES[name]
    with pytest.raises(error, match=message) as caught:
        gqa.trace(function)
    assert str(caught.value).startswith("score_mod ")


@pytest.mark.parametrize("name", MASKS)
def test_mask_mod(name):
    function, error, message = MASKS[name]
    with pytest.raises(error, match=message):
        gqa.trace(mask_mod=function)


def test_symbols_of_another_trace():
    gqa.trace(leaks)
    with pytest.raises(TypeError, match="symbol of another trace"):
        gqa.trace(leaks)


def test_what_a_function_raises_comes_through():
    with pytest.raises(ZeroDivisionError):
        gqa.trace(lambda s, b, h, q, k: 1 / 0)
    with pytest.raises(KeyError):
        gqa.trace(lambda s, b, h, q, k: looked_up[5])


def test_a_thousand_operations():
    def score_mod(s, b, h, q, k):
        for i in range(500):
            s = s * 1.0001 + i
        return s

    assert len(gqa.trace(score_mod).plan.instructions) > 1000
