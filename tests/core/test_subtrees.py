"""Raw states of parts of the keys, handed over and taken back, have the bits of one call, however keys are dealt."""

import numpy as np
import pytest

import gqa
from compare import assert_same_bits
from gqa.options import Options
from gqa.sequences import RUN_COLUMNS, table
from gqa.subtrees import (
    MERGE_COLUMNS,
    STATE_SEQUENCE_COLUMNS,
    SUBTREE_COLUMNS,
    attend_states,
    merge_subtrees,
    state_shape,
)

PIECE = gqa.SPLIT_KEYS
QUERIES = [1, 5, 12, 70]  # of two heads in a group: channels in the lanes, rows in the lanes, several tiles
SINKS = np.array([0.3, -2.0, 30.0, -np.inf])


def problem(queries, keys, dtype="float32"):
    rng = np.random.default_rng(keys)
    q = rng.standard_normal((1, 4, queries, 8), np.float32).astype(dtype)
    return q, *rng.standard_normal((2, 1, 2, keys, 8), np.float32).astype(dtype)


def states_of(q, k, v, bounds, options, *, offset=None, whole_queries=0):
    """The states of the keys between each pair of bounds, one slot each."""
    queries, keys = q.shape[2], k.shape[2]
    offset = keys - queries if offset is None else offset
    sequences = [
        (0, 0, queries, 0, first, offset - first, last - first, 0, first, 1, slot, keys, 0)
        for slot, (first, last) in enumerate(bounds)
    ]
    runs = [(0, 0, first, last - first) for first, last in bounds]
    dtype = np.float64 if q.dtype == np.float64 else np.float32
    states = np.full(state_shape(len(bounds), 4, queries, 8), np.nan, dtype)
    attend_states(
        q, [(k, v)], table(sequences, STATE_SEQUENCE_COLUMNS), table(runs, RUN_COLUMNS), options, states,
        mask_shape=(1, queries, keys), whole_queries=whole_queries,
    )  # fmt: skip
    return states


def merged(q, subtrees, numbers, options, slots=None, **more):
    rows = table(list(zip(numbers, slots or range(len(numbers)))), SUBTREE_COLUMNS)
    merges = table([(0, 0, q.shape[2], 0, 0, len(numbers))], MERGE_COLUMNS)
    return merge_subtrees(q, 2, subtrees, merges, rows, options, **more)


def pieces(keys):
    return [(first, min(first + PIECE, keys)) for first in range(0, keys, PIECE)]


@pytest.mark.parametrize("queries", QUERIES)
@pytest.mark.parametrize("pieces_of_keys", [0.5, 1, 2.3, 5, 7.001])
def test_pieces_have_the_bits_of_the_whole(isa, queries, pieces_of_keys):
    q, k, v = problem(queries, int(pieces_of_keys * PIECE))
    for given in ({}, {"causal": True, "sinks": SINKS}, {"causal": True, "window": (PIECE, None), "softcap": 3.0}):
        for threads in (1, 3):
            options = Options(return_lse=True, num_threads=threads, **given)
            bounds = pieces(k.shape[2])
            states = states_of(q, k, v, bounds, options)
            want = gqa.attention(q, k, v, return_lse=True, num_threads=threads, **given)
            for one, other in zip(merged(q, states, range(len(bounds)), options), want):
                assert_same_bits(one, other)


@pytest.mark.parametrize("queries", QUERIES)
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_other_types(queries, dtype):
    q, k, v = problem(queries, 3 * PIECE + 100, dtype)
    options = Options(return_lse=True)
    states = states_of(q, k, v, pieces(k.shape[2]), options)
    for one, other in zip(merged(q, states, range(4), options), gqa.attention(q, k, v, return_lse=True)):
        assert_same_bits(one, other)


@pytest.mark.parametrize("queries", QUERIES)
def test_subtrees_of_any_size_in_any_slots(isa, queries):
    """Aligned pieces may be attended as one, merged beforehand, and lie in any order."""
    q, k, v = problem(queries, 10 * PIECE + 1)
    bounds = [(0, 1), (1, 2), (2, 4), (4, 8), (8, 9), (9, 10), (10, 10 + 1 / PIECE)]
    states = states_of(q, k, v, [(int(a * PIECE), round(b * PIECE)) for a, b in bounds], Options())
    want = gqa.attention(q, k, v)
    numbers = [0, 1, 2, 4, 8, 9, 10]
    assert_same_bits(merged(q, states, numbers, Options()), want)
    assert_same_bits(merged(q, states, [0, 1, 3, 6, 8, 9, 11], Options()), want)  # any piece names a subtree
    order = np.random.default_rng(0).permutation(7)
    assert_same_bits(merged(q, states[order], numbers, Options(), np.argsort(order).tolist()), want)
    # Pieces 8 and 9 into the slot of 8; 0 to 4 into that of 0.
    for joined, slot in (([4, 5], 4), ([0, 1, 2], 0)):
        into = states[slot : slot + 1]
        assert merged(q, states, [numbers[i] for i in joined], Options(), joined, states=into) is None
    assert_same_bits(merged(q, states, [0, 4, 8, 10], Options(), [0, 3, 4, 6]), want)


