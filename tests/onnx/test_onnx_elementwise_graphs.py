"""Graphs that compute each score by itself: as programs, against the reference evaluator of the package onnx."""

from __future__ import annotations

import numpy as np
import pytest

import child
import gqa
import gqa.onnx
from compare import assert_close
from score_programs import evaluated

parser = pytest.importorskip("onnx.parser")
SHAPE = (2, 4, 5, 7)
INDICES = """
    shape = Shape(x)
    S = Gather(shape, two)
    T = Gather(shape, three)
    S0 = Squeeze(S)
    T0 = Squeeze(T)
    rows = Range(zero, S0, one)
    keys = Range(zero, T0, one)
    row = Unsqueeze(rows, last)
    key = Unsqueeze(keys, first)
"""
CONSTANTS = """
    <int64 zero = {0}, int64 one = {1}, int64[1] two = {2}, int64[1] three = {3}, int64[1] last = {1},
     int64[1] first = {0}, float low = {-inf}, float half = {0.5}, int64 four = {4},
     float[7] bias = {1, -2, 3, 0, 5, 1, 1},
     int64[7] ids = {0, 0, 1, 1, 1, 2, 2}, float[4,1,1] slopes = {0.5, 0.25, 0.125, 0.0625}, int64 large = {3000000000},
     float[3,4] table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}>
"""
BODIES = {
    "soft cap": "a = Div(x, half) b = Tanh(a) y = Mul(b, half)",
    "constant": "y = Add(x, half)",
    "causal": INDICES + "seen = GreaterOrEqual(row, key) y = Where(seen, x, low)",
    "relative": INDICES + "d = Sub(row, key) f = Cast<to = 1>(d) y = Add(x, f)",
    "alibi": INDICES + "d = Sub(row, key) e = Abs(d) f = Cast<to = 1>(e) g = Mul(f, slopes) y = Sub(x, g)",
    "documents": INDICES + "r = Gather(ids, rows) k = Unsqueeze(r, last) same = Equal(k, ids) y = Where(same, x, low)",
    "of keys": "y = Add(x, bias)",
    "cumulative": "shape = Shape(x) T = Gather(shape, three) ones = ConstantOfShape<value = int64[1] {1}>(T) "
        "upto = CumSum(ones, zero) f = Cast<to = 1>(upto) y = Mul(x, f)",
    "exclusive": "shape = Shape(x) T = Gather(shape, three) ones = ConstantOfShape<value = int64[1] {2}>(T) "
        "upto = CumSum<exclusive = 1, reverse = 1>(ones, zero) f = Cast<to = 1>(upto) y = Mul(x, f)",
    "table": INDICES + "d = Sub(row, key) e = Abs(d) f = Div(e, four) g = Gather<axis = 1>(table, f) "
        "h = Gather<axis = 0>(g, one) y = Add(x, h)",
    "gathered twice": INDICES + "r = Mod(rows, three) k = Mod(keys, four) u = Unsqueeze(r, last) t = Gather(table, u) "
        "v = Squeeze(t, last) w = Gather<axis = 1>(v, k) y = Add(x, w)",
    "counted from the end": INDICES + "m = Sub(zero, keys) a = Sub(m, one) b = Gather(bias, a) y = Add(x, b)",
    "functions": "a = Exp(x) b = Abs(a) c = Log(b) d = Sqrt(b) e = Sin(c) f = Cos(d) g = Sign(x) h = Floor(x) "
        "i = Ceil(x) j = Neg(i) k = Reciprocal(a) l = Sigmoid(x) m = Relu(x) n = Max(e, f, g) o = Min(h, j, k) "
        "p = Sum(n, o, l, m) y = Identity(p)",
    "sums": "a = Exp(x) b = Sigmoid(x) c = Max(a, b, half) d = Min(c, x) e = Clip(d, low, half) f = Clip(e, half) "
        "g = Floor(x) h = Ceil(x) i = Sub(g, h) j = Neg(i) k = Relu(j) l = Sign(k) m = Add(l, f) y = Pow(m, half)",
    "logic": INDICES + "a = Less(row, key) b = Greater(row, key) c = Or(a, b) d = Not(c) e = Xor(d, a) f = And(e, c) "
        "g = LessOrEqual(x, half) h = And(f, g) y = Where(h, x, half)",
    "integers": INDICES + "d = Sub(key, row) e = Div(d, two) f = Mod(d, three) g = Mul(e, f) h = Neg(g) i = Max(h, d) "
        "j = Min(i, four) k = Cast<to = 1>(j) y = Add(x, k)",
    "reshape": "shape = Shape<start = 2>(x) S = Gather(shape, first) all = Shape(x) r = Gather(all, two) "
        "e = ConstantOfShape<value = int64[1] {1}>(r) c = CumSum(e, zero) n = Concat<axis = 0>(r, last) "
        "col = Reshape(c, n) f = Cast<to = 1>(col) y = Mul(x, f)",
    "expand": INDICES + "d = Sub(row, key) e = Expand(d, shape) f = Cast<to = 1>(e) y = Add(x, f)",
    "transpose": INDICES + "d = Sub(key, row) e = Transpose<perm = [0, 1]>(d) f = Cast<to = 1>(e) y = Add(x, f)",
    "bools": INDICES + "a = Less(row, key) b = Cast<to = 7>(a) c = Cast<to = 1>(b) d = Cast<to = 9>(c) "
        "y = Where(d, half, x)",
    "shared": "a = Add(x, x) b = Add(a, a) c = Add(b, b) d = Add(c, c) e = Add(d, d) f = Add(e, e) g = Add(f, f) "
        "h = Add(g, g) i = Add(h, h) j = Add(i, i) k = Add(j, j) l = Add(k, k) m = Add(l, l) n = Add(m, m) "
        "y = Add(n, n)",
    "nothing": "y = Identity(x)",
}  # fmt: skip
# Those whose scores depend on others, or whose numbers a program cannot have.
OTHERS = {
    "softmax": "y = Softmax(x)",
    "other rows": INDICES + "m = Sub(S0, one) n = Sub(m, rows) y = Gather<axis = 2>(x, n)",
    "reversed": INDICES + "m = Sub(zero, keys) a = Sub(m, one) y = Gather<axis = 3>(x, a)",
    "a running sum": "axis = Squeeze(three) y = CumSum(x, axis)",
    "half precision": "a = Cast<to = 10>(x) y = Cast<to = 1>(a)",
    "double": "a = Cast<to = 11>(x) y = Cast<to = 1>(a)",
    "large integers": INDICES + "a = Add(row, large) b = Add(a, key) c = Sub(b, large) "
    "d = Cast<to = 1>(c) y = Add(x, d)",
    "floats cut": INDICES + "a = Cast<to = 7>(x) b = Mul(a, a) c = Cast<to = 1>(b) y = Add(x, c)",
}


