"""What the backward pass takes: tensors of other libraries, numbers of any kind, and what it leaves as it was."""

import numpy as np
import pytest

import cases
import gqa
from compare import assert_same_bits
from dlpack_producer import Producer
from gradient_cases import gradients, problem


@pytest.fixture
def call():
    """The keyword arguments of attention_vjp, all arrays among them."""
    arguments, dout = problem(cases.Case(queries=9, keys=40, options=("causal", "sinks")), np.float32)
    arguments["mask"] = np.random.default_rng(0).standard_normal((9, 40)).astype(np.float32)
    out, lse = gqa.attention(**arguments, return_lse=True)
    return {"dout": dout, "out": out, "lse": lse, "dlse": lse.copy(), "mask_grad": True} | arguments


def assert_same(actual, expected):
    for x, y in zip(actual, expected):
        assert_same_bits(x, y)


def test_tensors_of_other_libraries(call):
    tensors = {name: Producer(x) for name, x in call.items() if isinstance(x, np.ndarray)}
    assert_same(gqa.attention_vjp(**call | tensors), gqa.attention_vjp(**call))


def test_packed_tensors_of_other_libraries(rng):
    q, dout = rng.standard_normal((2, 9, 4, 8)).astype(np.float32)
    k, v = rng.standard_normal((2, 9, 2, 8)).astype(np.float32)
    ends = np.array([0, 4, 9], np.int32)
    out, lse = gqa.varlen_attention(q, k, v, ends, ends, return_lse=True)
    expected = gqa.varlen_attention_vjp(dout, q, k, v, ends, ends, out, lse, dlse=lse)[:3]
    tensors = [Producer(x) for x in (dout, q, k, v, ends, ends, out, np.ascontiguousarray(lse))]
    assert_same(gqa.varlen_attention_vjp(*tensors, dlse=lse)[:3], expected)


def test_numbers_of_any_kind(call):
    expected = gqa.attention_vjp(**call, window=(5, 2), query_offset=[3, 4], kv_lengths=(20, 7), scale=2.0, softcap=3.0)
    given = {"causal": np.True_, "mask_grad": np.True_, "window": [np.int8(5), 2], "num_threads": np.int64(2)}
    given |= {"query_offset": np.array([3, 4], np.uint8), "kv_lengths": np.array([20, 7])}
    given |= {"scale": np.float32(2), "softcap": 3}
    assert_same(gqa.attention_vjp(**call | given), expected)


def test_arguments_are_left_as_they_were(call):
    before = {name: x.copy() for name, x in call.items() if isinstance(x, np.ndarray)}
    for name in before:
        call[name].setflags(write=False)
    gqa.attention_vjp(**call)
    for name, x in before.items():
        assert_same_bits(call[name], x)


def test_gradients_are_new_arrays(call):
    results = [x for x in gqa.attention_vjp(**call) if x is not None]
    assert len(results) == 5
    for i, x in enumerate(results):
        assert x.flags.c_contiguous
        assert x.flags.writeable
        for y in (*results[:i], *(y for y in call.values() if isinstance(y, np.ndarray))):
            assert not np.shares_memory(x, y)


def test_an_attended_nan_shows_where_it_is_attended(isa, rng):
    """In all gradients of its row, and of its keys in all that the row attends: never anywhere else."""
    arguments, dout = problem(cases.Case(heads=(2, 2), queries=40, keys=40, options=("causal",)), np.float32)
    arguments["q"][1, 1, 5, 3] = np.nan
    dq, dk, dv, *_ = gradients(arguments, dout)
    assert np.isnan(dq[1, 1, 5]).all()
    for x in (dk, dv):
        assert np.isnan(x[1, 1, :6]).all()
        x[1, 1, :6] = 0
    dq[1, 1, 5] = 0
    for x in (dq, dk, dv):
        assert np.isfinite(x).all()


@pytest.mark.parametrize("name", ["dout", "q", "k", "v", "out", "lse"])
def test_none_is_no_tensor(call, name):
    with pytest.raises(TypeError, match=f"{name} is "):
        gqa.attention_vjp(**call | {name: None})


@pytest.mark.parametrize("name", ["past_key", "return_lse", "out_dtype"])
def test_options_of_the_forward_call_alone(call, name):
    with pytest.raises(TypeError, match=name):
        gqa.attention_vjp(**call, **{name: None})
