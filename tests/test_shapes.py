"""infer_shapes says, from shapes and dtypes alone, what attention returns, and raises what it raises."""

import numpy as np
import pytest

import cases
import gqa
import refused

TENSORS = (*cases.TENSORS, "mask", "sinks")


def split(arguments):
    """The arguments of infer_shapes for those of attention."""
    arrays = {name: x for name, x in arguments.items() if name in TENSORS and x is not None}
    options = {name: x for name, x in arguments.items() if name not in TENSORS}
    return {name: x.shape for name, x in arrays.items()}, {name: x.dtype for name, x in arrays.items()}, options


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("case", [*cases.HEADS, *cases.HEAD_DIMS, *cases.EMPTY, *cases.WITH_OPTIONS], ids=str)
def test_the_table(dtype, case, layout):
    arguments = case.arguments(dtype, layout)
    shapes, dtypes, options = split(arguments)
    expected = gqa.infer_shapes(shapes, dtypes, **options)
    out, lse = gqa.attention(**arguments, return_lse=True)
    assert expected == {"out": (out.shape, out.dtype.name), "lse": (lse.shape, lse.dtype.name)}


@pytest.mark.parametrize("k_dtype", ["float32", "float64", "bfloat16", gqa.Quantized])
def test_mixed_dtypes(dtype, k_dtype):
    shapes = {"q": (2, 4, 3, 8), "k": (2, 2, 6, 8), "v": (2, 2, 6, 5)}
    inferred = gqa.infer_shapes(shapes, {"q": dtype, "k": k_dtype, "v": "float16"})
    lse = "float64" if "float64" in (k_dtype, np.dtype(dtype).name) else "float32"
    assert inferred == {"out": ((2, 4, 3, 5), np.dtype(dtype).name), "lse": ((2, 4, 3), lse)}


def test_without_the_batch():
    shapes = {"q": (4, 3, 8), "k": (2, 6, 8), "v": (2, 6, 5), "mask": (3, 6), "kv_lengths": ()}
    inferred = gqa.infer_shapes(shapes, dict.fromkeys(shapes, "float32") | {"kv_lengths": "int32"})
    assert inferred == {"out": ((4, 3, 5), "float32"), "lse": ((4, 3), "float32")}


@pytest.mark.parametrize("name", ["kv_lengths", "query_offset"])
def test_integers_given_as_shapes(name):
    shapes = {"q": (2, 4, 3, 8), "k": (2, 2, 6, 8), "v": (2, 2, 6, 5)}
    dtypes = dict.fromkeys(shapes, "float32")
    assert gqa.infer_shapes(shapes | {name: (2,)}, dtypes | {name: "int64"})["out"][0] == (2, 4, 3, 5)
    with pytest.raises(ValueError, match=rf"{name} has shape \(3,\), expected \(2,\)"):
        gqa.infer_shapes(shapes | {name: (3,)}, dtypes | {name: "int64"})
    with pytest.raises(TypeError, match=f"{name} has dtype float32, expected integers"):
        gqa.infer_shapes(shapes | {name: (2,)}, dtypes | {name: "float32"})


ABOUT_SHAPES = [
    row for row in refused.REFUSED
    if all(x is None or isinstance(x, np.ndarray) and not isinstance(x, np.ma.MaskedArray) for name, x in row[0].items() if name in TENSORS)
    and row[0].get("q", "given") is not None
]  # fmt: skip


@pytest.mark.parametrize("row", ABOUT_SHAPES, ids=refused.name_of)
def test_it_refuses_what_attention_refuses(row):
    change, error, message = row
    shapes, dtypes, options = split(refused.GOOD | change)
    argument = message.split()[0].split("\\")[0]  # its messages name the same argument
    with pytest.raises(error, match=argument):
        gqa.infer_shapes(shapes, dtypes, **options)


@pytest.mark.parametrize(
    ("shapes", "dtypes", "error", "message"),
    [
        ({"k": (1, 1, 1, 1), "v": (1, 1, 1, 1)}, {}, TypeError, "q is missing"),
        ({"q": (1, 1, 1, 1), "x": (1,)}, {}, TypeError, "unknown argument 'x'"),
        ({"q": (1, 1, 1, -1), "k": (1, 1, 1, 1), "v": (1, 1, 1, 1)}, {}, ValueError, "q is -1, expected at least 0"),
        ({"q": (1, 1, 1, 1.0), "k": (1, 1, 1, 1), "v": (1, 1, 1, 1)}, {}, TypeError, "q is 1.0, expected an integer"),
        (
            {"q": (1, 1, 1, 1), "k": (1, 1, 1, 1), "v": (1, 1, 1, 1)},
            {"v": None},
            TypeError,
            "v has a shape but no dtype",
        ),
        ({"q": (1, 1, 1, 1), "k": (1, 1, 1, 1), "v": (1, 1, 1, 1)}, {"k": "nonsense"}, TypeError, "nonsense"),
        ({"q": (1, 1, 1, 1), "k": (1, 1, 1, 1), "v": (1, 1, 1, 1)}, {"q": gqa.Quantized}, TypeError, "q "),
    ],
)
def test_it_refuses_nonsense(shapes, dtypes, error, message):
    names = {name: x for name, x in (dict.fromkeys(shapes, "float32") | dtypes).items() if x is not None}
    with pytest.raises(error, match=message):
        gqa.infer_shapes(shapes, names)


def test_it_does_not_change_its_arguments():
    shapes, dtypes = {"q": (2, 4, 3, 8), "k": [2, 2, 6, 8], "v": (2, 2, 6, 5)}, dict.fromkeys("qkv", np.float32)
    before = (dict(shapes), dict(dtypes))
    gqa.infer_shapes(shapes, dtypes, mask=np.ones((3, 6), bool), kv_lengths=[1, 2])
    assert (shapes, dtypes) == before
