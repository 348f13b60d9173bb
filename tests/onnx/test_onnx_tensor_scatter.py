"""TensorScatter of ai.onnx against its pseudocode, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from compare import assert_same_bits
from gqa.onnx.cache_operators import tensor_scatter


def expected(past_cache, update, write_indices, mode, axis):
    """The specification's loops."""
    axis %= past_cache.ndim
    present = past_cache.copy()
    for prefix in np.ndindex(past_cache.shape[:axis]):
        for i in range(update.shape[axis]):
            slot = write_indices[prefix[0]] + i
            present[(*prefix, slot % past_cache.shape[axis] if mode == "circular" else slot)] = update[(*prefix, i)]
    return present


@pytest.mark.parametrize("tokens", [0, 1, 3, 7])
@pytest.mark.parametrize(
    ("mode", "starts"),
    [("linear", [0, 0]), ("circular", [6, 2]), ("circular", [7, 2**40 + 3]), ("linear", None)],
    ids=str,
)
@pytest.mark.parametrize("axis", [1, 2, -2, -1])
def test_the_specification(rng, axis, mode, starts, tokens):
    past = rng.standard_normal((2, 7, 7, 7), np.float32)
    update = np.moveaxis(rng.standard_normal((2, tokens, 7, 7), np.float32), 1, axis)
    before = past.copy()
    present = tensor_scatter(past, update, starts, mode=mode, axis=axis)
    assert_same_bits(present, expected(past, update, starts or [0, 0], mode, axis))
    assert_same_bits(past, before)


def test_the_last_slots(rng):
    past, update = rng.standard_normal((2, 3, 7, 4)), rng.standard_normal((2, 3, 2, 4))
    for starts in ([5, 0], np.array([1, 5], np.uint8)):
        assert_same_bits(tensor_scatter(past, update, starts), expected(past, update, starts, "linear", -2))


GOOD = {"past_cache": np.zeros((2, 3, 7, 4), np.float32), "update": np.ones((2, 3, 2, 4), np.float32)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"write_indices": [-1, 0]}, ValueError, r"write_indices\[0\] is -1, expected 0 to 5, for 2 tokens in 7 slots"),
        ({"write_indices": [0, 6]}, ValueError, r"write_indices\[1\] is 6, expected 0 to 5"),
        ({"write_indices": [0, -7], "mode": "circular"}, ValueError, r"write_indices\[1\] is -7, expected at least 0"),
        ({"write_indices": [0]}, ValueError, r"write_indices has shape \(1,\), expected \(2,\)"),
        ({"write_indices": [0.0, 1.0]}, TypeError, "write_indices has dtype float64"),
        ({"mode": "ring"}, ValueError, "mode is 'ring'"),
        ({"axis": 0}, ValueError, "axis is 0"),
        ({"axis": -4}, ValueError, "axis is -4"),
        ({"axis": 4}, ValueError, "axis is 4"),
        ({"axis": 1.0}, TypeError, "axis is 1.0"),
        ({"update": np.ones((2, 3, 8, 4), np.float32)}, ValueError, r"update has shape .* at most 7 on axis 2"),
        ({"update": np.ones((1, 3, 2, 4), np.float32)}, ValueError, r"update has shape \(1, 3, 2, 4\)"),
        ({"update": np.ones((2, 2, 4), np.float32)}, ValueError, r"update has shape \(2, 2, 4\)"),
        ({"update": np.ones((2, 3, 2, 4))}, TypeError, "update has dtype float64, expected float32"),
        ({"past_cache": [1.0]}, TypeError, "past_cache is a list"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_refused(change, error, message):
    tensor_scatter(**GOOD)
    with pytest.raises(error, match=message):
        tensor_scatter(**GOOD | change)
