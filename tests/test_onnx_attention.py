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
    tensor = lambda *shape: rng.standard_normal((2, *shape)).astype(dtype)
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


# ---- outputs --------------------------------------------------------------------------------------------------


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


def test_softmax_precision_double_computes_in_double(rng):
    Q, K, V = (100 * rng.standard_normal((1, 2, 6, 16)) for _ in range(3))
    single = [x.astype(np.float32) for x in (Q, K, V)]
    Y = gqa.onnx.attention(*single, softmax_precision=11).Y
    assert Y.dtype == np.float32
    np.testing.assert_array_equal(Y, expected(*single).astype(np.float32))
    for code in (1, 10, 16):
        np.testing.assert_array_equal(
            gqa.onnx.attention(*single, softmax_precision=code).Y, gqa.onnx.attention(*single).Y
        )


def test_values_may_have_a_type_of_their_own(rng):
    Q, K, V = rng.standard_normal((3, 1, 2, 4, 8))
    Y = gqa.onnx.attention(Q.astype(np.float16), K.astype(np.float16), V.astype(np.float32)).Y
    assert Y.dtype == np.float16
    assert_close(Y, expected(Q.astype(np.float16), K.astype(np.float16), V.astype(np.float32)), magnitude=2)


def test_no_keys():
    empty = np.zeros((2, 2, 0, 8), np.float32)
    assert not gqa.onnx.attention(GOOD["Q"], empty, empty).Y.any()


# ---- what is refused ------------------------------------------------------------------------------------------

