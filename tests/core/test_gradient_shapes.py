"""infer_shapes of packed batches and of gradients: what they return, and what they refuse."""

import numpy as np
import pytest

import cases
import gqa
from gradient_cases import gradients, problem

TENSORS = ("dout", "q", "k", "v", "out", "lse", "dlse", "mask", "sinks")


def split(arguments):
    """Shapes, dtypes and other options of arguments of a call."""
    arrays = {name: x for name, x in arguments.items() if name in TENSORS}
    options = {name: x for name, x in arguments.items() if name not in TENSORS}
    return {name: x.shape for name, x in arrays.items()}, {name: x.dtype for name, x in arrays.items()}, options


def described(gradients):
    return {name: (x.shape, x.dtype.name) for name, x in gradients._asdict().items() if x is not None}


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("case", [*cases.HEADS[:2], *cases.EMPTY, *cases.WITH_OPTIONS[1::4]], ids=str)
def test_gradients(dtype, layout, case):
    arguments, dout = problem(case, dtype, layout)
    mask = arguments.get("mask")
    wanted = {"mask_grad": mask is not None and mask.dtype != bool}
    out, lse = gqa.attention(**arguments, return_lse=True)
    shapes, dtypes, options = split({"dout": dout, "out": out, "lse": lse, "dlse": lse} | arguments)
    inferred = gqa.infer_shapes(shapes, dtypes, function="attention_vjp", **options, **wanted)
    assert inferred == described(gradients(arguments, dout, lse, **wanted))


@pytest.fixture
def packed(rng):
    """The arguments of varlen_attention_vjp."""
    q, dout = rng.standard_normal((2, 9, 4, 8)).astype(np.float16)
    k, v = rng.standard_normal((2, 12, 2, 8), np.float32)
    given = {"q": q, "k": k, "v": v, "cu_seqlens_q": [0, 3, 9], "cu_seqlens_k": (0, 5, 11), "kv_lengths": [5, 4]}
    given["mask"], given["sinks"] = rng.standard_normal((4, 6, 6)), rng.standard_normal(4)
    out, lse = gqa.varlen_attention(**given, return_lse=True)
    return {"dout": dout, "out": out, "lse": lse} | given


def test_packed_batches(packed):
    forward = {name: x for name, x in packed.items() if name not in ("dout", "out", "lse")}
    shapes, dtypes, options = split(forward)
    results = {name: (packed[name].shape, packed[name].dtype.name) for name in ("out", "lse")}
    assert gqa.infer_shapes(shapes, dtypes, function="varlen_attention", **options) == results
    expected = described(gqa.varlen_attention_vjp(**packed))
    shapes, dtypes, options = split(packed)
    assert gqa.infer_shapes(shapes, dtypes, function="varlen_attention_vjp", **options) == expected


def test_ends_of_which_only_the_shape_is_known(packed):
    shapes, dtypes, options = split(packed)
    integers = {name: (len(options.pop(name)),) for name in ("cu_seqlens_q", "cu_seqlens_k", "kv_lengths")}
    shapes, dtypes = shapes | integers, dtypes | dict.fromkeys(integers, "int32")
    expected = described(gqa.varlen_attention_vjp(**packed))
    assert gqa.infer_shapes(shapes, dtypes, function="varlen_attention_vjp") == expected
    for change, error, message in (
        ({"cu_seqlens_k": (4,)}, ValueError, r"cu_seqlens_k has shape \(4,\), expected \(3,\)"),
        ({"cu_seqlens_q": (0,)}, ValueError, r"cu_seqlens_q has shape \(0,\)"),
        ({"kv_lengths": (3,)}, ValueError, r"kv_lengths has shape \(3,\), expected \(2,\)"),
        ({"mask": (3, 1, 6, 6)}, ValueError, "mask has shape"),
        ({"q": (9, 8)}, ValueError, r"q has shape \(9, 8\), expected \(tokens, heads, head_dim\)"),
    ):
        with pytest.raises(error, match=message):
            gqa.infer_shapes(shapes | change, dtypes, function="varlen_attention_vjp")
    with pytest.raises(TypeError, match="cu_seqlens_q has dtype float32"):
        gqa.infer_shapes(shapes, dtypes | {"cu_seqlens_q": "float32"}, function="varlen_attention_vjp")


CHANGES = [
    ({"dout": (9, 4, 7)}, {}, ValueError, "dout has shape"),
    ({"out": (9, 4, 7)}, {}, ValueError, "out has shape"),
    ({"lse": (9, 4)}, {}, ValueError, "lse has shape"),
    ({"dlse": (9, 4)}, {"dlse": "float32"}, ValueError, "dlse has shape"),
    ({"k": (12, 3, 8)}, {}, ValueError, "k has 3 heads"),
    ({"sinks": (3,)}, {}, ValueError, "sinks has shape"),
    ({}, {"lse": "float64"}, TypeError, "lse has dtype float64, expected float32"),
    ({}, {"k": gqa.Quantized}, TypeError, "k is quantised"),
    ({}, {"dout": "int32"}, TypeError, "dout has dtype int32"),
]


@pytest.mark.parametrize(("shapes", "dtypes", "error", "message"), CHANGES)
def test_it_refuses_what_the_gradients_refuse(packed, shapes, dtypes, error, message):
    own_shapes, own_dtypes, options = split(packed)
    with pytest.raises(error, match=message):
        gqa.infer_shapes(own_shapes | shapes, own_dtypes | dtypes, function="varlen_attention_vjp", **options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mask": np.ones((3, 40), bool), "mask_grad": True}, TypeError, "mask has dtype bool"),
        ({"mask_grad": 1}, TypeError, "mask_grad is 1"),
        ({"out": np.ones((2, 4, 3, 5), np.float32)}, ValueError, "out has shape"),
        ({"kv_lengths": [41, 1]}, ValueError, r"kv_lengths\[0\] is 41"),
        ({"past_key": 1}, TypeError, "unknown option 'past_key'"),
        ({"return_lse": True}, TypeError, "unknown option 'return_lse'"),
        ({"lse": None}, TypeError, "lse is missing"),
        (
            {"function": "attention_jvp"},
            ValueError,
            "function is 'attention_jvp', expected one of 'attention', 'varlen",
        ),
    ],
)
def test_refused(change, error, message):
    arguments, dout = problem(cases.Case(queries=3, keys=40), np.float32)
    out, lse = gqa.attention(**arguments, return_lse=True)
    given = {"dout": dout, "out": out, "lse": lse, "function": "attention_vjp"} | arguments | change
    shapes, dtypes, options = split({name: x for name, x in given.items() if x is not None})
    with pytest.raises(error, match=message):
        gqa.infer_shapes(shapes, dtypes, **options)


def test_ends_and_lengths_are_checked(packed):
    shapes, dtypes, options = split(packed)
    for change, message in (
        ({"cu_seqlens_q": [1, 3, 9]}, r"cu_seqlens_q\[0\] is 1"),
        ({"cu_seqlens_k": [0, 5, 13]}, "cu_seqlens_k ends with 13, expected at most 12"),
        ({"kv_lengths": [6, 4]}, r"kv_lengths\[0\] is 6, expected 0 to 5"),
    ):
        forward = {name: shape for name, shape in shapes.items() if name not in ("dout", "lse", "out")}
        for function, given in (("varlen_attention", forward), ("varlen_attention_vjp", shapes)):
            with pytest.raises(ValueError, match=message):
                gqa.infer_shapes(given, dtypes, function=function, **options | change)
