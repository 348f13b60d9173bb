"""Running ONNX models: gqa.onnx.run, and its operators in the evaluator of the package onnx."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
parser = pytest.importorskip("onnx.parser")

from onnx.reference import ReferenceEvaluator  # noqa: E402

import gqa  # noqa: E402
import gqa.onnx  # noqa: E402
import oracle  # noqa: E402
from compare import assert_close, assert_same_bits  # noqa: E402
from gqa.onnx.rotary_operators import microsoft_rotary_embedding  # noqa: E402
from group_query import HEADS, Call  # noqa: E402

ATTENTION = """
    <ir_version: 10, opset_import: ["": 24]>
    g (float[B, 4, S, 8] q, float[B, 2, T, 8] k, float[B, 2, T, 8] v) => (float[B, 4, S, 8] y)
    { y = Attention<is_causal = 1>(q, k, v) }
"""
CACHED = """
    <ir_version: 10, opset_import: ["": 24, "com.microsoft": 1]>
    g (float[B, S, 32] query, float[B, S, 16] key, float[B, S, 16] value, float[B, 2, C, 8] past_key,
       float[B, 2, C, 8] past_value, int32[B] seqlens_k, int32 total) => (float y, float k, float v)
    { y, k, v = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2, local_window_size = 3>(
        query, key, value, past_key, past_value, seqlens_k, total) }
