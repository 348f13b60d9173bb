"""Calls that GroupQueryAttention refuses: the error names the argument, and no given buffer is written."""

from __future__ import annotations

import numpy as np
import pytest

import gqa.onnx
from compare import assert_same_bits
from group_query_refused import GOOD, INT8, REFUSED, SHARED, SLIDING, name_of
from refused import ones


@pytest.mark.parametrize("row", REFUSED, ids=name_of)
@pytest.mark.parametrize("in_place", [False, True])
def test_refused(row, in_place):
    """With buffers that would fit a good call, or the past itself; a good call, just made, has left nothing behind."""
    change, error, message = row
    gqa.onnx.group_query_attention(**GOOD)
    call = {name: x.copy() if isinstance(x, np.ndarray) else x for name, x in (GOOD | change).items()}
    buffers = [call.get(name) for name in ("past_key", "past_value")] if in_place else []
    if not all(isinstance(x, np.ndarray) for x in (buffers or [None])):
        buffers = [np.full((2, 2, 19, 8), 7, np.float32) for _ in range(2)]
    before = [x.copy() for x in buffers]
    with pytest.raises(error, match=message):
        gqa.onnx.group_query_attention(**call, present_key=buffers[0], present_value=buffers[1])
    for buffer, old in zip(buffers, before):
        assert_same_bits(buffer, old)
    with pytest.raises(error, match=message):
        gqa.onnx.group_query_attention(**call)


def buffers_of(*shape, dtype=np.float32):
    return {"present_key": ones(*shape, dtype=dtype), "present_value": ones(*shape, dtype=dtype)}


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


STORAGE = ones(2, 2, 20, 8)
START, END = STORAGE[:, :, :16], STORAGE[:, :, 4:]
FITTING = buffers_of(2, 2, 16, 8)
PASTS = {"present_key": GOOD["past_key"], "present_value": GOOD["past_value"]}
BUFFERS = [
    ({"present_key": START}, ValueError, "present_key is given without present_value"),
    ({"present_value": START}, ValueError, "present_value is given without present_key"),
    (buffers_of(2, 2, 15, 8), ValueError, r"present_key has shape \(2, 2, 15, 8\), expected \(2, 2, 16, 8\)"),
    (buffers_of(1, 2, 16, 8), ValueError, "present_key has shape"),
    (buffers_of(2, 16, 2, 8), ValueError, "present_key has shape"),
    (buffers_of(2, 2, 16), ValueError, "present_key has shape"),
    (buffers_of(2, 2, 16, 8, dtype=np.float16), TypeError, "present_key has dtype float16, expected float32"),
    (FITTING | {"present_value": [1.0]}, TypeError, "present_value is a list"),
    (FITTING | {"present_key": read_only(ones(2, 2, 16, 8))}, ValueError, "present_key is read-only"),
    ({"present_key": STORAGE, "present_value": STORAGE}, ValueError, "present_value overlaps present_key"),
    ({"present_key": START, "present_value": END}, ValueError, "present_value overlaps present_key"),
    (
        {"present_key": GOOD["past_value"], "present_value": GOOD["past_key"]},
        ValueError, "present_key overlaps past_value",
    ),
    (FITTING | {"past_key": START, "present_key": END}, ValueError, "present_key overlaps past_key"),
    (FITTING | {"past_key": START, "present_value": END}, ValueError, "present_value overlaps past_key"),
    (
        FITTING | {"query": STORAGE.reshape(-1)[:192].reshape(2, 3, 32), "present_key": STORAGE},
        ValueError, "present_key overlaps query",
    ),
    (
        FITTING | {"value": STORAGE.reshape(-1)[99:195].reshape(2, 3, 16), "present_key": STORAGE},
        ValueError, "present_key overlaps value",
    ),
    (PASTS | {"past_value": GOOD["past_key"]}, ValueError, "present_key overlaps past_value"),
    (SHARED | FITTING, ValueError, "present_key is not the past itself"),
    (SLIDING | buffers_of(2, 2, 17, 8), ValueError, r"present_key has shape \(2, 2, 17, 8\), expected \(2, 2, 16, 8\)"),
    (INT8 | FITTING, TypeError, "present_key has dtype float32, expected int8"),
    (
        PASTS | {"total_sequence_length": 19, "seqlens_k": [18, 18]},
        ValueError, r"present_key has shape \(2, 2, 16, 8\), expected \(2, 2, 19, 8\)",
    ),
]  # fmt: skip


@pytest.mark.parametrize("row", BUFFERS, ids=name_of)
def test_refused_buffers(row):
    change, error, message = row
    call = GOOD | change
    before = {name: x.copy() for name, x in call.items() if isinstance(x, np.ndarray)}
    with pytest.raises(error, match=message):
        gqa.onnx.group_query_attention(**call)
    for name, x in before.items():
        assert_same_bits(call[name].copy(), x)
