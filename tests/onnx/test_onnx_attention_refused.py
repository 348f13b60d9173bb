"""Calls that ai.onnx Attention refuses, at one opset or at all, and what the error says."""

from __future__ import annotations

import numpy as np
import pytest

import gqa.onnx
from attention_refused import GOOD, REFUSED


@pytest.mark.parametrize(("change", "error", "message"), REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_refused(change, error, message):
    with pytest.raises(error, match=message):
        gqa.onnx.attention(**GOOD | change)


def test_opset_24_lets_presents_go_with_nonpad_kv_seqlen():
    assert gqa.onnx.attention(**GOOD, nonpad_kv_seqlen=np.array([1, 5]), present=True, opset=24).present_key is not None


def test_later_opsets_have_the_rules_of_25():
    with pytest.raises(ValueError, match="q_num_heads"):
        gqa.onnx.attention(**GOOD, q_num_heads=4, kv_num_heads=2, opset=28)
    assert gqa.onnx.attention(**GOOD, q_num_heads=4, kv_num_heads=2, opset=24).Y.shape == (2, 4, 3, 8)