"""


@pytest.fixture
def tensors(rng):
    return {name: rng.standard_normal((2, heads, 5, 8)).astype(np.float32) for name, heads in zip("qkv", (4, 2, 2))}


def parsed(text):
    return parser.parse_model(text)


def test_a_model_in_every_form(tensors, tmp_path):
    model = parsed(ATTENTION)
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path)
    want = oracle.attention(*tensors.values(), causal=True)[0]
    for form in (model, model.SerializeToString(), path, str(path)):
        outputs = gqa.onnx.run(form, tensors)
        assert list(outputs) == ["y"]
        assert_close(outputs["y"], want, magnitude=2)


def test_weights_in_another_file(tensors, tmp_path):
    model = parsed(ATTENTION)
    model.graph.initializer.append(onnx.numpy_helper.from_array(tensors["v"], "v"))
    onnx.save_model(model, tmp_path / "model.onnx", save_as_external_data=True, size_threshold=0)
    want = gqa.onnx.run(parsed(ATTENTION), tensors)
    del tensors["v"]
    assert_same_bits(gqa.onnx.run(tmp_path / "model.onnx", tensors)["y"], want["y"])


def test_group_query_attention_in_a_model(rng):
    call = Call(rng)
    inputs = (
        call.tensors | call.past | {"seqlens_k": (call.tokens - 1).astype(np.int32), "total": np.array(16, np.int32)}
    )
    outputs = gqa.onnx.run(parsed(CACHED), inputs)
    want = call.run(local_window_size=3)
    for name, x in zip("ykv", want):
        assert_same_bits(outputs[name], x)


def test_strings_are_attributes_too(rng):
    """An int8 cache, its kinds of scales named by strings."""
    call = Call(rng)
    kinds = {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8}
    inputs = call.tensors | {name: (10 * x).astype(np.int8) for name, x in call.past.items()}
    inputs |= {"seqlens_k": (call.tokens - 1).astype(np.int32), "total": np.array(16, np.int32)}
    inputs["scale"] = np.array([0.1], np.float32)
    node = onnx.helper.make_node(
        "GroupQueryAttention",
        [*inputs][:7] + [""] * 5 + ["scale", "scale"],
        ["y"],
        domain="com.microsoft",
        **HEADS,
        **kinds,
    )
    infos = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in inputs.items()
    ]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    opsets = [onnx.helper.make_opsetid("", 24), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", infos, [output]), opset_imports=opsets)
    scales = {"k_scale": inputs["scale"], "v_scale": inputs["scale"]}
    past = {name: inputs[name] for name in call.past}
    assert_same_bits(gqa.onnx.run(model, inputs)["y"], call.run(**past, **scales, **kinds).output)


# ---- operators ------------------------------------------------------------------------------------------------


def test_reference_ops_in_the_reference_evaluator(tensors, rng):
    evaluator = ReferenceEvaluator(parsed(ATTENTION), new_ops=gqa.onnx.reference_ops())
    assert_same_bits(evaluator.run(None, tensors)[0], gqa.onnx.attention(*tensors.values(), is_causal=1).Y)
    names = {(op.op_domain, op.__name__) for op in gqa.onnx.reference_ops()}
    assert names == {
        ("", "Attention"), ("", "RotaryEmbedding"), ("ai.onnx.preview", "FlexAttention"),
        ("com.microsoft", "GroupQueryAttention"), ("com.microsoft", "RotaryEmbedding"), ("", "TensorScatter"),
    }  # fmt: skip


def test_the_opset_of_the_model_decides(rng):
    """At opset 23 a mask of one column is broadcast, from 24 on padded."""
    text = """
        <ir_version: 10, opset_import: ["": 23]>
        g (float[] q, float[] k, float[] m) => (float[] y) { y = Attention(q, k, k, m) }
    """
    q, k = rng.standard_normal((2, 1, 1, 4, 8)).astype(np.float32)
    mask = np.zeros((4, 1), np.float32)
    for opset in (23, 24, 25):
        y = gqa.onnx.run(parsed(text.replace("23", str(opset))), {"q": q, "k": k, "m": mask})["y"]
        assert_same_bits(y, gqa.onnx.attention(q, k, k, mask, opset=opset).Y)
    assert not np.array_equal(y, gqa.onnx.attention(q, k, k, mask, opset=23).Y)


def test_functions_and_branches_of_a_model(tensors):
    """Operators inside of them are gqa's too: onnx's own Attention would return a soft-capped mode 0."""
    text = """
        <ir_version: 10, opset_import: ["": 24, "local": 1]>
        g (float[] q, float[] k, float[] v, bool c) => (float[] y, float[] raw) {
            y, raw = If(c) <
                then_branch = t () => (float[] a, float[] b) { a, b = local.Capped<cap = 0.5>(q, k, v) },
                else_branch = e () => (float[] a, float[] b) { a = Identity(q) b = Identity(q) }
            >
        }
        <domain: "local", opset_import: ["": 24]>
        Capped<cap>(q, k, v) => (y, raw) { y, k2, v2, raw = Attention<softcap: float = @cap>(q, k, v) }
    """
    outputs = gqa.onnx.run(parsed(text), tensors | {"c": np.array(True)})
    want = gqa.onnx.attention(*tensors.values(), softcap=0.5, qk_matmul_output=True)
    assert_same_bits(outputs["y"], want.Y)
    assert_same_bits(outputs["raw"], want.qk_matmul_output)


def test_flex_attention_in_a_model(tensors):
    text = """
        <ir_version: 13, opset_import: ["": 26, "ai.onnx.preview": 1]>
        g (float[B, 4, S, 8] q, float[B, 2, T, 8] k, float[B, 2, T, 8] v) => (float y) {
            y = ai.onnx.preview.FlexAttention<prob_mod = m (float p) => (float r) { r = Neg(p) }>(q, k, v)
        }
    """
    y = gqa.onnx.run(parsed(text), tensors)["y"]
    assert_close(y, -oracle.attention(*tensors.values())[0], magnitude=2)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("attributes", ["", "scale = 2.0, is_packed_batching = 1, "])
def test_rotary_embedding_of_microsoft(attributes, interleaved, rng):
    """Positions for every token, or for the first of all; heads as in X, or as wide as the tables turn."""
    cos, sin = gqa.rotary_tables(16, 8)
    x = rng.standard_normal((2, 3, 5, 8)).astype(np.float32)
    flat = np.ascontiguousarray(x.swapaxes(1, 2)).reshape(2, 5, 24)
    text = f"""
        <ir_version: 10, opset_import: ["": 24, "com.microsoft": 1]>
        g (float[] x, int64[] p, float[] c, float[] s) => (float[] y)
        {{ y = com.microsoft.RotaryEmbedding<{attributes}interleaved = {interleaved}>(x, p, c, s) }}
    """
    for position_ids in (np.array(4), np.array([4]), np.arange(4, 9) + np.array([[0], [3]])):
        want = gqa.rotary(
            x, cos, sin, positions=np.arange(4, 9) if position_ids.ndim < 2 else position_ids,
            interleaved=bool(interleaved),
        )  # fmt: skip
        inputs = {"p": position_ids, "c": cos, "s": sin}
        assert_same_bits(gqa.onnx.run(parsed(text), inputs | {"x": x})["y"], want)
        y = gqa.onnx.run(parsed(text), inputs | {"x": flat})["y"]
        np.testing.assert_array_equal(y, want.swapaxes(1, 2).reshape(2, 5, 24))


def test_more_tokens_than_rows_of_the_rotary_tables(rng):
    """As onnxruntime allows with is_packed_batching: sequences one after another, each from position 0."""
    cos, sin = gqa.rotary_tables(3, 8)
    x = rng.standard_normal((1, 2, 5, 8), np.float32)
    positions = [[0, 1, 2, 0, 1]]
    want = gqa.rotary(x, cos, sin, positions=np.array(positions))
    assert_same_bits(microsoft_rotary_embedding(x, positions, cos, sin, is_packed_batching=1), want)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"position_ids": np.zeros((5, 2), int)}, ValueError, r"shape \(5, 2\), expected \(2, 5\), \(1,\) or \(\)"),
        ({"position_ids": np.zeros(2, int)}, ValueError, r"shape \(2,\), expected \(2, 5\), \(1,\) or \(\)"),
        ({"position_ids": 1.0}, TypeError, "position_ids has dtype float64, expected integers"),
        ({"position_ids": [3, 2.5]}, TypeError, "position_ids has dtype float64, expected integers"),
        ({"is_packed_batching": 2}, ValueError, "is_packed_batching is 2, expected one of 0, 1"),
        ({"scale": np.nan}, ValueError, "scale is nan"),
        ({"scale": "1"}, TypeError, "scale is '1'"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_rotary_arguments_that_are_refused(change, error, message):
    cos, sin = gqa.rotary_tables(16, 8)
    given = {"input": np.ones((2, 3, 5, 8), np.float32), "position_ids": 0, "cos_cache": cos, "sin_cache": sin}
    microsoft_rotary_embedding(**given)
    with pytest.raises(error, match=message):
        microsoft_rotary_embedding(**given | change)


@pytest.mark.parametrize("number", [1, np.int64(2)])
def test_threads_reach_every_operator(number, rng, monkeypatch):
    """Those in functions that the model defines as well."""
    seen = []
    kernels = [("scaled_dot_product", "attention"), ("rotary_embedding", "rotary")]
    users = ["attention_operator", "modified_attention", "rotary_operators", "group_query.operator"]
    for module in [importlib.import_module(f"gqa.onnx.{name}") for name in users]:
        for home, name in kernels:
            kernel = getattr(importlib.import_module(f"gqa.{home}"), name)
            for here in [x for x, y in vars(module).items() if y is kernel]:
                monkeypatch.setattr(
                    module, here, lambda *x, f=kernel, **y: seen.append((f.__name__, y["num_threads"])) or f(*x, **y)
                )
    cached = importlib.import_module("gqa.onnx.group_query.cached_attention")
    output = cached.CachedAttention.output
    monkeypatch.setattr(
        cached.CachedAttention, "output", lambda self: seen.append(("cached", self.num_threads)) or output(self)
    )
    text = """
        <ir_version: 13, opset_import: ["": 26, "ai.onnx.preview": 1, "com.microsoft": 1, "f": 1]>
        g (float[1, 2, 3, 8] q, float[1, 3, 16] flat, int32[1] last, int32[1] total, int64[1] first, int64[1, 3] ids,
           float[4, 4] table)
            => (float y, float z)
        {
            a = ai.onnx.preview.FlexAttention(q, q, q)
            b = f.attend(a)
            c = com.microsoft.RotaryEmbedding(b, first, table, table)
            y = RotaryEmbedding(c, table, table, ids)
            z, k, v = com.microsoft.GroupQueryAttention<num_heads = 2, kv_num_heads = 2, do_rotary = 1>(
                flat, flat, flat, , , last, total, table, table)
        }
        <domain: "f", opset_import: ["": 26]>
        attend (q) => (y) { y = Attention(q, q, q) }
    """
    inputs = {
        "q": rng.standard_normal((1, 2, 3, 8), np.float32), "flat": rng.standard_normal((1, 3, 16), np.float32),
        "last": np.array([2], np.int32), "total": np.array([3], np.int32), "first": np.array([0]),
        "ids": np.array([[0, 1, 3]]), "table": np.ones((4, 4), np.float32),
    }  # fmt: skip
    gqa.onnx.run(parsed(text), inputs, num_threads=number)
    names = ["attention", "attention", "rotary", "rotary", "rotary", "rotary", "cached"]
    assert seen == [(name, number) for name in names]
    (attention,) = [op for op in gqa.onnx.reference_ops(num_threads=number) if op.__name__ == "Attention"]
    assert attention.num_threads == number


@pytest.mark.parametrize(("number", "error"), [(0, ValueError), (1.5, TypeError)])
def test_threads_that_are_refused(number, error, tensors):
    with pytest.raises(error, match="num_threads is"):
        gqa.onnx.run(parsed(ATTENTION), tensors, num_threads=number)
    with pytest.raises(error, match="num_threads is"):
        gqa.onnx.reference_ops(num_threads=number)


def test_operators_of_microsoft_need_no_import(rng):
    """onnxruntime assumes version 1."""
    call = Call(rng)
    inputs = call.tensors | call.past
    inputs |= {"seqlens_k": (call.tokens - 1).astype(np.int32), "total": np.array(16, np.int32)}
    y = gqa.onnx.run(parsed(CACHED.replace(', "com.microsoft": 1', "")), inputs)["y"]
    assert_same_bits(y, call.run(local_window_size=3).output)


# ---- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": None}, ValueError, "input 'k' is missing, the model takes q, k, v"),
        ({"w": np.ones(1)}, ValueError, "the model has no input 'w', expected q, k, v"),
        ({"q": np.ones((2, 4, 5, 8))}, TypeError, "input 'q' has dtype float64, expected float32"),
        (
            {"q": np.ones((2, 4, 8), np.float32)},
            ValueError,
            r"input 'q' has shape \(2, 4, 8\), expected \(B, 4, S, 8\)",
        ),
        ({"q": np.ones((2, 3, 5, 8), np.float32)}, ValueError, r"input 'q' has shape \(2, 3, 5, 8\)"),
        ({"q": [1.0]}, TypeError, "input 'q' is a list"),
        ({"k": np.ones((1, 2, 5, 8), np.float32)}, ValueError, "^Attention: K has batch 1, expected 2"),
    ],
)
def test_inputs_that_are_refused(change, error, message, tensors):
    inputs = {name: x for name, x in (tensors | change).items() if x is not None}
    with pytest.raises(error, match=message):
        gqa.onnx.run(parsed(ATTENTION), inputs)


@pytest.mark.parametrize(
    ("op", "message"),
    [("Unheard", "Unheard"), ("com.microsoft.Unheard", "Unheard"), ("elsewhere.Op", "elsewhere")],
)
def test_unknown_operators(op, message):
    text = f"""
        <ir_version: 10, opset_import: ["": 24, "com.microsoft": 1]> g (float[] x) => (float[] y) {{ y = {op}(x) }}
    """
    with pytest.raises(ValueError, match=f"the model has an operator that cannot be run: .*{message}"):
        gqa.onnx.run(parsed(text), {"x": np.ones(1, np.float32)})


def test_what_an_operator_refuses_names_the_argument(tensors):
    text = ATTENTION.replace("is_causal = 1", "is_causal = 1, q_num_heads = 3")
    with pytest.raises(ValueError, match="q_num_heads is 3"):
        gqa.onnx.run(parsed(text), tensors)
    text = ATTENTION.replace("is_causal = 1", "unheard = 1")
    with pytest.raises(TypeError, match=r"Attention: .*unheard"):
        gqa.onnx.run(parsed(text), tensors)
    text = ATTENTION.replace("y = Attention", "y, present = Attention").replace(": 24", ": 25")
    with pytest.raises(ValueError, match="one of the outputs present_key and present_value"):
        gqa.onnx.run(parsed(text), tensors)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (b"no model", ValueError, "the bytes cannot be read as an ONNX model"),
        (b"", ValueError, "the model has no graph"),
        (3, TypeError, r"model is a int, expected a path, bytes or onnx\.ModelProto"),
        ("/nowhere/model.onnx", OSError, "nowhere"),
    ],
)
def test_what_is_no_model(model, error, message):
    with pytest.raises(error, match=message):
        gqa.onnx.run(model, {})
