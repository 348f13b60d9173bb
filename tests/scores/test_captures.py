"""What traced functions refer to: arrays in all places, numbers that change, and traces that are made once."""

from __future__ import annotations

import enum
import functools
import types
import weakref
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

import gqa
from gqa.scores import tracing

TABLE = np.arange(3.0)
MODULE = types.ModuleType("a_module_of_the_user")
MODULE.table = TABLE
MODULE.helper = lambda h: TABLE[h] * 2
WIDTH = 3


class Pair(NamedTuple):
    left: np.ndarray
    right: float


@dataclass
class Bias:
    table: np.ndarray
    scale: float = 1.0

    def __call__(self, score, b, h, q_idx, kv_idx):
        return self.added(score, h)

    def added(self, score, h):
        return score + self.table[h] * self.scale

    @property
    def doubled(self):
        return self.table * 2


class Slotted:
    __slots__ = ("table",)

    def __init__(self, table):
        self.table = table


class Wider(Bias):
    def __call__(self, score, b, h, q_idx, kv_idx):
        return super().__call__(score, b, h, q_idx, kv_idx) * 2


class Mode(enum.Enum):
    ADD = 1
    SUBTRACT = 2


def of_a_global(score, b, h, q_idx, kv_idx):
    return score + TABLE[h]


def of_a_default(score, b, h, q_idx, kv_idx, table=TABLE, *, other=TABLE):
    return score + table[h] + other[h]


def of_a_module(score, b, h, q_idx, kv_idx):
    return score + MODULE.table[h] + MODULE.helper(h)


def helper(h, offset=0):
    return TABLE[np.minimum(h + offset, WIDTH)]


def of_helpers(score, b, h, q_idx, kv_idx):
    return score + helper(h) + helper(h, offset=1)


def of_all_places():
    table, listed, named, pair = TABLE, [TABLE, 2.0], {"a": (TABLE,), 3: 1}, Pair(TABLE, 0.5)
    bias, slotted, mode, scalar = Bias(TABLE), Slotted(TABLE), Mode.ADD, np.array(2.0)
    doubled = functools.partial(lambda table, score, h: score + table[h], TABLE)

    def nested(h):
        def inner(i):
            return table[i]

        return inner(h)

    def by_itself(h, times):
        return table[h] + (by_itself(h, times - 1) if times else 0)

    return {
        "a variable": lambda s, b, h, q, k: s + table[h],
        "a list": lambda s, b, h, q, k: s + listed[0][h] * listed[1],
        "a dict": lambda s, b, h, q, k: s + named["a"][0][h] + named[3],
        "a named tuple": lambda s, b, h, q, k: s + pair.left[h] * pair.right,
        "a loop over a list": lambda s, b, h, q, k: s + sum(x[h] for x in listed[:1]),
        "a function within": lambda s, b, h, q, k: s + nested(h),
        "a recursive function": lambda s, b, h, q, k: s + by_itself(h, 3),
        "a partial": lambda s, b, h, q, k: doubled(s, h),
        "an attribute": lambda s, b, h, q, k: s + bias.table[h] * bias.scale,
        "an attribute of slots": lambda s, b, h, q, k: s + slotted.table[h],
        "a property": lambda s, b, h, q, k: s + bias.doubled[h],
        "a method": lambda s, b, h, q, k: bias.added(s, h),
        "an enumeration": lambda s, b, h, q, k: s + table[h] if mode is Mode.ADD else s,
        "an array without axes": lambda s, b, h, q, k: s * scalar + table[h],
        "numpy.take": lambda s, b, h, q, k: s + np.take(table, h),
        "an object": bias,
        "an object of a derived class": Wider(TABLE),
        "a bound method": Bias(TABLE).__call__,
        "a partial itself": functools.partial(of_a_default, table=TABLE),
        "a global": of_a_global,
        "a default": of_a_default,
        "a module": of_a_module,
        "helpers": of_helpers,
    }


@pytest.mark.parametrize("place", of_all_places())
def test_arrays_are_found(place):
    """Each function adds TABLE[h] in some way; none can do so without its array."""
    program = gqa.trace(of_all_places()[place])
    assert any(x.op == "gather" for x in program.plan.instructions)
    assert all(isinstance(x, np.ndarray) for x in program.arrays)


def test_arrays_have_the_names_of_the_function():
    bias = Bias(TABLE + 1)
    listed = [TABLE * 2, np.ones((3, 2))]
    program = gqa.trace(lambda s, b, h, q, k: s + bias.table[h] + listed[1][h, 0] + TABLE[h])
    assert [x.name for x in program.plan.arrays] == ["bias.table", "listed[1]", "TABLE"]