FLAT = {
    "Q": np.ones((2, 3, 32), np.float32),
    "K": np.ones((2, 5, 16), np.float32),
    "V": np.ones((2, 5, 16), np.float32),
}
half = {name: x.astype(np.float16) for name, x in (GOOD | PAST).items()}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"K": GOOD["K"][:, :1].repeat(3, 1), "V": GOOD["V"][:, :1].repeat(3, 1)}, ValueError, "K has 3 heads, which does not divide the 4 heads of Q"),
        ({"K": GOOD["K"][:1], "V": GOOD["V"][:1]}, ValueError, "K has batch 1, expected 2"),
        ({"V": GOOD["V"][:, :, :4]}, ValueError, "V has tokens 4, expected 5"),
        ({"K": GOOD["K"][..., :7]}, ValueError, "K has channels 7, expected 8"),
        ({"K": FLAT["K"]}, ValueError, r"K has shape \(2, 5, 16\), expected 4 axes"),
        ({"Q": np.ones(8, np.float32)}, ValueError, r"Q has shape \(8,\), expected 3 or 4 axes"),
        (FLAT, ValueError, "q_num_heads is missing"),
        (FLAT | {"q_num_heads": 4}, ValueError, "kv_num_heads is missing"),
        (FLAT | {"q_num_heads": 3, "kv_num_heads": 2}, ValueError, "Q has 32 channels, which is not a multiple of q_num_heads 3"),
        (FLAT | {"q_num_heads": 0, "kv_num_heads": 2}, ValueError, "q_num_heads is 0"),
        ({"q_num_heads": 4}, ValueError, "q_num_heads is 4, expected none"),
        ({"q_num_heads": 8, "opset": 23}, ValueError, "q_num_heads is 8, but Q has shape"),
        ({"past_key": PAST["past_key"]}, ValueError, "past_key is given without past_value"),
        ({"past_value": PAST["past_value"]}, ValueError, "past_value is given without past_key"),
        (PAST | {"past_value": PAST["past_value"][:, :, :5]}, ValueError, "past_value has tokens 5, expected 6"),
        (PAST | {"past_key": PAST["past_key"][0]}, ValueError, "past_key has shape .* expected 4 axes"),
        (PAST | {"nonpad_kv_seqlen": np.array([1, 1])}, ValueError, "nonpad_kv_seqlen is given with past_key"),
        ({"nonpad_kv_seqlen": np.array([1, 1]), "present": True}, ValueError, "nonpad_kv_seqlen is given with present outputs"),
        ({"nonpad_kv_seqlen": np.array([1, 1]), "opset": 23}, ValueError, "nonpad_kv_seqlen is given at opset 23"),
        ({"nonpad_kv_seqlen": np.array([1, 6])}, ValueError, r"nonpad_kv_seqlen\[1\] is 6, expected 0 to 5"),
        ({"nonpad_kv_seqlen": np.array([-1, 1])}, ValueError, r"nonpad_kv_seqlen\[0\] is -1"),
        ({"nonpad_kv_seqlen": np.array([1])}, ValueError, r"nonpad_kv_seqlen has shape \(1,\)"),
        ({"nonpad_kv_seqlen": np.array([1.0, 1.0])}, TypeError, "nonpad_kv_seqlen has dtype float64"),
        ({"attn_mask": np.ones((3, 6), bool)}, ValueError, "attn_mask has shape .* expected at most 5 keys"),
        ({"attn_mask": np.ones((2, 5), bool)}, ValueError, "attn_mask"),
        ({"attn_mask": np.array(True)}, ValueError, "attn_mask has shape .* expected 1 to 4 axes"),
        ({"attn_mask": np.ones((1, 1, 1, 1, 5), bool)}, ValueError, "attn_mask has shape .* expected 1 to 4 axes"),
        ({"attn_mask": np.ones((3, 5), complex)}, TypeError, "attn_mask has dtype complex128"),
        ({"left_window_size": -2}, ValueError, "left_window_size is -2, expected at least -1"),
        ({"right_window_size": 1, "opset": 24}, ValueError, "right_window_size is 1, expected -1"),
        ({"opset": 22}, ValueError, "opset is 22"),
        ({"scale": -1.0}, ValueError, "scale is -1"),
        ({"softcap": -1.0}, ValueError, "softcap is -1"),
        ({"softcap": np.nan}, ValueError, "softcap is nan"),
        ({"softmax_precision": 7}, ValueError, "softmax_precision is 7, expected one of 1, 10, 11, 16"),
        ({"qk_matmul_output_mode": 4}, ValueError, "qk_matmul_output_mode is 4"),
        ({"K": half["K"]}, TypeError, "K has dtype float16, expected float32 as Q"),
        (PAST | {"past_key": half["past_key"]}, TypeError, "past_key has dtype float16, expected float32 as Q"),
        (PAST | {"past_value": half["past_value"]}, TypeError, "past_value has dtype float16, expected float32 as V"),
        ({"Q": GOOD["Q"].astype(np.int32), "K": GOOD["K"].astype(np.int32)}, TypeError, "Q has dtype int32"),
        ({"Q": GOOD["Q"].astype(">f4")}, TypeError, "Q has dtype '>f4', expected native"),
        ({"K": None}, TypeError, "K is a NoneType"),
        ({"Q": [[1.0]]}, TypeError, "Q is a list"),
        ({"is_causal": "yes"}, TypeError, "is_causal is 'yes'"),
        ({"present": 1}, TypeError, "present is 1"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_refused(change, error, message):
    with pytest.raises(error, match=message):
        gqa.onnx.attention(**GOOD | change)


def test_opset_24_lets_presents_go_with_nonpad_kv_seqlen():
    assert gqa.onnx.attention(**GOOD, nonpad_kv_seqlen=np.array([1, 5]), present=True, opset=24).present_key is not None


def test_later_opsets_have_the_rules_of_25():
    with pytest.raises(ValueError, match="q_num_heads"):
        gqa.onnx.attention(**GOOD, q_num_heads=4, kv_num_heads=2, opset=28)
    assert gqa.onnx.attention(**GOOD, q_num_heads=4, kv_num_heads=2, opset=24).Y.shape == (2, 4, 3, 8)


def test_bfloat16_is_a_mask_too(rng):
    Q, K, V = rng.standard_normal((3, 1, 2, 4, 8)).astype(ml_dtypes.bfloat16)
    mask = rng.standard_normal((4, 3)).astype(ml_dtypes.bfloat16)
    assert_close(gqa.onnx.attention(Q, K, V, mask).Y, expected(Q, K, V, mask), magnitude=2)
