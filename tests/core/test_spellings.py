"""The same call in other words: numbers of NumPy, lists, integers of any type, arrays without a batch."""

import ml_dtypes
import numpy as np
import pytest

import cases
import gqa
from compare import assert_same_bits

INTEGERS = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4", ">u8")
CASE = cases.Case(queries=5, keys=30)
HALF = np.zeros((2, 4, 5, 24), np.float16)


def call(**options):
    return gqa.attention(**CASE.arguments(np.float32) | options)


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"scale": np.float32(0.25)}, {"scale": 0.25}),
        ({"scale": np.float16(0.25)}, {"scale": 0.25}),
        ({"scale": ml_dtypes.bfloat16(0.25)}, {"scale": 0.25}),
        ({"scale": np.int8(2)}, {"scale": 2.0}),
        ({"scale": np.array(0.25, np.float32)}, {"scale": 0.25}),
        ({"softcap": np.longdouble(2)}, {"softcap": 2.0}),
        ({"causal": np.True_}, {"causal": True}),
        ({"causal": np.False_}, {}),
        ({"window": [3, 0]}, {"window": (3, 0)}),
        ({"window": [np.uint8(3), None]}, {"window": (3, None)}),
        ({"num_threads": np.uint16(1)}, {}),
        ({"layout": np.str_("bhsd")}, {}),
        ({"kv_lengths": (3, np.int64(7))}, {"kv_lengths": [3, 7]}),
        ({"kv_lengths": range(3, 5)}, {"kv_lengths": [3, 4]}),
        ({"query_offset": np.int32(4), "causal": True}, {"query_offset": [4, 4], "causal": True}),
        *(({"kv_lengths": np.array([3, 7], t)}, {"kv_lengths": [3, 7]}) for t in INTEGERS),
        *(({"kv_lengths": np.array([3, 0, 7, 0], t)[::2]}, {"kv_lengths": [3, 7]}) for t in INTEGERS),
        *(
            ({"query_offset": np.array([2, 9], t), "causal": True}, {"query_offset": [2, 9], "causal": True})
            for t in INTEGERS
        ),
    ],
    ids=str,
)
def test_numbers(given, plain):
    assert_same_bits(call(**given), call(**plain))


@pytest.mark.parametrize("t", ["f2", "f4", "f8", ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("step", [1, 2, -1])
def test_sinks(t, step):
    sinks = np.array([0.5, -1.25, 2, -np.inf])
    strided = np.zeros(8, t)[:: 2 if step == 2 else 1][:4]
    strided[...] = sinks
    if step == -1:
        strided = np.ascontiguousarray(strided[::-1])[::-1]
    assert_same_bits(call(sinks=strided), call(sinks=sinks))


def test_half_precision_sinks_to_the_last_value():
    """Every float16 and bfloat16 there is, as a sink of a row without keys: its lse."""
    bits = np.arange(2**16, dtype=np.uint16)
    for t in (np.float16, ml_dtypes.bfloat16):
        with np.errstate(invalid="ignore"):
            sinks = bits.view(t)[np.isfinite(bits.view(t).astype(np.float64))]
        q, k = np.zeros((1, len(sinks), 1, 1), np.float64), np.zeros((1, 1, 0, 1))
        _, lse = gqa.attention(q, k, k, sinks=sinks, return_lse=True)
        np.testing.assert_allclose(lse[0, :, 0], sinks.astype(np.float64), rtol=1e-15)


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_without_the_batch(layout):
    case = cases.Case(batch=1, queries=5, keys=30, options=("past", "sinks"))
    batched = case.arguments(np.float32, layout)
    single = {name: x[0] if isinstance(x, np.ndarray) and x.ndim == 4 else x for name, x in batched.items()}
    keys = {"mask": np.random.default_rng(0).random((4, 5, 30)) < 0.5}
    for options in (
        {},
        {"causal": True},
        {"kv_lengths": np.int16(20)},
        {"query_offset": np.array(3), "window": [2, 2]},
        keys,
    ):
        more = {name: [int(x)] if name in ("kv_lengths", "query_offset") else x for name, x in options.items()}
        assert_same_bits(gqa.attention(**single, **options), gqa.attention(**batched, **more)[0])


# ---- the dtype of the output ------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize("t", [np.float16, ml_dtypes.bfloat16, np.float32], ids=str)
def test_out_dtype(isa, queries, t):
    """float32 gives what half precision rounds."""
    arguments = cases.Case(queries=queries, keys=300, options=("sinks",)).arguments(t)
    rounded, lse = gqa.attention(**arguments, return_lse=True)
    for name in ("float32", np.float32, np.dtype("f4")):
        wide, wide_lse = gqa.attention(**arguments, return_lse=True, out_dtype=name)
        assert wide.dtype == np.float32
        assert_same_bits(wide.astype(t), rounded)
        assert_same_bits(wide_lse, lse)
        given = np.zeros_like(wide)
        assert gqa.attention(**arguments, out_dtype=name, out=given) is given
        assert_same_bits(given, wide)
    assert_same_bits(gqa.attention(**arguments, out_dtype=np.dtype(t).name), rounded)
    if t is not np.float32:
        assert (wide != rounded.astype(np.float32)).any()


@pytest.mark.parametrize(
    ("t", "options", "message"),
    [
        (np.float64, {"out_dtype": "float32"}, "out_dtype is float32, expected float64 as q"),
        (np.float32, {"out_dtype": "float64"}, "out_dtype is float64, expected float32 as q"),
        (np.float32, {"out_dtype": "float16"}, "out_dtype is float16, expected float32 as q"),
        (np.float16, {"out_dtype": "bfloat16"}, "out_dtype is bfloat16, expected float16 as q, or float32"),
        (np.float16, {"out_dtype": "int8"}, "out_dtype is int8, expected float32, float64"),
        (np.float16, {"out_dtype": "nonsense"}, "nonsense"),
        (np.float16, {"out_dtype": "float32", "out": HALF}, "out has dtype float16, expected float32 as out_dtype"),
        (np.float32, {"out": HALF}, "out has dtype float16, expected float32 as q"),
    ],
    ids=str,
)  # fmt: skip
def test_refused_out_dtypes(t, options, message):
    with pytest.raises(TypeError, match=message):
        gqa.attention(**CASE.arguments(t), **options)
