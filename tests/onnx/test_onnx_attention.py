"""ai.onnx Attention: what is its own about masks, positions, outputs and opsets, against the float64 oracle."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import gqa.onnx
import oracle
from compare import assert_close, assert_same_bits

GOOD = {
    name: np.ones((2, heads, tokens, 8), np.float32) for name, heads, tokens in (("Q", 4, 3), ("K", 2, 5), ("V", 2, 5))
}
PAST = {name: np.ones((2, 2, 6, 8), np.float32) for name in ("past_key", "past_value")}


def by_heads(x, heads):
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def hidden(x):
    """(B, H, S, D) as (B, S, H * D)."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def expected(Q, K, V, attn_mask=None, past_key=None, past_value=None, nonpad_kv_seqlen=None, *, is_causal=0, scale=None,
             softcap=0.0, left_window_size=-1, right_window_size=-1):  # fmt: skip
    """Y in float64 by the rules of opset 25, for inputs of four axes."""
    past = 0 if past_key is None else past_key.shape[2]
    total = past + K.shape[2]
    mask = attn_mask
    if mask is not None and mask.shape[-1] < total:
        fill = False if mask.dtype == bool else -np.inf
        mask = np.concatenate((mask, np.full((*mask.shape[:-1], total - mask.shape[-1]), fill, mask.dtype)), axis=-1)
    left, right = (None if n < 0 else n for n in (left_window_size, right_window_size))
    return oracle.attention(
        Q, K, V, past_key=past_key, past_value=past_value, mask=mask, causal=bool(is_causal), window=(left, right),
        query_offset=past if nonpad_kv_seqlen is None else nonpad_kv_seqlen - Q.shape[2],
        kv_lengths=nonpad_kv_seqlen, scale=scale, softcap=softcap,
    )[0]  # fmt: skip


def random_problem(seed, dtype):
    """Inputs of four axes and attributes."""
    rng = np.random.default_rng(seed)
    heads, group, queries = (int(rng.integers(1, n)) for n in (4, 5, 8))
    new, past, head_dim, v_head_dim = (int(rng.integers(1, n)) for n in (30, 20, 40, 40))

    def tensor(*shape):
        return rng.standard_normal((2, *shape)).astype(dtype)

    inputs = {
        "Q": tensor(heads * group, queries, head_dim),
        "K": tensor(heads, new, head_dim),
        "V": tensor(heads, new, v_head_dim),
    }
    cache = rng.choice(["none", "past", "nonpad"])
    if cache == "past":
        inputs |= {"past_key": tensor(heads, past, head_dim), "past_value": tensor(heads, past, v_head_dim)}
    elif cache == "nonpad":
        inputs["nonpad_kv_seqlen"] = rng.integers(0, new + 1, 2)
    total = new + (past if cache == "past" else 0)
    kind = rng.choice(["none", "bool", "float"])
    if kind != "none":
        width = int(rng.choice([total, total, rng.integers(1, total + 1)]))
        shape = (rng.choice([1, 2]), rng.choice([1, heads * group]), rng.choice([1, queries]), width)[
            rng.integers(0, 4) :
        ]
        inputs["attn_mask"] = rng.random(shape) < 0.7 if kind == "bool" else rng.standard_normal(shape).astype(dtype)
    attributes = {"is_causal": int(rng.integers(0, 2))}
    if rng.random() < 0.4:
        attributes |= {"left_window_size": int(rng.integers(-1, 9)), "right_window_size": int(rng.integers(-1, 9))}
    if rng.random() < 0.3:
        attributes |= {"softcap": 1.5, "scale": 0.3}
    return inputs, attributes


@pytest.mark.parametrize("seed", range(30))
def test_random_problems(seed, dtype, isa):
    inputs, attributes = random_problem(seed, dtype)
    want = expected(**inputs, **attributes)
    Y, present_key, *_ = gqa.onnx.attention(**inputs, **attributes)
    assert Y.dtype == dtype
    assert_close(Y, want, magnitude=2)
    assert (present_key is not None) == ("past_key" in inputs)

    heads = {"q_num_heads": inputs["Q"].shape[1], "kv_num_heads": inputs["K"].shape[1]}
    flat = inputs | {name: hidden(inputs[name]) for name in "QKV"}
    assert_same_bits(gqa.onnx.attention(**flat, **attributes, **heads).Y, hidden(Y))


# ---- positions and masks --------------------------------------------------------------------------------------


def test_causal_without_a_cache_starts_at_the_first_key():
    """Row i sees keys 0 to i although there are more keys than queries."""
    Q, K, V = (
        np.zeros((1, 1, 4, 1), np.float32),
        np.zeros((1, 1, 6, 1), np.float32),
        np.eye(6, dtype=np.float32)[None, None],
    )
    Y = gqa.onnx.attention(Q, K, V, is_causal=1).Y
    np.testing.assert_array_equal(np.count_nonzero(Y[0, 0], axis=1), [1, 2, 3, 4])


def test_causal_moves_with_the_query_under_a_mask_of_one_row(rng):
    Q, K, V = rng.standard_normal((3, 2, 2, 5, 8))
    for mask in (np.zeros(5), np.zeros((1, 5)), np.zeros((2, 1, 1, 5), bool) | True):
        assert_close(gqa.onnx.attention(Q, K, V, mask, is_causal=1).Y, expected(Q, K, V, is_causal=1))