def test_a_gap_keeps_the_order_of_the_tree():
    """Keys that nobody attends may be left out: with 1 and 2 merged first, whatever the numbers behind them."""
    q, k, v = problem(3, 9 * PIECE)
    mask = np.ones((1, 1, 1, 9 * PIECE), bool)
    mask[..., 3 * PIECE : 4 * PIECE] = False
    mask[..., :PIECE] = False
    present = [i for i in range(9) if i not in (0, 3)]
    states = states_of(q, k, v, [pieces(k.shape[2])[i] for i in present], Options())
    assert_same_bits(merged(q, states, present, Options()), gqa.attention(q, k, v, mask=mask))


@pytest.mark.parametrize("rows", [1, 4, 30])
def test_some_of_the_queries_of_a_sequence(isa, rows):
    """They take the loop that all of them take, in subtrees and in the end."""
    q, k, v = problem(100, 2 * PIECE + 50)
    want = gqa.attention(q, k, v, causal=True)
    options = Options(causal=True)
    for first in (0, 33, 100 - rows):
        some = q[:, :, first : first + rows]
        offset = k.shape[2] - 100 + first
        states = states_of(some, k, v, pieces(k.shape[2]), options, offset=offset, whole_queries=100)
        assert_same_bits(merged(some, states, [0, 1, 2], options, whole_queries=100), want[:, :, first : first + rows])


def test_rows_without_keys():
    q, k, v = problem(40, PIECE)
    states = states_of(q, k, v, [(0, PIECE)], Options(causal=True), offset=-30)
    assert not np.isnan(states).any()
    assert (states[:, :, :30, [8, 9]] == [-np.inf, 0]).all()
    assert (states[:, :, :30, :8] == 0).all()
    none = gqa.attention(q, k[:, :, :0], v[:, :, :0], return_lse=True, sinks=SINKS)
    for one, other in zip(merged(q, states, [], Options(return_lse=True, sinks=SINKS)), none):
        assert_same_bits(one, other)


BAD_STATES = {
    "axes": (lambda x: x[0], r"states has shape \(4, 3, 10\)"),
    "queries": (lambda x: x[:, :, :2], r"states has shape \(2, 4, 2, 10\), expected \(2, 4, 3, 10\)"),
    "channels": (lambda x: x[..., :9], r"expected \(2, 4, 3, 10\)"),
    "dtype": (lambda x: x.astype(np.float64), "states has dtype float64, expected float32"),
    "contiguous": (lambda x: np.zeros((2, 4, 3, 20), np.float32)[..., ::2], "the last axis of states"),
    "shared": (lambda x: np.broadcast_to(x[:1].copy(), x.shape), "states is read-only"),
    "slots": (lambda x: x[:1], "sequence or subtree 1 names slot 1, expected 0 to 0"),
}


@pytest.mark.parametrize("bad", BAD_STATES)
def test_states_that_do_not_fit(bad):
    change, message = BAD_STATES[bad]
    q, k, v = problem(3, PIECE + 1)
    runs = [(0, 0, 0, PIECE), (0, 0, PIECE, 1)]
    sequences = [(0, 0, 3, 0, first, PIECE - 2 - first, n, 0, 0, 1, i, 0, 0) for i, (_, _, first, n) in enumerate(runs)]
    states = np.zeros(state_shape(2, 4, 3, 8), np.float32)
    with pytest.raises((TypeError, ValueError), match=message):
        attend_states(
            q, [(k, v)], table(sequences, STATE_SEQUENCE_COLUMNS), table(runs, RUN_COLUMNS), Options(), change(states)
        )
    assert (states == 0).all()


BAD_MERGES = {
    "order": (([1, 0], None, {}), "subtree 1 has number 0, expected at least 2"),
    "twice": (([0, 0], None, {}), "subtree 1 has number 0, expected at least 1"),
    "negative": (([-1, 0], None, {}), "subtree 0 has number -1"),
    "slot": (([0, 1], [0, 2], {}), "names slot 2, expected 0 to 1"),
    "slot below": (([0, 1], [0, -1], {}), "names slot -1"),
    "whole": (([0, 1], None, {"whole_queries": -1}), "sequence 0"),
}


@pytest.mark.parametrize("bad", BAD_MERGES)
def test_merges_that_do_not_fit(bad):
    (numbers, slots, more), message = BAD_MERGES[bad]
    q, _, _ = problem(3, 10)
    with pytest.raises(ValueError, match=message):
        merged(q, np.zeros(state_shape(2, 4, 3, 8), np.float32), numbers, Options(), slots, **more)
