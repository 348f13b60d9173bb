"""ai.onnx.preview FlexAttention: printed examples, modifiers as functions and as graphs, types, errors."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import child
import gqa
import gqa.onnx
import oracle
from compare import assert_close, assert_same_bits

PRECISIONS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}


def tensors(rng, dtype=np.float32, heads=(4, 2), queries=5, keys=7, head_dim=8, v_head_dim=6):
    shapes = (heads[0], queries, head_dim), (heads[1], keys, head_dim), (heads[1], keys, v_head_dim)
    return [rng.standard_normal((2, *shape)).astype(dtype) for shape in shapes]


def of_definition(Q, K, V, score_mod=None, prob_mod=None, scale=None):
    """In float64."""
    Q, K, V = (x.astype(np.float64) for x in (Q, K, V))
    K, V = (x.repeat(Q.shape[1] // x.shape[1], axis=1) for x in (K, V))
    x = Q @ K.swapaxes(2, 3) * (1 / np.sqrt(Q.shape[3]) if scale is None else scale)
    x = score_mod(x) if score_mod else x
    top = x.max(-1, keepdims=True)
    p = np.exp(x - np.where(np.isneginf(top), 0, top))
    p /= np.maximum(p.sum(-1, keepdims=True), 1e-300)
    return (prob_mod(p) if prob_mod else p) @ V


# ---- the examples of the specification ------------------------------------------------------------------------


def test_printed_example():
    Q = np.array([[[[1, 0], [0, 1]], [[0.5, 0.5], [1, -1]]]], np.float32)
    K = np.array([[[[1, 0], [0, 1]], [[1, 1], [-1, 1]]]], np.float32)
    V = np.array([[[[1, 2], [3, 4]], [[-1, 0], [0, 1]]]], np.float32)
    want = np.array(
        [[[[1.6604769, 2.660477], [2.339523, 3.339523]], [[-0.66976154, 0.33023846], [-0.80442965, 0.19557032]]]]
    )
    for score_mod in (None, lambda x: x):
        np.testing.assert_allclose(gqa.onnx.flex_attention(Q, K, V, score_mod=score_mod), want, rtol=0, atol=3e-7)


def test_printed_example_of_grouped_heads():
    Q = np.array(
        [[[[0.1, 0.2], [0.3, 0.4]], [[-0.1, 0.05], [0.2, -0.3]], [[0.5, 0.5], [0, 1]], [[1, 0], [0.5, -0.5]]]],
        np.float32,
    )
    K = np.array([[[[1, 0], [0.5, 0.5], [0, 1]], [[-1, 1], [1, 1], [0.25, -0.5]]]], np.float32)
    V = np.array([[[[1, 0], [0, 1], [-1, 1]], [[2, -2], [0.5, 0.25], [-0.5, 0]]]], np.float32)
    want = np.array([[
        [[-0.02356532, 0.6783799], [-0.02356531, 0.6783799]],
        [[-0.03533878, 0.6841799], [0.11724145, 0.6063233]],
        [[0.6482418, -0.37858847], [0.9917567, -0.74587834]],
        [[0.37784207, -0.12898168], [0.29831943, -0.26321504]],
    ]])  # fmt: skip
    for score_mod in (None, lambda x: x):
        np.testing.assert_allclose(gqa.onnx.flex_attention(Q, K, V, score_mod=score_mod), want, rtol=0, atol=1e-7)


# ---- modifiers ------------------------------------------------------------------------------------------------

POSITION = np.arange(7) - np.arange(5)[:, None]
SCORES = {
    "constant": lambda x: x + x.dtype.type(0.5),
    "causal": lambda x: np.where(POSITION <= 0, x, x.dtype.type(-np.inf)),
    "soft cap": lambda x: np.tanh(x / x.dtype.type(2)) * x.dtype.type(2),
    "relative position": lambda x: x + POSITION.astype(x.dtype),
    "alibi": lambda x: x - np.abs(POSITION).astype(x.dtype) * (2.0 ** -np.arange(1, 5)).astype(x.dtype)[:, None, None],
    "in place": lambda x: np.add(x, x.dtype.type(1), out=x),
}
PROBABILITIES = {
    "half": lambda p: p * p.dtype.type(0.5),
    "none of the small": lambda p: np.where(p < 0.2, p.dtype.type(0), p),
}


@pytest.mark.parametrize("name", SCORES)
def test_score_mod(name, dtype, rng):
    Q, K, V = tensors(rng, dtype)
    Y = gqa.onnx.flex_attention(Q, K, V, score_mod=SCORES[name])
    assert Y.dtype == dtype
    assert_close(Y, of_definition(Q, K, V, SCORES[name]), magnitude=4)


@pytest.mark.parametrize("name", PROBABILITIES)
def test_prob_mod_is_the_last_word(name, dtype, rng):
    """Nothing is normalised after it."""
    Q, K, V = tensors(rng, dtype)
    Y = gqa.onnx.flex_attention(Q, K, V, score_mod=SCORES["causal"], prob_mod=PROBABILITIES[name], scale=0.3)
    assert_close(Y, of_definition(Q, K, V, SCORES["causal"], PROBABILITIES[name], scale=0.3), magnitude=4)


def test_without_modifiers_it_is_attention(dtype, rng):
    Q, K, V = tensors(rng, dtype)
    assert_same_bits(gqa.onnx.flex_attention(Q, K, V, scale=0.3), gqa.attention(Q, K, V, scale=0.3))


def test_scales_of_any_sign(rng):
    Q, K, V = tensors(rng)
    for scale in (-0.5, 0.0):
        for score_mod in (None, lambda x: x):
            Y = gqa.onnx.flex_attention(Q, K, V, scale=scale, score_mod=score_mod)
            assert_close(Y, of_definition(Q, K, V, scale=scale), magnitude=2)


def test_a_row_of_minus_infinity_is_zero(rng):
    Q, K, V = tensors(rng)
    mask = np.where(np.arange(5)[:, None] == 2, np.float32(-np.inf), np.float32(0))
    Y = gqa.onnx.flex_attention(Q, K, V, score_mod=lambda x: x + mask)
    assert not Y[:, :, 2].any()
    assert np.isfinite(Y).all()


@pytest.mark.parametrize("code", [None, *PRECISIONS])
def test_modifiers_see_softmax_precision(code, dtype, rng):
    """The default is float32, and float64 for float64."""
    Q, K, V = tensors(rng, dtype)
    seen = []

    def spy(x):
        seen.append((x.dtype.name, x.shape))
        return x

    Y = gqa.onnx.flex_attention(Q, K, V, softmax_precision=code, score_mod=spy, prob_mod=spy)
    default = "float64" if dtype == np.float64 else "float32"
    assert seen == [(PRECISIONS.get(code, default), (2, 4, 5, 7))] * 2
    assert Y.dtype == dtype
    coarse = {10: 2**-10, 16: 2**-7}.get(code, 0) + {2: 2**-7}.get(Y.itemsize, 1e-6)
    np.testing.assert_allclose(Y.astype(np.float64), of_definition(Q, K, V), rtol=0, atol=4 * coarse)


def test_what_a_modifier_keeps_is_not_changed(rng):
    Q, K, V = tensors(rng)
    kept = rng.standard_normal((2, 4, 5, 7)).astype(np.float32)
    before = kept.copy()
    gqa.onnx.flex_attention(Q, K, V, score_mod=lambda x: kept)
    assert_same_bits(kept, before)


def test_at_most_two_score_tensors_at_a_time(rng):
    """One and its successor, whatever the number of modifiers."""
    Q, K, V = tensors(rng, queries=256, keys=512)
    size = 2 * 4 * 256 * 512 * 4
    tracemalloc.start()
    gqa.onnx.flex_attention(Q, K, V, score_mod=lambda x: np.add(x, 1, out=x), prob_mod=lambda x: x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.2 * size


# ---- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modifier", "error", "message"),
    [
        (lambda x: x[:, :1], ValueError, r"returns shape \(2, 1, 5, 7\), expected \(2, 4, 5, 7\)"),
        (lambda x: x[0], ValueError, "returns shape"),
        (lambda x: x.astype(np.float64), TypeError, "returns dtype float64, expected float32"),
        (lambda x: x > 0, TypeError, "returns dtype bool"),
        (lambda x: None, TypeError, "returns is a NoneType"),
        (lambda x: x.tolist(), TypeError, "returns is a list"),
        (3, TypeError, r"is a int, expected a function or an onnx.GraphProto"),
    ],
)
@pytest.mark.parametrize("name", ["score_mod", "prob_mod"])
def test_modifiers_that_are_refused(name, modifier, error, message, rng):
    with pytest.raises(error, match=f"{name} .*{message}|{name} {message}"):
        gqa.onnx.flex_attention(*tensors(rng), **{name: modifier})


def test_what_a_modifier_raises_comes_through(rng):
    with pytest.raises(ZeroDivisionError):
        gqa.onnx.flex_attention(*tensors(rng), score_mod=lambda x: 1 / 0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"Q": np.ones((5, 8), np.float32)}, ValueError, r"Q has shape \(5, 8\), expected 4 axes"),
        ({"K": np.ones((2, 3, 7, 8), np.float32), "V": np.ones((2, 3, 7, 6), np.float32)}, ValueError, "K has 3 heads"),
        ({"V": np.ones((2, 2, 6, 6), np.float32)}, ValueError, "V has tokens 6, expected 7"),
        ({"V": np.ones((2, 1, 7, 6), np.float32)}, ValueError, "V has heads 1, expected 2"),
        ({"K": np.ones((2, 2, 7, 4), np.float32)}, ValueError, "K has channels 4, expected 8"),
        ({"K": np.ones((1, 2, 7, 8), np.float32)}, ValueError, "K has batch 1, expected 2"),
        ({"V": np.ones((2, 2, 7, 6), np.float16)}, TypeError, "V has dtype float16, expected float32 as Q"),
        ({"Q": np.ones((2, 4, 5, 8), np.int32)}, TypeError, "Q has dtype int32"),
        ({"Q": [1.0]}, TypeError, "Q is a list"),
        ({"softmax_precision": 7}, ValueError, "softmax_precision is 7, expected one of 1, 10, 11, 16"),
        ({"scale": np.inf}, ValueError, "scale is inf"),
        ({"scale": "1"}, TypeError, "scale is '1'"),
        ({"num_threads": 0}, ValueError, "num_threads is 0"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_refused(change, error, message, rng):
    with pytest.raises(error, match=message):
        gqa.onnx.flex_attention(**dict(zip("QKV", tensors(rng))) | change)


# ---- graphs ---------------------------------------------------------------------------------------------------


def graph(text):
    parser = pytest.importorskip("onnx.parser")
    return parser.parse_graph(text)


def test_graphs(rng):
    Q, K, V = tensors(rng)
    capped = graph("""
        g (float[B, H, S, T] x) => (float[B, H, S, T] y) <float two = {2.0}> {
            a = Div(x, two)
            b = Tanh(a)
            y = Mul(b, two)
        }
    """)
    halved = graph("g (float[B, H, S, T] p) => (float[B, H, S, T] y) <float half = {0.5}> {y = Mul(p, half)}")
    Y = gqa.onnx.flex_attention(Q, K, V, score_mod=capped, prob_mod=halved)
    assert_close(Y, of_definition(Q, K, V, SCORES["soft cap"], PROBABILITIES["half"]), magnitude=2)


def test_a_graph_without_nodes_is_the_identity(rng):
    Q, K, V = tensors(rng)
    identity = graph("g (float[B, H, S, T] x) => (float[B, H, S, T] x) {}")
    assert_close(gqa.onnx.flex_attention(Q, K, V, score_mod=identity), oracle.attention(Q, K, V)[0], magnitude=2)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("g (float x, float y) => (float z) {z = Add(x, y)}", ValueError, "score_mod has 2 inputs and 1 outputs"),
        ("g (float x) => (float x, float y) {y = Neg(x)}", ValueError, "score_mod has 1 inputs and 2 outputs"),
        ("g (float x) => (float y) {y = Add(x, z)}", ValueError, "score_mod uses 'z' from outside of its graph"),
        ("g (float16 x) => (float16 y) {y = Neg(x)}", TypeError, "score_mod takes FLOAT16, but .* is float32"),
        ("g (float x) => (float y) <int64[1] a = {1}> {y = ReduceSum(x, a)}", ValueError, "score_mod returns shape"),
        ("g (float x) => (double y) {y = Cast<to = 11>(x)}", TypeError, "score_mod returns dtype float64"),
    ],
)
def test_graphs_that_are_refused(text, error, message, rng):
    with pytest.raises(error, match=message):
        gqa.onnx.flex_attention(*tensors(rng), score_mod=graph(text))


def test_functions_need_no_onnx():
    code = """
        import sys
        sys.modules["onnx"] = None
        import gqa.onnx, numpy as np
        Q = K = V = np.ones((1, 1, 2, 4), np.float32)
        print(gqa.onnx.flex_attention(Q, K, V, score_mod=lambda x: x).sum())
    """
    assert child.output_of(code) == "8.0"
