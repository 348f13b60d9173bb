"""What ai.onnx Attention returns besides Y, and in which type it computes."""

from __future__ import annotations

import numpy as np
import pytest

import gqa.onnx
import oracle
from axes import DTYPES
from compare import assert_close, assert_same_bits

GOOD = {
    name: np.ones((2, heads, tokens, 8), np.float32) for name, heads, tokens in (("Q", 4, 3), ("K", 2, 5), ("V", 2, 5))
}


def hidden(x):
    """(B, H, S, D) as (B, S, H * D)."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


@pytest.mark.parametrize("mode", range(4))
def test_qk_matmul_output(rng, mode, dtype):
    Q, K, V = (rng.standard_normal((2, heads, n, 8)).astype(dtype) for heads, n in ((4, 3), (2, 5), (2, 5)))
    past_key, past_value = rng.standard_normal((2, 2, 2, 4, 8)).astype(dtype)
    mask = np.where(rng.random((3, 7)) < 0.7, rng.standard_normal((3, 7)), -np.inf).astype(dtype)
    mask[1] = -np.inf
    result = gqa.onnx.attention(
        Q, K, V, mask, past_key, past_value, is_causal=1, softcap=0.7, qk_matmul_output=True, qk_matmul_output_mode=mode
    )
    keys = np.concatenate((past_key, K), axis=2).repeat(2, axis=1).astype(np.float64)
    x = Q.astype(np.float64) @ keys.swapaxes(2, 3) / np.sqrt(8)
    if mode >= 1:
        x = 0.7 * np.tanh(x / 0.7)
    if mode >= 2:
        bias = np.concatenate((mask.astype(np.float64), np.full((3, 2), -np.inf)), axis=1)
        x = x + np.where(np.arange(9) <= 4 + np.arange(3)[:, None], bias, -np.inf)
    if mode == 3:
        p = np.exp(x)
        x = p / np.maximum(p.sum(-1, keepdims=True), 1e-300)
    assert result.qk_matmul_output.dtype == dtype
    assert_close(result.qk_matmul_output, x, magnitude=2)
    if mode >= 2:
        assert (result.qk_matmul_output[:, :, 1] == (-np.inf if mode == 2 else 0)).all()
    if mode == 3:
        values = np.concatenate((past_value, V), axis=2).repeat(2, axis=1).astype(np.float64)
        assert_close(result.Y, x @ values, magnitude=2)


@pytest.mark.parametrize("mode", [2, 3])
def test_qk_matmul_output_of_windows_and_lengths(mode):
    result = gqa.onnx.attention(
        **GOOD, nonpad_kv_seqlen=np.array([5, 2]), left_window_size=1, right_window_size=0,
        qk_matmul_output=True, qk_matmul_output_mode=mode,
    )  # fmt: skip
    seen = np.isfinite(result.qk_matmul_output) if mode == 2 else result.qk_matmul_output > 0
    np.testing.assert_array_equal(seen[0, 0], [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]])
    np.testing.assert_array_equal(seen[1, 0], [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]])


def test_presents_are_the_past_and_the_new_tokens(rng, dtype):
    K, V, past_key, past_value = rng.standard_normal((4, 2, 2, 5, 8)).astype(dtype)
    Q = rng.standard_normal((2, 4, 3, 8)).astype(dtype)
    result = gqa.onnx.attention(Q, K, V, None, past_key, past_value)
    assert_same_bits(result.present_key, np.concatenate((past_key, K), axis=2))
    assert_same_bits(result.present_value, np.concatenate((past_value, V), axis=2))
    assert gqa.onnx.attention(Q, K, V, None, past_key, past_value, present=False).present_key is None
    result = gqa.onnx.attention(*map(hidden, (Q, K, V)), q_num_heads=4, kv_num_heads=2, present=True)
    np.testing.assert_array_equal(result.present_key, K)
    np.testing.assert_array_equal(result.present_value, V)


@pytest.mark.parametrize("mode", range(4))
def test_qk_matmul_output_without_keys(mode):
    empty = np.zeros((2, 2, 0, 8), np.float32)
    result = gqa.onnx.attention(GOOD["Q"], empty, empty, qk_matmul_output=True, qk_matmul_output_mode=mode)
    assert result.qk_matmul_output.shape == (2, 4, 3, 0)
    assert not result.Y.any()


def test_qk_matmul_output_has_four_axes_whatever_q_has(rng):
    Q, K, V = rng.standard_normal((3, 2, 2, 4, 8)).astype(np.float32)
    arguments = {"qk_matmul_output": True, "qk_matmul_output_mode": 3, "is_causal": 1}
    flat = gqa.onnx.attention(*map(hidden, (Q, K, V)), q_num_heads=2, kv_num_heads=2, **arguments)
    assert_same_bits(flat.qk_matmul_output, gqa.onnx.attention(Q, K, V, **arguments).qk_matmul_output)


def test_softmax_precision_double_computes_in_double(dtype, rng):
    Q, K, V = (10 * rng.standard_normal((1, 2, 6, 16)).astype(dtype) for _ in range(3))
    result = gqa.onnx.attention(
        Q, K, V, softmax_precision=11, qk_matmul_output=True, qk_matmul_output_mode=0, is_causal=1, q_num_heads=2,
        kv_num_heads=2, opset=24,
    )  # fmt: skip
    want = oracle.attention(Q, K, V, causal=True)[0]
    raw = Q.astype(np.float64) @ K.astype(np.float64).swapaxes(2, 3) / 4
    assert result.Y.dtype == dtype
    np.testing.assert_allclose(result.Y.astype(np.float64), want.astype(dtype).astype(np.float64), rtol=1e-12)
    np.testing.assert_allclose(
        result.qk_matmul_output.astype(np.float64), raw.astype(dtype).astype(np.float64), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("code", [1, 10, 16])
def test_other_softmax_precisions_change_nothing(code, dtype, rng):
    Q, K, V = (rng.standard_normal((1, 2, 6, 16)).astype(dtype) for _ in range(3))
    assert_same_bits(gqa.onnx.attention(Q, K, V, softmax_precision=code).Y, gqa.onnx.attention(Q, K, V).Y)


@pytest.mark.parametrize("values", DTYPES.values(), ids=DTYPES)
def test_values_may_have_a_type_of_their_own(values, dtype, rng):
    """Y is of Q's, present_value of V's."""
    Q, K, past_key = (rng.standard_normal((1, 2, 4, 8)).astype(dtype) for _ in range(3))
    V, past_value = (rng.standard_normal((1, 2, 4, 8)).astype(values) for _ in range(2))
    result = gqa.onnx.attention(Q, K, V, None, past_key, past_value, softcap=1.5)
    want = oracle.attention(Q, K, V, past_key=past_key, past_value=past_value, softcap=1.5)[0]
    assert result.Y.dtype == dtype
    assert (result.present_key.dtype, result.present_value.dtype) == (dtype, values)
    assert_close(result.Y, want, magnitude=2)


def test_too_large_for_half_precision_is_infinity(rng):
    """Without a warning."""
    Q = K = np.full((1, 1, 2, 8), 200, np.float16)
    V = np.full((1, 1, 2, 8), 1e6, np.float32)
    for precision in (None, 11):
        result = gqa.onnx.attention(Q, K, V, softmax_precision=precision, qk_matmul_output=True, scale=1.0)
        assert np.isposinf(result.Y).all()
        assert np.isposinf(result.qk_matmul_output).all()