# ---- a trace is made once, and holds while nothing else changed ---------------------------------------------------


@pytest.fixture
def traces(monkeypatch):
    """How many traces were made."""
    made = []
    original = tracing._trace
    monkeypatch.setattr(tracing, "_trace", lambda *args: made.append(args) or original(*args))
    monkeypatch.setattr(tracing, "_traces", {})
    return made


def arrays_now(score_mod):
    entry, captures = tracing._traced(score_mod, None, False)
    return entry.plan.arrays_of(captures.arrays)


def test_a_function_is_traced_once(traces):
    functions = of_all_places()
    for _ in range(3):
        for function in functions.values():
            arrays_now(function)
    assert len(traces) == len(functions)


def test_functions_made_anew_share_a_trace_and_have_their_own_arrays(traces):
    def made(table):
        return lambda s, b, h, q, k: s + table[h]

    for table in (TABLE, TABLE + 1, np.ones(8)):
        assert arrays_now(made(table))[0] is table
    assert len(traces) == 1
    arrays_now(made(TABLE.astype(np.float32)))
    arrays_now(made(np.ones(3, int)))
    assert len(traces) == 3
    with pytest.raises(ValueError, match="indexes 'table', an array of shape"):
        arrays_now(made(np.ones((3, 3))))


def test_two_names_for_one_array_may_become_two_arrays(traces):
    one, two = TABLE, TABLE

    def score_mod(s, b, h, q, k):
        return s + one[h] - two[h]

    assert len(arrays_now(score_mod)) == 1
    two = TABLE + 1
    assert [x is y for x, y in zip(arrays_now(score_mod), (one, two))] == [True, True]


@pytest.mark.parametrize("place", ["variable", "global", "default", "attribute", "list", "helper", "partial"])
def test_changed_numbers_are_seen(place, traces, monkeypatch):
    scale, bias, listed = 1.0, Bias(TABLE), [1.0]

    def score_mod(s, b, h, q, k, default=1.0):
        return s * scale + bias.scale + listed[0] + default + helper(h)

    def changed():
        nonlocal scale
        match place:
            case "variable":
                scale = -0.0
            case "global":
                monkeypatch.setitem(globals(), "WIDTH", 2)
            case "default":
                score_mod.__defaults__ = (2.0,)
            case "attribute":
                bias.scale = 2
            case "list":
                listed[0] = 2.0
            case "helper":
                monkeypatch.setitem(globals(), "helper", lambda h: 0)
            case "partial":
                return functools.partial(score_mod, default=3.0)
        return score_mod

    before = gqa.trace(score_mod).plan.instructions
    after = gqa.trace(changed()).plan.instructions
    assert before != after
    assert len(traces) == 2
    gqa.trace(changed())
    assert len(traces) == 2


def test_a_rebound_array_is_seen(traces):
    bias = Bias(TABLE)

    def score_mod(s, b, h, q, k):
        return s + bias.table[h]

    assert arrays_now(score_mod)[0] is TABLE
    bias.table = TABLE + 1
    assert arrays_now(score_mod)[0] is bias.table
    bias.table = np.ones(3, np.float32)
    assert arrays_now(score_mod)[0] is bias.table
    assert len(traces) == 2


def test_a_shape_that_the_function_asked_for_is_part_of_the_trace(traces):
    def made(table):
        return lambda s, b, h, q, k: s + table[np.clip(q - k, 0, table.shape[0] - 1)] / len(table)

    for size in (3, 4, 3):
        program = gqa.trace(made(np.ones(size)))
        assert any(x.op == "constant" and x.payload == size - 1 for x in program.plan.instructions)
    assert len(traces) == 2


def test_objects_of_the_past_are_not_mistaken(traces):
    """An object made where another was may have its id."""
    for scale in range(20):
        program = gqa.trace(Bias(TABLE, scale + 0.5))
        assert any(x.payload == scale + 0.5 for x in program.plan.instructions)


def test_traces_are_not_kept_without_bounds():
    for i in range(tracing._MOST_TRACES + 50):
        gqa.trace(lambda s, b, h, q, k, i=i: s + i)
    assert len(tracing._traces) <= tracing._MOST_TRACES


def test_a_trace_keeps_no_array_alive():
    def gone():
        table = np.ones(3)
        arrays_now(lambda s, b, h, q, k: s + table[h])
        return weakref.ref(table)

    assert gone()() is None


def test_a_program_reads_its_arrays_later():
    table = np.zeros(3)
    program = gqa.trace(lambda s, b, h, q, k: s + table[h])
    table[:] = 5
    assert program.arrays[0] is table
