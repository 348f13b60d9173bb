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


@pytest.mark.parametrize("case", [*cases.HEADS, *cases.HEAD_DIMS, *cases.EMPTY, *cases.WITH_OPTIONS[1::4]], ids=str)
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_case(dtype, layout, case):
    arguments = case.arguments(dtype, layout)
    shapes, dtypes, options = split(arguments)
    out, lse = gqa.attention(**arguments, return_lse=True)
    expected = {"out": (out.shape, out.dtype.name), "lse": (lse.shape, lse.dtype.name)}
    assert gqa.infer_shapes(shapes, dtypes, **options) == expected


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


def describable(change):
    """Whether what is changed in a call has a shape and a dtype to tell."""
    given = (x for name, x in change.items() if name in TENSORS)
    return change.get("q", "given") is not None and all(x is None or type(x) is np.ndarray for x in given)


ABOUT_SHAPES = [row for row in refused.REFUSED if describable(row[0])]


@pytest.mark.parametrize("row", ABOUT_SHAPES, ids=refused.name_of)
def test_it_refuses_what_attention_refuses(row):
    change, error, message = row
    shapes, dtypes, options = split(refused.GOOD | change)
    argument = message.split()[0].split("\\")[0]  # its messages name the same argument
    with pytest.raises(error, match=argument):
        gqa.infer_shapes(shapes, dtypes, **options)


ONE = dict.fromkeys("qkv", (1, 1, 1, 1))


@pytest.mark.parametrize(
    ("shapes", "dtypes", "error", "message"),
    [
        ({"k": ONE["k"], "v": ONE["v"]}, {}, TypeError, "q is missing"),
        (ONE | {"x": (1,)}, {}, TypeError, "unknown argument 'x'"),
        (ONE | {"q": (1, 1, 1, -1)}, {}, ValueError, "q is -1, expected at least 0"),
        (ONE | {"q": (1, 1, 1, 1.0)}, {}, TypeError, "q is 1.0, expected an integer"),
        (ONE, {"v": None}, TypeError, "v has a shape but no dtype"),
        (ONE, {"k": "nonsense"}, TypeError, "nonsense"),
        (ONE, {"q": gqa.Quantized}, TypeError, "q "),
    ],
)
def test_it_refuses_nonsense(shapes, dtypes, error, message):
    names = {name: x for name, x in (dict.fromkeys(shapes, "float32") | dtypes).items() if x is not None}
    with pytest.raises(error, match=message):
        gqa.infer_shapes(shapes, names)


def test_sizes_of_any_magnitude():
    n, keys = 2**62, 2**60
    shapes = {"q": (n, 8, n, 64), "k": (n, 2, keys, 64), "v": (n, 2, keys, 32)}
    dtypes = dict.fromkeys("qkv", "float32")
    inferred = gqa.infer_shapes(shapes, dtypes)
    assert inferred == {"out": ((n, 8, n, 32), "float32"), "lse": ((n, 8, n), "float32")}
    for name, shape in (("k", (n, 2, keys + 1, 64)), ("q", (2 * n, 8, n, 64)), ("k", (n, 2, 10**30, 64))):
        both = {"k": shape, "v": (*shape[:3], 32)} if name == "k" else {name: shape}
        with pytest.raises(ValueError, match=f"{name} has .* at most"):
            gqa.infer_shapes(shapes | both, dtypes)


def test_an_output_and_its_dtype():
    shapes = {"q": (2, 4, 3, 8), "k": (2, 2, 6, 8), "v": (2, 2, 6, 5)}
    halves = dict.fromkeys("qkv", "float16")
    for given in (np.empty((2, 4, 3, 5), np.float16), None):
        assert gqa.infer_shapes(shapes, halves, out=given)["out"] == ((2, 4, 3, 5), "float16")
    wide = gqa.infer_shapes(shapes | {"out": (2, 4, 3, 5)}, halves | {"out": "float32"}, out_dtype="float32")
    assert wide["out"] == ((2, 4, 3, 5), "float32")
    with pytest.raises(ValueError, match=r"out has shape \(2, 4, 3, 6\), expected \(2, 4, 3, 5\)"):
        gqa.infer_shapes(shapes | {"out": (2, 4, 3, 6)}, halves | {"out": "float16"})
    with pytest.raises(TypeError, match="out has dtype float32, expected float16 as q"):
        gqa.infer_shapes(shapes | {"out": (2, 4, 3, 5)}, halves | {"out": "float32"})
    for wrong in (3, [0.0], np.ma.zeros((2, 4, 3, 5), np.float16)):
        with pytest.raises(TypeError, match="out is a"):
            gqa.infer_shapes(shapes, halves, out=wrong)


def test_unknown_options_are_refused_by_name():
    with pytest.raises(TypeError, match="unknown option 'foo', expected one of layout, causal"):
        gqa.infer_shapes(ONE, dict.fromkeys("qkv", "float32"), foo=1)
    shapes = ONE | {"mask": (1, 1)}
    with pytest.raises(TypeError, match="mask is given both as a shape and as an option"):
        gqa.infer_shapes(shapes, dict.fromkeys(shapes, "float32"), mask=np.ones((1, 1), bool))


def test_it_does_not_change_its_arguments():
    shapes, dtypes = {"q": (2, 4, 3, 8), "k": [2, 2, 6, 8], "v": (2, 2, 6, 5)}, dict.fromkeys("qkv", np.float32)
    before = (dict(shapes), dict(dtypes))
    gqa.infer_shapes(shapes, dtypes, mask=np.ones((3, 6), bool), kv_lengths=[1, 2])
    assert (shapes, dtypes) == before


def test_a_dtype_that_numpy_does_not_know_is_named():
    shapes = dict.fromkeys("qkv", (1, 1, 1, 1))
    with pytest.raises(TypeError, match="'float17', given for k, is no dtype"):
        gqa.infer_shapes(shapes, {"q": "float32", "k": "float17", "v": "float32"})
    with pytest.raises(TypeError, match="no dtype that NumPy knows"):
        gqa.KVCache(1, 1, 1, 1, dtype="nibble")
