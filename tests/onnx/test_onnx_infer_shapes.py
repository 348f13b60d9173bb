"""gqa.onnx.infer_shapes: what the operators return and refuse, from shapes and dtypes alone."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import attention_refused as attention
import gqa.onnx
import group_query_refused as group_query
from gqa.onnx.group_query.attributes import INPUTS
from group_query import STEPS, Call

# What messages say where no shape, dtype or attribute is at fault.
BY_VALUE = (
    r"seqlens_k\[", r"nonpad_kv_seqlen\[", "holds", "cos_cache has 1", "position_ids reach", "is a list", "is a M",
    "is a N", "'>f4'", "query is missing", "seqlens_k is missing", "total_sequence_length is missing", "dtype object",
)  # fmt: skip


def inferred(op_type, domain, inputs, attrs):
    arrays = {name: x for name, x in inputs.items() if x is not None}
    return gqa.onnx.infer_shapes(
        op_type, {name: x.shape for name, x in arrays.items()}, {name: x.dtype for name, x in arrays.items()}, attrs,
        domain=domain,
    )  # fmt: skip


def returned(result):
    return {name: (x.shape, x.dtype.name) for name, x in result._asdict().items() if x is not None}


# ---- Attention ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("past", [{}, attention.PAST], ids=["", "past"])
@pytest.mark.parametrize("form", [attention.GOOD, attention.FLAT], ids=["4-D", "3-D"])
def test_attention(form, past):
    attrs = {"q_num_heads": 4, "kv_num_heads": 2} if form is attention.FLAT else {}
    attrs |= {"qk_matmul_output": True, "is_causal": 1}
    result = gqa.onnx.attention(**form, **past, **attrs, present=True)
    assert inferred("Attention", "", form | past, attrs) == returned(result)


def test_attention_with_values_of_their_own_size_and_type():
    shapes = {"Q": (2, 9, 4, 8), "K": (2, 3, 6, 8), "V": (2, 3, 6, 5), "attn_mask": (4, 6)}
    dtypes = {"Q": np.float16, "K": "float16", "V": ml_dtypes.bfloat16, "attn_mask": bool}
    assert gqa.onnx.infer_shapes("Attention", shapes, dtypes, {}) == {
        "Y": ((2, 9, 4, 5), "float16"),
        "present_key": ((2, 3, 6, 8), "float16"),
        "present_value": ((2, 3, 6, 5), "bfloat16"),
    }


def test_the_attribute_of_the_fourth_output_asks_for_it():
    outputs = inferred("Attention", "", attention.GOOD, {"qk_matmul_output_mode": 1})
    assert outputs["qk_matmul_output"] == ((2, 4, 3, 5), "float32")


def rows_without_values(rows):
    return [row for row in rows if not any(x in row[2] for x in BY_VALUE)]


@pytest.mark.parametrize("row", rows_without_values(attention.REFUSED), ids=group_query.name_of)
def test_attention_refuses_what_the_operator_refuses(row):
    change, error, message = row
    call = attention.GOOD | change
    inputs = {name: x for name, x in call.items() if isinstance(x, np.ndarray)}
    attrs = {name: x for name, x in call.items() if name not in inputs}
    with pytest.raises(error, match=message):
        inferred("Attention", "", inputs, attrs)


# ---- GroupQueryAttention --------------------------------------------------------------------------------------


@pytest.mark.parametrize("qk_output", [0, 2])
@pytest.mark.parametrize("form", ["new", "packed", "shared"])
@pytest.mark.parametrize("step", STEPS)
def test_group_query_attention(step, form, qk_output, dtype, rng):
    if form == "shared" and step == "growing":
        return
    call = Call(rng, dtype=dtype, **STEPS[step])
    inputs = call.inputs | ({} if form == "new" else {"key": None, "value": None})
    if form == "packed":
        inputs["query"] = np.concatenate(list(call.tensors.values()), axis=2)
    inputs["total_sequence_length"] = np.array([call.total])
    attrs = {"num_heads": 4, "kv_num_heads": 2, "qk_output": qk_output}
    result = gqa.onnx.group_query_attention(**inputs, **attrs)
    attrs["total_sequence_length"] = call.total
    assert inferred("GroupQueryAttention", "com.microsoft", inputs, attrs) == returned(result)


@pytest.mark.parametrize(
    "inputs", [group_query.INT8, group_query.INT4, group_query.SLIDING], ids=["int8", "int4", "sliding"]
)
def test_group_query_attention_caches(inputs):
    call = group_query.GOOD | inputs
    arrays = {name: x for name, x in call.items() if isinstance(x, np.ndarray)}
    attrs = {name: x for name, x in call.items() if name not in arrays} | {"total_sequence_length": 16}
    want = returned(gqa.onnx.group_query_attention(**call))
    assert inferred("GroupQueryAttention", "com.microsoft", arrays, attrs) == want


def test_a_total_that_shapes_depend_on_must_be_given():
    shapes = {"query": (1, 2, 32), "key": (1, 2, 16), "value": (1, 2, 16)}
    past = {"past_key": (1, 2, 9, 8), "past_value": (1, 2, 9, 8)}
    attrs = {"num_heads": 4, "kv_num_heads": 2}

    def infer(shapes, **more):
        return gqa.onnx.infer_shapes(
            "GroupQueryAttention", shapes, dict.fromkeys(shapes, "float32"), attrs | more, domain="com.microsoft"
        )

    assert infer(shapes)["present_key"] == ((1, 2, 2, 8), "float32")
    with pytest.raises(ValueError, match="total_sequence_length is missing"):
        infer(shapes | past)
    assert infer(shapes | past, total_sequence_length=11)["present_key"] == ((1, 2, 11, 8), "float32")
    assert infer(shapes | past | {"attention_bias": (1, 1, 2, 11)})["present_key"] == ((1, 2, 11, 8), "float32")
    shared = {"query": (1, 2, 32)} | past
    assert infer(shared)["present_key"] == ((1, 2, 9, 8), "float32")
    with pytest.raises(ValueError, match="total_sequence_length is missing"):
        infer(shared, qk_output=1)


@pytest.mark.parametrize("row", rows_without_values(group_query.REFUSED), ids=group_query.name_of)
def test_group_query_attention_refuses_what_the_operator_refuses(row):
    change, error, message = row
    call = {
        name: np.asarray(x) if name in ("seqlens_k", "total_sequence_length", "position_ids") else x
        for name, x in (group_query.GOOD | change).items()
    }
    inputs = {name: x for name, x in call.items() if name in INPUTS}
    attrs = {name: x for name, x in call.items() if name not in inputs}
    total = call["total_sequence_length"]
    if total.size == 1 and total.dtype.kind in "iu":
        attrs["total_sequence_length"] = int(total.item())
    with pytest.raises(error, match=message):
        inferred("GroupQueryAttention", "com.microsoft", inputs, attrs)


# ---- FlexAttention, and all of them ---------------------------------------------------------------------------


def test_flex_attention():
    shapes = {"Q": (2, 4, 5, 8), "K": (2, 2, 7, 8), "V": (2, 2, 7, 6)}
    attrs = {"scale": 0.5, "softmax_precision": 11, "score_mod": None}
    dtypes = dict.fromkeys(shapes, "bfloat16")
    assert gqa.onnx.infer_shapes("FlexAttention", shapes, dtypes, attrs, domain="ai.onnx.preview") == {
        "Y": ((2, 4, 5, 6), "bfloat16")
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"Q": (4, 5, 8)}, ValueError, "Q has shape"),
        ({"K": (2, 3, 7, 8)}, ValueError, "K has 3 heads"),
        ({"V": (2, 2, 6, 6)}, ValueError, "V has tokens 6"),
        ({"V": (2, 1, 7, 6)}, ValueError, "V has heads 1"),
        ({"K": (2, 2, 7, 9)}, ValueError, "K has channels 9"),
        ({"K": (2, 2, 7, -8)}, ValueError, "the shape of K is -8"),
        ({"attn_mask": (5, 7)}, TypeError, "unknown input 'attn_mask'"),
    ],
)
def test_flex_attention_errors(change, error, message):
    shapes = {"Q": (2, 4, 5, 8), "K": (2, 2, 7, 8), "V": (2, 2, 7, 6)} | change
    with pytest.raises(error, match=message):
        gqa.onnx.infer_shapes("FlexAttention", shapes, dict.fromkeys(shapes, "float32"), {}, domain="ai.onnx.preview")


def test_mixed_types_are_refused():
    shapes = {"Q": (2, 4, 5, 8), "K": (2, 2, 7, 8), "V": (2, 2, 7, 6)}
    dtypes = {"Q": "float32", "K": "float32", "V": "float16"}
    with pytest.raises(TypeError, match="V has dtype float16, expected float32 as Q"):
        gqa.onnx.infer_shapes("FlexAttention", shapes, dtypes, {}, domain="ai.onnx.preview")
    assert gqa.onnx.infer_shapes("Attention", shapes, dtypes, {})["present_value"] == ((2, 2, 7, 6), "float16")


def test_unknown_operators_attributes_and_missing_inputs():
    shapes = {"Q": (2, 4, 5, 8), "K": (2, 2, 7, 8), "V": (2, 2, 7, 6)}
    dtypes = dict.fromkeys(shapes, "float32")
    with pytest.raises(ValueError, match=r"there is no operator 'Attention' in domain 'com\.microsoft'"):
        gqa.onnx.infer_shapes("Attention", shapes, dtypes, {}, domain="com.microsoft")
    with pytest.raises(TypeError, match="unknown attribute 'is_casual', expected one of is_causal, scale"):
        gqa.onnx.infer_shapes("Attention", shapes, dtypes, {"is_casual": 1})
    with pytest.raises(TypeError, match="unknown attribute 'softcap'"):
        gqa.onnx.infer_shapes("FlexAttention", shapes, dtypes, {"softcap": 1.0}, domain="ai.onnx.preview")
    with pytest.raises(TypeError, match="num_heads is missing"):
        gqa.onnx.infer_shapes("GroupQueryAttention", {"query": (1, 1, 8)}, {"query": "f4"}, {}, domain="com.microsoft")
    with pytest.raises(TypeError, match="V is missing"):
        gqa.onnx.infer_shapes("Attention", {"Q": (2, 4, 5, 8), "K": (2, 2, 7, 8)}, dtypes, {})
    with pytest.raises(TypeError, match="V has a shape but no dtype"):
        gqa.onnx.infer_shapes("Attention", shapes, {"Q": "float32", "K": "float32"}, {})
