"""Calls that attention refuses: what is changed in a good call, the error, and what its message says."""

import ml_dtypes
import numpy as np


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


GOOD = {"q": ones(2, 8, 5, 16), "k": ones(2, 4, 9, 16), "v": ones(2, 4, 9, 12)}
PAST = {"past_key": ones(2, 4, 3, 16), "past_value": ones(2, 4, 3, 12)}
HUGE = 10**400

SHAPES = [
    ({"k": ones(2, 3, 9, 16), "v": ones(2, 3, 9, 12)}, "k has 3 heads, which does not divide the 8 heads of q"),
    ({"k": ones(2, 16, 9, 16), "v": ones(2, 16, 9, 12)}, "k has 16 heads, which does not divide the 8 heads of q"),
    ({"k": ones(2, 0, 9, 16), "v": ones(2, 0, 9, 12)}, "k has 0 heads, which does not divide the 8 heads of q"),
    ({"v": ones(2, 2, 9, 12)}, "v has 2 heads, expected 4 as k"),
    ({"v": ones(2, 4, 8, 12)}, "v has 8 tokens, expected 9 as k"),
    ({"k": ones(2, 4, 9, 15)}, "k has head_dim 15, expected 16 as q"),
    ({"k": ones(1, 4, 9, 16)}, "k has batch 1, expected 2 as q"),
    ({"v": ones(1, 4, 9, 12)}, "v has batch 1, expected 2 as q"),
    ({"q": ones(5, 16)}, r"q has shape \(5, 16\), expected .*head_dim"),
    ({"q": ones(1, 2, 8, 5, 16)}, r"q has shape \(1, 2, 8, 5, 16\)"),
    ({"q": np.array(np.float32(1))}, r"q has shape \(\)"),
    ({"q": ones(8, 5, 16)}, r"k has shape \(2, 4, 9, 16\), expected 3 axes"),
    ({"k": ones(4, 9, 16), "v": ones(4, 9, 12)}, r"k has shape \(4, 9, 16\), expected 4 axes"),
    ({"v": ones(9)}, r"v has shape \(9,\), expected 4 axes"),
    ({"k": None}, "v is given without k"),
    ({"v": None}, "k is given without v"),
    ({"k": None, "v": None}, "k and v are needed, or past_key and past_value"),
    ({"past_key": PAST["past_key"]}, "past_key is given without past_value"),
    ({"past_value": PAST["past_value"]}, "past_value is given without past_key"),
    (
        {"k": None, "v": None, "past_key": ones(2, 3, 1, 16), "past_value": ones(2, 3, 1, 4)},
        "past_key has 3 heads, .* 8 heads of q",
    ),
    (PAST | {"past_key": ones(2, 2, 3, 16)}, "past_key has 2 heads, expected 4 as k"),
    (PAST | {"past_value": ones(2, 4, 2, 12)}, "past_value has 2 tokens, expected 3 as past_key"),
    (PAST | {"past_key": ones(2, 4, 3, 8)}, "past_key has head_dim 8, expected 16 as q"),
    (PAST | {"past_value": ones(2, 4, 3, 8)}, "past_value has head_dim 8, expected 12 as v"),
    ({"q": ones(2, 8, 1, 65537), "k": ones(2, 4, 1, 65537)}, "q has head_dim 65537, expected at most 65536"),
    ({"v": ones(2, 4, 9, 65537)}, "v has head_dim 65537, expected at most 65536"),
    ({"mask": ones(5, 8)}, r"mask has shape \(5, 8\), which does not broadcast to \(2, 8, 5, 9\)"),
    ({"mask": ones(9, 1)}, r"mask has shape \(9, 1\)"),
    ({"mask": ones(2, 5, 9)}, r"mask has shape \(2, 5, 9\)"),
    ({"mask": ones(1, 2, 8, 5, 9)}, r"mask has shape \(1, 2, 8, 5, 9\)"),
    ({"mask": ones(0)}, r"mask has shape \(0,\)"),
    ({"mask": ones(3, 1, 1, 1)}, r"mask has shape \(3, 1, 1, 1\)"),
    (PAST | {"mask": ones(5, 9)}, r"mask has shape \(5, 9\), .*\(2, 8, 5, 12\)"),
    ({"sinks": ones(4)}, r"sinks has shape \(4,\), expected \(8,\)"),
    ({"sinks": ones(1)}, r"sinks has shape \(1,\), expected \(8,\)"),
    ({"sinks": ones(8, 1)}, r"sinks has shape \(8, 1\), expected \(8,\)"),
    ({"sinks": np.array(np.float32(1))}, r"sinks has shape \(\), expected \(8,\)"),
    ({"kv_lengths": np.array([9])}, r"kv_lengths has shape \(1,\), expected \(2,\)"),
    ({"kv_lengths": [9, 9, 9]}, r"kv_lengths has shape \(3,\), expected \(2,\)"),
    ({"kv_lengths": []}, r"kv_lengths has shape \(0,\), expected \(2,\)"),
    ({"kv_lengths": 9}, r"kv_lengths has shape \(\), expected \(2,\)"),
    ({"kv_lengths": np.array(9)}, r"kv_lengths has shape \(\), expected \(2,\)"),
    ({"kv_lengths": np.array([[9, 9]])}, r"kv_lengths has shape \(1, 2\), expected \(2,\)"),
    ({"query_offset": [0]}, r"query_offset has shape \(1,\), expected \(2,\)"),
    ({"query_offset": np.zeros((2, 1), int)}, r"query_offset has shape \(2, 1\), expected \(2,\)"),
]
VALUES = [
    ({"kv_lengths": [9, 10]}, r"kv_lengths\[1\] is 10, expected 0 to 9"),
    ({"kv_lengths": [-1, 9]}, r"kv_lengths\[0\] is -1, expected 0 to 9"),
    ({"kv_lengths": np.array([-(2**63), 0])}, r"kv_lengths\[0\] is"),
    ({"kv_lengths": np.array([0, 2**63 - 1])}, r"kv_lengths\[1\] is"),
    ({"kv_lengths": np.array([2**64 - 1, 0], np.uint64)}, r"kv_lengths\[0\] is"),
    ({"kv_lengths": np.array([-1, 0], np.int8)}, r"kv_lengths\[0\] is -1"),
    ({"window": (-1, 0)}, r"window is \(-1, 0\)"),
    ({"window": (None, -1)}, r"window is \(None, -1\)"),
    ({"window": (-HUGE, 0)}, "window"),
    ({"scale": np.nan}, "scale is nan, expected a finite number"),
    ({"scale": np.inf}, "scale is inf, expected a finite number"),
    ({"scale": HUGE}, "scale"),
    ({"softcap": -1.0}, "softcap is -1.0, expected a finite number of at least 0"),
    ({"softcap": np.nan}, "softcap is nan"),
    ({"softcap": np.inf}, "softcap is inf"),
    ({"softcap": HUGE}, "softcap"),
    ({"layout": "bdsh"}, "layout is 'bdsh', expected one of 'bhsd', 'bshd'"),
    ({"layout": ""}, "layout is ''"),
    ({"num_threads": 0}, "num_threads is 0, expected at least 1"),
    ({"num_threads": -HUGE}, "num_threads is -1"),
]
TYPES = [
    *(({name: 3}, f"{name} is a int, expected a NumPy array") for name in ("q", "k", "mask", "sinks")),
    *(({name: "text"}, f"{name} is a str, expected a NumPy array") for name in ("q", "v", "mask", "sinks")),
    ({"q": None}, "q is a NoneType, expected a NumPy array"),
    ({"q": [[[[1.0]]]]}, "q is a list, expected a NumPy array"),
    ({"k": memoryview(b"")}, "k is a memoryview, expected a NumPy array"),
    ({"q": np.float32(1)}, "q is a float32, expected a NumPy array"),
    *(
        ({name: np.ma.masked_array(GOOD[name])}, f"{name} is a MaskedArray, expected a NumPy array")
        for name in ("q", "k", "v")
    ),
    ({"mask": np.ma.masked_array(ones(5, 9))}, "mask is a MaskedArray, expected a NumPy array"),
    *(
        ({"q": ones(2, 8, 5, 16, dtype=dtype)}, f"q has dtype {name}, expected float32, float64, float16, bfloat16")
        for dtype, name in (
            (np.int32, "int32"), (np.complex64, "complex64"), (bool, "bool"), (object, "object"), ("S1", "bytes8"),
            ("M8[s]", r"datetime64\[s\]"), (np.longdouble, np.dtype(np.longdouble).name),
        )
    ),
    ({"q": ones(2, 8, 5, 16, dtype=ml_dtypes.float8_e4m3fn)}, "q has dtype float8_e4m3fn"),
    ({"q": np.zeros((2, 8, 5, 16), [("x", "f4")])}, "q has dtype void"),
    *(({name: GOOD[name].astype(">f4")}, f"{name} has dtype '>f4', expected native byte order") for name in GOOD),
    ({"k": ones(2, 4, 9, 16, dtype=np.int8)}, "k has dtype int8, expected .*gqa.Quantized"),
    ({"v": ones(2, 4, 9, 12, dtype=np.uint8)}, "v has dtype uint8"),
    (PAST | {"past_key": ones(2, 4, 3, 16, dtype=int)}, "past_key has dtype int64"),
    ({"mask": ones(5, 9, dtype=np.int64)}, "mask has dtype int64, expected"),
    ({"mask": ones(5, 9, dtype=np.uint8)}, "mask has dtype uint8, expected"),
    ({"mask": ones(5, 9, dtype=np.int8)}, "mask has dtype int8, expected"),
    ({"mask": ones(5, 9).astype(">f4")}, "mask has dtype '>f4'"),
    ({"mask": [[True]]}, "mask is a list, expected a NumPy array"),
    ({"sinks": ones(8, dtype=int)}, "sinks has dtype int64"),
    ({"sinks": [1.0] * 8}, "sinks is a list, expected a NumPy array"),
    ({"sinks": ones(8).astype(">f4")}, "sinks has dtype '>f4'"),
    ({"kv_lengths": [9.0, 9.0]}, "kv_lengths has dtype float64, expected integers"),
    ({"kv_lengths": [True, False]}, "kv_lengths has dtype bool, expected integers"),
    ({"kv_lengths": ["9", "9"]}, "kv_lengths has dtype <U1, expected integers"),
    ({"kv_lengths": [None, 1]}, "kv_lengths has dtype object, expected integers"),
    ({"kv_lengths": [HUGE, 1]}, "kv_lengths has dtype object, expected integers"),
    ({"query_offset": 1.5}, "query_offset is 1.5, expected an integer"),
    ({"query_offset": True}, "query_offset is True, expected an integer"),
    ({"query_offset": "0"}, "query_offset is '0', expected an integer"),
    ({"query_offset": [0.5, 1]}, "query_offset has dtype float64, expected integers"),
    ({"window": 3}, r"window is 3, expected a tuple \(left, right\)"),
    ({"window": (3,)}, r"window is \(3,\), expected a tuple \(left, right\)"),
    ({"window": (1, 2, 3)}, "window is"),
    ({"window": "ab"}, "window is 'ab'"),
    ({"window": (1.5, 0)}, "window is 1.5, expected an integer"),
    ({"window": (True, 0)}, "window is True, expected an integer"),
    ({"causal": 1}, "causal is 1, expected True or False"),
    ({"causal": None}, "causal is None, expected True or False"),
    ({"causal": "yes"}, "causal is 'yes', expected True or False"),
    ({"return_lse": 0}, "return_lse is 0, expected True or False"),
    ({"scale": "1"}, "scale is '1', expected a float"),
    ({"scale": True}, "scale is True, expected a float"),
    ({"scale": 1j}, "scale is 1j, expected a float"),
    ({"scale": [1.0]}, r"scale is \[1.0\], expected a float"),
    ({"scale": ones(2)}, "scale is .*expected a float"),
    ({"softcap": None}, "softcap is None, expected a float"),
    ({"softcap": True}, "softcap is True, expected a float"),
    ({"softcap": "1"}, "softcap is '1', expected a float"),
    ({"num_threads": 1.0}, "num_threads is 1.0, expected an integer"),
    ({"num_threads": True}, "num_threads is True, expected an integer"),
    ({"num_threads": "2"}, "num_threads is '2', expected an integer"),
    ({"layout": None}, "layout is None"),
    ({"layout": ["bhsd"]}, "layout is .'bhsd'."),
]  # fmt: skip

REFUSED = [
    (change, error, message)
    for error, table in ((ValueError, SHAPES + VALUES), (TypeError, TYPES))
    for change, message in table
]


def name_of(row):
    _, error, message = row
    return f"{error.__name__}: {message}"
