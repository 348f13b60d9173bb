"""What attention refuses, before it writes anything: TypeError for a wrong kind, ValueError for a wrong value."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import cases
import gqa
import refused
from compare import assert_same_bits
from refused import GOOD, PAST, ones


@pytest.mark.parametrize("row", refused.REFUSED, ids=refused.name_of)
def test_refused(row):
    change, error, message = row
    arguments = GOOD | change
    before = {name: x.copy() for name, x in arguments.items() if isinstance(x, np.ndarray)}
    with pytest.raises(error, match=message) as caught:
        gqa.attention(**arguments)
    assert type(caught.value) is error
    out = np.full((2, 8, 5, 12), 7, np.float32)
    with pytest.raises(error, match=message):
        gqa.attention(**arguments, out=out)
    assert (out == 7).all()
    for name, x in before.items():
        assert_same_bits(np.asarray(arguments[name]), x)


@pytest.mark.parametrize(
    ("change", "message"), [row for row in refused.SHAPES if "shape" not in row[1]], ids=lambda x: str(x)[:60]
)
def test_refused_in_the_other_layout(change, message):
    arguments = {name: x.swapaxes(1, 2) if x is not None else x for name, x in (GOOD | change).items()}
    with pytest.raises(ValueError, match=message):
        gqa.attention(**arguments, layout="bshd")


def test_a_good_call_is_good():
    assert gqa.attention(**GOOD).shape == (2, 8, 5, 12)
    assert gqa.attention(**GOOD, **PAST).shape == (2, 8, 5, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_lengths": [9]}, r"kv_lengths has shape \(1,\), expected \(\)"),
        ({"query_offset": [0]}, r"query_offset has shape \(1,\), expected \(\)"),
        ({"kv_lengths": 10}, r"kv_lengths.* is 10, expected 0 to 9"),
        ({"mask": ones(2, 8, 5, 9)}, r"mask has shape \(2, 8, 5, 9\), which does not broadcast to \(8, 5, 9\)"),
        ({"mask": ones(1, 8, 5, 9)}, r"mask has shape \(1, 8, 5, 9\), which does not broadcast to \(8, 5, 9\)"),
        ({"out": ones(1, 8, 5, 12)}, r"out has shape \(1, 8, 5, 12\), expected \(8, 5, 12\)"),
        ({"k": ones(3, 9, 16), "v": ones(3, 9, 12)}, "k has 3 heads, which does not divide the 8 heads of q"),
        ({"past_key": PAST["past_key"], "past_value": PAST["past_value"][0]}, "past_key has shape"),
    ],
    ids=str,
)
def test_refused_without_the_batch(change, message):
    with pytest.raises(ValueError, match=message):
        gqa.attention(**{name: x[0] for name, x in GOOD.items()} | change)


# ---- out ------------------------------------------------------------------------------------------------------

MEMORY = np.zeros(4096, np.float32)
SHAPE = (2, 8, 5, 12)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        ([0.0], TypeError, "out is a list, expected a NumPy array"),
        (np.ma.zeros(SHAPE, np.float32), TypeError, "out is a MaskedArray"),
        (np.zeros(SHAPE), TypeError, "out has dtype float64, expected float32 as q"),
        (np.zeros(SHAPE, np.float16), TypeError, "out has dtype float16, expected float32 as q"),
        (np.zeros(SHAPE, ">f4"), TypeError, "out has dtype '>f4', expected native byte order"),
        (np.zeros(SHAPE, object), TypeError, "out has dtype object"),
        (np.zeros((2, 5, 8, 12), np.float32), ValueError, r"out has shape \(2, 5, 8, 12\), expected \(2, 8, 5, 12\)"),
        (np.zeros((2, 8, 5, 16), np.float32), ValueError, r"out has shape \(2, 8, 5, 16\), expected"),
        (np.zeros((8, 5, 12), np.float32), ValueError, r"out has shape \(8, 5, 12\), expected"),
        (np.zeros((), np.float32), ValueError, r"out has shape \(\), expected"),
        (np.broadcast_to(np.zeros(12, np.float32), SHAPE), ValueError, "out is read-only"),
        (as_strided(MEMORY, SHAPE, (0, 0, 0, 4)), ValueError, "out has elements that share memory"),
        (as_strided(MEMORY, SHAPE, (4, 48, 480, 4)), ValueError, "out has elements that share memory"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_refused_outputs(out, error, message):
    before = np.array(out)
    with pytest.raises(error, match=message):
        gqa.attention(**GOOD, out=out)
    assert_same_bits(np.array(out), before)


@pytest.mark.parametrize("name", ["q", "k", "v", "past_key", "past_value", "mask", "sinks"])
def test_an_output_that_overlaps_an_input(name):
    arguments = GOOD | PAST | {"mask": ones(2, 8, 5, 12), "sinks": ones(8)}
    memory = np.ones(2000, np.float32)
    arguments[name] = memory[: arguments[name].size].reshape(arguments[name].shape)
    out = memory[1 : 1 + 960].reshape(SHAPE)
    with pytest.raises(ValueError, match=f"out overlaps {name} in memory"):
        gqa.attention(**arguments, out=out)
    assert (memory == 1).all()


def test_the_output_may_not_be_the_query():
    q = ones(1, 2, 3, 4)
    with pytest.raises(ValueError, match="out overlaps q in memory"):
        gqa.attention(q, q, q.copy(), out=q)


def test_an_output_that_overlaps_a_quantised_input():
    memory = np.zeros((2, 4, 9, 16), np.int8)
    k = gqa.Quantized(memory, ones(2, 4, 9))
    out = memory.reshape(-1)[: 4 * 8 * 12].view(np.float32).reshape(1, 8, 1, 12)
    with pytest.raises(ValueError, match="out overlaps k in memory"):
        gqa.attention(ones(2, 8, 1, 16)[:1], gqa.Quantized(k.data[:1], k.scale[:1]), ones(1, 4, 9, 12), out=out)
    scale = ones(2, 8, 5, 12)
    k = gqa.Quantized(memory, scale.reshape(-1)[:72].reshape(2, 4, 9))
    with pytest.raises(ValueError, match="out overlaps the scale of k in memory"):
        gqa.attention(GOOD["q"], k, GOOD["v"], out=scale)


@pytest.mark.parametrize("name", ["q", "k", "v", "mask"])
def test_an_output_interleaved_with_an_input(name):
    """Rows in turn, or channels in turn: no byte in common."""
    case = cases.Case(heads=(4, 4), queries=6, keys=6, head_dim=8, v_head_dim=8, options=("float_mask",))
    arguments = case.arguments(np.float32)
    arguments["mask"] = np.ascontiguousarray(np.broadcast_to(arguments["mask"][..., :6], (2, 4, 6, 6)))
    expected = gqa.attention(**arguments)
    x = arguments[name]
    for axis in range(4):
        memory = np.zeros((*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :]), np.float32)
        if x.shape != expected.shape:
            memory = np.zeros((*x.shape[:3], 14), np.float32)
        turn = (slice(None),) * axis
        mine, other = (memory[(*turn, slice(i, None, 2))] for i in (0, 1))
        if x.shape != expected.shape:
            mine, other = memory[..., :6], memory[..., 6:]
        mine[...] = x
        assert gqa.attention(**arguments | {name: mine}, out=other) is other
        assert_same_bits(np.ascontiguousarray(other), expected)
        assert_same_bits(np.ascontiguousarray(mine), x)


# ---- accepted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"window": [3, None]}, {"window": (3, None)}),
        ({"window": (np.int64(3), np.uint8(2))}, {"window": (3, 2)}),
        ({"window": (10**400, 10**400)}, {}),
        ({"window": (2**63, 2**62)}, {}),
        ({"window": (None, None)}, {}),
        ({"window": (2**64, 0)}, {"causal": True}),
        ({"query_offset": np.int32(4), "causal": True}, {"causal": True}),
        ({"query_offset": np.array(4), "causal": True}, {"causal": True}),
        ({"query_offset": (4, 4), "causal": True}, {"causal": True}),
        ({"query_offset": 10**400, "causal": True}, {}),
        ({"query_offset": 2**62, "causal": True}, {}),
        ({"query_offset": np.array([2**63 - 1] * 2), "causal": True}, {}),
        ({"query_offset": np.array([2**64 - 1] * 2, np.uint64), "causal": True}, {}),
        ({"query_offset": -(10**400), "causal": True}, {"kv_lengths": [0, 0]}),
        ({"query_offset": np.array([-(2**63)] * 2), "causal": True}, {"kv_lengths": [0, 0]}),
        ({"query_offset": 2**61, "window": (2**60, None)}, {"kv_lengths": [0, 0]}),
        ({"kv_lengths": (3, 9)}, {"kv_lengths": np.array([3, 9])}),
        *(({"kv_lengths": np.array([3, 9], t)}, {"kv_lengths": [3, 9]}) for t in ("i1", "u1", ">i4", "i4", "u8")),
        ({"causal": np.True_}, {"causal": True}),
        ({"scale": np.float32(0.5)}, {"scale": 0.5}),
        ({"scale": np.array(0.5)}, {"scale": 0.5}),
        ({"scale": 2}, {"scale": 2.0}),
        ({"scale": 10**20}, {"scale": 1e20}),
        ({"scale": 0}, {"mask": np.full((1, 1), -1e30, np.float32)}),
        ({"softcap": 0}, {}),
        ({"softcap": np.float16(2)}, {"softcap": 2.0}),
        ({"softcap": 10**300}, {}),
        ({"num_threads": np.int64(2)}, {}),
        ({"num_threads": 10**400}, {}),
        ({"sinks": np.zeros(8, np.float16)}, {"sinks": np.zeros(8)}),
        ({"sinks": np.full(8, -np.inf, np.float32)}, {}),
        ({"layout": type("text", (str,), {})("bhsd")}, {}),
        ({"q": GOOD["q"].view(type("Array", (np.ndarray,), {}))}, {}),
    ],
    ids=lambda x: str(x)[:60] if x else "nothing",
)  # fmt: skip
def test_accepted(given, plain):
    rng = np.random.default_rng(0)
    good = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in GOOD.items()}
    if "q" in given:
        given = {"q": good["q"].view(type(given["q"]))}
    assert_same_bits(np.asarray(gqa.attention(**good | given)), gqa.attention(**good, **plain))


def test_positional_arguments_end_with_v():
    with pytest.raises(TypeError, match="positional"):
        gqa.attention(GOOD["q"], GOOD["k"], GOOD["v"], None)


def test_a_query_cannot_be_quantised():
    with pytest.raises(TypeError, match="q "):
        gqa.attention(gqa.quantize(GOOD["q"]), GOOD["k"], GOOD["v"])