def test_is_causal_means_one():
    Y = gqa.onnx.attention(**GOOD, is_causal=1, qk_matmul_output=True, qk_matmul_output_mode=3).qk_matmul_output
    assert np.count_nonzero(Y[0, 0, 0]) == 1
    for value in (0, 2, -1):
        Y = gqa.onnx.attention(**GOOD, is_causal=value, qk_matmul_output=True, qk_matmul_output_mode=3).qk_matmul_output
        assert np.count_nonzero(Y[0, 0, 0]) == 5


def test_rows_before_the_first_key_are_zero():
    """nonpad_kv_seqlen 2 puts the first of 3 queries at position -1; 0 leaves no key at all."""
    Y = gqa.onnx.attention(**GOOD, nonpad_kv_seqlen=np.array([2, 0]), is_causal=1).Y
    np.testing.assert_array_equal(Y[:, 0, :, 0], [[0, 1, 1], [0, 0, 0]])


def test_a_mask_of_three_axes_is_per_head(rng):
    Q, K, V = rng.standard_normal((3, 2, 2, 3, 8))
    mask = rng.random((2, 3, 3)) < 0.5
    assert_close(gqa.onnx.attention(Q, K, V, mask).Y, expected(Q, K, V, mask[None]))
    with pytest.raises(
        ValueError, match=r"attn_mask has shape \(3, 3, 3\), which does not broadcast to \(2, 2, 3, 3\)"
    ):
        gqa.onnx.attention(Q, K, V, np.ones((3, 3, 3)))


@pytest.mark.parametrize("mode", [2, 3])
@pytest.mark.parametrize("past", [{}, PAST])
@pytest.mark.parametrize("width", [1, 3, 5])
def test_a_narrow_mask_masks_what_it_does_not_reach(width, past, mode):
    mask = np.zeros((3, width), np.float32)
    result = gqa.onnx.attention(
        **GOOD, **past, attn_mask=mask, opset=24, qk_matmul_output=True, qk_matmul_output_mode=mode
    )
    seen = np.isfinite(result.qk_matmul_output) if mode == 2 else result.qk_matmul_output > 0
    assert seen[..., :width].all()
    assert not seen[..., width:].any()
    total = 5 + (6 if past else 0)
    full = np.where(np.arange(total) < width, 0, -np.inf).astype(np.float32)
    np.testing.assert_allclose(result.Y, gqa.onnx.attention(**GOOD, **past, attn_mask=full).Y, rtol=1e-6)


@pytest.mark.parametrize("scale", [-0.7, -1, 0.0])
def test_any_finite_scale(scale):
    Q, K, V = GOOD.values()
    assert_close(gqa.onnx.attention(Q, K, V, scale=scale).Y, expected(Q, K, V, scale=scale))
    result = gqa.onnx.attention(Q, K, V, scale=scale, qk_matmul_output=True)
    assert_close(result.qk_matmul_output, scale * Q.astype(float) @ np.repeat(K, 2, 1).astype(float).swapaxes(2, 3))


def test_lists_of_integers_and_threads():
    want = gqa.onnx.attention(**GOOD, nonpad_kv_seqlen=np.array([2, 3])).Y
    assert_same_bits(gqa.onnx.attention(**GOOD, nonpad_kv_seqlen=[2, 3], num_threads=2).Y, want)
    with pytest.raises(ValueError, match="num_threads is 0"):
        gqa.onnx.attention(**GOOD, num_threads=0)


def test_opset_23_broadcasts_a_mask_and_pads_none():
    mask = np.full((3, 1), 2, np.float32)
    np.testing.assert_array_equal(gqa.onnx.attention(**GOOD, attn_mask=mask, opset=23).Y, gqa.onnx.attention(**GOOD).Y)
    with pytest.raises(ValueError, match="attn_mask"):
        gqa.onnx.attention(**GOOD, attn_mask=np.ones((3, 4), np.float32), opset=23)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64])
def test_integers_in_a_mask_are_added(rng, dtype):
    Q, K, V = rng.standard_normal((3, 1, 2, 4, 8)).astype(np.float32)
    mask = rng.integers(0, 3, (4, 4)).astype(dtype)
    assert_close(gqa.onnx.attention(Q, K, V, mask).Y, expected(Q, K, V, mask.astype(np.float64)))


def test_a_row_of_very_negative_numbers_is_an_ordinary_row(rng):
    mask = np.full((3, 5), np.finfo(np.float32).min, np.float32)
    arguments = GOOD | {"V": rng.standard_normal((2, 2, 5, 8)).astype(np.float32)}
    Y = gqa.onnx.attention(**arguments, attn_mask=mask).Y
    np.testing.assert_allclose(Y, gqa.onnx.attention(**arguments).Y, rtol=1e-5, atol=1e-6)


def test_what_is_masked_does_not_matter(rng):
    Q, K, V = (rng.standard_normal((2, heads, 5, 8)).astype(np.float32) for heads in (4, 2, 2))
    clean = gqa.onnx.attention(Q, K, V, nonpad_kv_seqlen=np.array([3, 2])).Y
    K[:, :, 3:], V[:, :, 3:] = np.nan, np.inf
    assert_same_bits(gqa.onnx.attention(Q, K, V, nonpad_kv_seqlen=np.array([3, 2])).Y, clean)


def test_bfloat16_is_a_mask_too(rng):
    Q, K, V = rng.standard_normal((3, 1, 2, 4, 8)).astype(ml_dtypes.bfloat16)
    mask = rng.standard_normal((4, 3)).astype(ml_dtypes.bfloat16)
    assert_close(gqa.onnx.attention(Q, K, V, mask).Y, expected(Q, K, V, mask), magnitude=2)