def graph_text(body):
    return f"g (float[B, H, S, T] x) => (float[B, H, S, T] y) {CONSTANTS} {{ {body} }}"


def modifier(body):
    from gqa.onnx.models.evaluator import graph_function

    return graph_function("score_mod", parser.parse_graph(graph_text(body)))


def coordinates():
    batch, heads, rows, keys = SHAPE
    return {
        "b": np.arange(batch)[:, None, None, None], "h": np.arange(heads)[:, None, None],
        "q_idx": np.arange(rows)[:, None], "kv_idx": np.arange(keys),
    }  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_programs(name, rng):
    function = modifier(BODIES[name])
    score = rng.standard_normal(SHAPE).astype(np.float32)
    with np.errstate(all="ignore"):
        expected = function(score)
    program = function.program(SHAPE, np.dtype(np.float32))
    assert program is not None
    actual = evaluated(program.plan, program.arrays, {"score": score.astype(np.float64), **coordinates()})
    np.testing.assert_allclose(np.broadcast_to(actual.get("score", score), SHAPE), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_other_graphs_are_no_programs(name, rng):
    """They still compute, on all scores."""
    function = modifier(OTHERS[name])
    assert function.program(SHAPE, np.dtype(np.float32)) is None
    assert function(rng.standard_normal(SHAPE).astype(np.float32)).shape == SHAPE


def test_a_program_is_made_once_for_a_shape():
    function = modifier(BODIES["alibi"])
    program = function.program(SHAPE, np.dtype(np.float32))
    assert function.program(SHAPE, np.dtype(np.float32)) is program
    assert function.program((2, 4, 6, 7), np.dtype(np.float32)) is not program


def test_ranges_become_indices():
    """No array is read for them."""
    plan = modifier(BODIES["causal"]).program(SHAPE, np.dtype(np.float32)).plan
    assert {x.op for x in plan.instructions} == {"score", "q_idx", "kv_idx", "le", "constant", "where"}


# ---- within attention ------------------------------------------------------------------------------------------------


def operands(rng, dtype, queries=40, keys=70):
    return [rng.standard_normal((2, heads, n, 16)).astype(dtype) for heads, n in ((4, queries), (2, keys), (2, keys))]


TYPED = {"float32": ("float", 1), "float64": ("double", 11)}


@pytest.mark.parametrize("name", ["soft cap", "causal", "relative", "alibi", "integers", "expand", "nothing"])
@pytest.mark.parametrize("dtype", TYPED)
def test_scores_of_attention(name, dtype, isa, rng):
    element, code = TYPED[dtype]
    text = f"g ({element}[B, H, S, T] x) => ({element}[B, H, S, T] y) {CONSTANTS} {{ {BODIES[name]} }}"
    text = text.replace("float low", f"{element} low").replace("float half", f"{element} half")
    text = text.replace("float[4,1,1]", f"{element}[4,1,1]").replace("to = 1>", f"to = {code}>")
    Q, K, V = operands(rng, dtype)
    graph = parser.parse_graph(text)
    whole = {"prob_mod": lambda p: p}  # which needs all probabilities, and so all scores
    expected = gqa.onnx.flex_attention(Q, K, V, score_mod=graph, **whole)
    assert_close(gqa.onnx.flex_attention(Q, K, V, score_mod=graph), expected.astype(np.float64), 4.0)


def test_programs_of_gqa(rng):
    """Their rows begin at key 0, as those of the operator do."""
    Q, K, V = operands(rng, np.float32)
    program = gqa.trace(lambda score, b, h, q_idx, kv_idx: np.where(q_idx >= kv_idx, score, -np.inf))
    expected = gqa.attention(Q, K, V, causal=True, query_offset=0)
    assert_close(gqa.onnx.flex_attention(Q, K, V, score_mod=program), expected.astype(np.float64))
    for name, other in (("score_mod", "prob_mod"), ("prob_mod", "score_mod")):
        with pytest.raises(ValueError, match=f"{name} is a program, but {other} is not"):
            gqa.onnx.flex_attention(Q, K, V, **{name: program, other: lambda x: x})


# ---- probabilities ---------------------------------------------------------------------------------------------------

KEPT = np.random.default_rng(5).random((40, 70)) < 0.8
# prob_mod as a function of gqa's, and of all probabilities.
PROBABILITIES = {
    "scaled": (lambda p, b, h, q, k: p * 0.5, lambda p: p * 0.5),
    "dropped": (lambda p, b, h, q, k: np.where(KEPT[q, k], p / 0.8, 0), lambda p: np.where(KEPT, p / 0.8, 0)),
    "negative": (lambda p, b, h, q, k: -p, lambda p: -p),
    "of both signs": (lambda p, b, h, q, k: p - 0.01 * (k % 2), lambda p: p - 0.01 * (np.arange(70) % 2)),
    "of keys that are masked": (lambda p, b, h, q, k: p + 0.125, lambda p: p + 0.125),
    "squared": (lambda p, b, h, q, k: p**2, lambda p: p**2),
    "nothing left": (lambda p, b, h, q, k: p * 0.0, lambda p: p * 0.0),
    "undefined": (lambda p, b, h, q, k: np.where(q == 7, np.nan, p), lambda p: np.where(ROWS == 7, np.nan, p)),
}
ROWS = np.arange(40)[:, None]


def distant(s, b, h, q, k):
    """Row 5 attends no key."""
    return np.where((k <= q) & (q != 5), s - 0.125 * (q - k), -np.inf)


@pytest.mark.parametrize("name", PROBABILITIES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("scale", [None, 20.0])
def test_programs_of_probabilities(name, dtype, scale, rng):
    """Against whole arrays, whose numbers are the oracle's; large scores are less exact in either."""
    Q, K, V = operands(rng, dtype)
    of_each, of_all = PROBABILITIES[name]
    wide = [x.astype(np.float64) for x in (Q, K, V)]
    j = np.arange(70)
    expected = gqa.onnx.flex_attention(
        *wide, scale=scale, prob_mod=of_all,
        score_mod=lambda x: np.where((j <= ROWS) & (ROWS != 5), x - 0.125 * (ROWS - j), -np.inf),
    )  # fmt: skip
    actual = gqa.onnx.flex_attention(Q, K, V, scale=scale, score_mod=gqa.trace(distant), prob_mod=gqa.trace(of_each))
    assert actual.dtype == Q.dtype
    magnitude = (20.0 if scale is None else 200.0) if dtype != "float16" else 20.0
    assert_close(actual, expected, magnitude)


@pytest.mark.parametrize("name", ["scaled", "by keys"])
def test_graphs_of_probabilities(name, rng):
    body = {"scaled": "y = Mul(x, half)", "by keys": INDICES + "s = Less(key, row) y = Where(s, x, half)"}[name]
    graph, causal = (parser.parse_graph(graph_text(text)) for text in (body, BODIES["causal"]))
    Q, K, V = operands(rng, np.float32)
    whole = gqa.onnx.flex_attention(Q, K, V, score_mod=lambda x: modifier(BODIES["causal"])(x), prob_mod=graph)
    expected = whole.astype(np.float64)
    assert_close(gqa.onnx.flex_attention(Q, K, V, score_mod=causal, prob_mod=graph), expected, 20.0)
    whole = gqa.onnx.flex_attention(Q, K, V, score_mod=lambda x: x, prob_mod=graph)
    assert_close(gqa.onnx.flex_attention(Q, K, V, prob_mod=graph), whole.astype(np.float64), 20.0)


@pytest.mark.parametrize("prob_mod", [False, True])
@pytest.mark.parametrize("name", ["causal", "soft cap", "relative"])
def test_no_array_of_scores(name, prob_mod):
    """8192 x 8192 of them would take 256 MiB."""
    code = f"""
        import resource
        import numpy as np, onnx.parser
        import gqa.onnx
        graph = onnx.parser.parse_graph({graph_text(BODIES[name])!r})
        graphs = {{"score_mod": graph}}
        if {prob_mod}:
            graphs["prob_mod"] = onnx.parser.parse_graph({graph_text("y = Mul(x, half)")!r})
        Q = K = V = np.ones((1, 1, 8192, 8), np.float32)
        gqa.onnx.flex_attention(Q[:, :, :64], K[:, :, :64], V[:, :, :64], **graphs)
        gqa.attention(Q, K, V)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        gqa.onnx.flex_attention(Q, K, V, **graphs)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    # Beside a plain call 1 MiB; with prob_mod there are also the logarithms of rows, and a result to be scaled.
    assert int(child.output_of(code)) < (1024 if not prob_mod else 2048)
