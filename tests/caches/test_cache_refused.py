"""What KVCache refuses; a refused call has written nothing."""

import ml_dtypes
import numpy as np
import pytest

import gqa
from sequence_model import bytes_of


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


SIZES = {"batch": 2, "kv_heads": 2, "capacity": 8, "head_dim": 4, "v_head_dim": 6}
NEW = {"k": ones(2, 2, 3, 4), "v": ones(2, 2, 3, 6)}
QUERIES = {"q": ones(2, 4, 3, 4)}


def filled(**options):
    """A cache with 6 and 4 tokens."""
    cache = gqa.KVCache(**SIZES | options)
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, 2, 6, 4), np.float32), rng.standard_normal((2, 2, 6, 6), np.float32)
    cache.append(k, v, lengths=[6, 4])
    return cache


def assert_refused(cache, call, error, message):
    """The call raises and changes neither a byte of the storage nor a length."""
    before = bytes_of(*cache._slots.store), cache.lengths.tolist(), cache.capacity
    with pytest.raises(error, match=message):
        call(cache)
    assert (bytes_of(*cache._slots.store), cache.lengths.tolist(), cache.capacity) == before


TOKENS = [
    ({"k": ones(2, 2, 5, 4), "v": ones(2, 2, 5, 6)}, ValueError, "sequence 0 has 6 tokens and takes 5 more, past .* 8"),
    ({"lengths": [2, 4]}, ValueError, r"lengths\[1\] is 4, expected 0 to 3"),
    ({"lengths": [3, 2]}, ValueError, "sequence 0 has 6 tokens and takes 3 more"),
    ({"lengths": [2, -1]}, ValueError, r"lengths\[1\] is -1, expected 0 to 3"),
    ({"lengths": [2]}, ValueError, r"lengths has shape \(1,\), expected \(2,\)"),
    ({"lengths": 2}, ValueError, r"lengths has shape \(\), expected \(2,\)"),
    ({"lengths": np.array([2, 2**64 - 1], np.uint64)}, ValueError, r"lengths\[1\] is"),
    ({"lengths": [2.0, 2.0]}, TypeError, "lengths has dtype float64, expected integers"),
    ({"lengths": [True, True]}, TypeError, "lengths has dtype bool, expected integers"),
    ({"k": None}, ValueError, "v is given without k"),
    ({"v": None}, ValueError, "k is given without v"),
    ({"k": ones(2, 2, 3, 5)}, ValueError, r"k has shape \(2, 2, 3, 5\), expected \(2, 2, 3, 4\)"),
    ({"k": ones(2, 1, 3, 4)}, ValueError, r"k has shape \(2, 1, 3, 4\), expected \(2, 2, 3, 4\)"),
    ({"k": ones(1, 2, 3, 4)}, ValueError, r"k has shape \(1, 2, 3, 4\), expected \(2, 2, 3, 4\)"),
    ({"v": ones(2, 2, 2, 6)}, ValueError, r"v has shape \(2, 2, 2, 6\), expected \(2, 2, 3, 6\)"),
    ({"v": ones(2, 2, 3, 4)}, ValueError, r"v has shape \(2, 2, 3, 4\), expected \(2, 2, 3, 6\)"),
    ({"v": ones(2, 3, 6)}, ValueError, r"v has shape \(2, 3, 6\), expected \(2, 2, 3, 6\)"),
    ({"k": ones(2, 3, 4)}, ValueError, r"k has shape \(2, 3, 4\), expected \(batch, heads, tokens, head_dim\)"),
    ({"k": [[1.0]]}, TypeError, "k is a list, expected a NumPy array"),
    ({"v": np.ma.masked_array(ones(2, 2, 3, 6))}, TypeError, "v is a MaskedArray"),
    ({"k": ones(2, 2, 3, 4, dtype=np.int8)}, TypeError, "k has dtype int8, expected .*gqa.Quantized"),
    ({"v": ones(2, 2, 3, 6, dtype=int)}, TypeError, "v has dtype int64"),
    ({"v": ones(2, 2, 3, 6).astype(">f4")}, TypeError, "v has dtype '>f4', expected native byte order"),
    ({"k": ones(2, 2, 3, 4, dtype=ml_dtypes.float8_e4m3fn)}, TypeError, "k has dtype float8_e4m3fn"),
    ({"k": gqa.quantize(ones(2, 2, 2, 4))}, ValueError, "v has shape"),
]
FEW = {"k": ones(2, 2, 2, 4), "v": ones(2, 2, 2, 6), "q": ones(2, 4, 2, 4)}
OPTIONS = [
    ({"q": ones(2, 3, 2, 4)}, ValueError, r"the cache has 2 heads, which does not divide the 3 heads of q"),
    ({"q": ones(2, 4, 2, 5)}, ValueError, "q has head_dim 5, expected 4 as the cache"),
    ({"q": ones(3, 4, 2, 4)}, ValueError, "q has batch 3, expected 2 as the cache"),
    ({"q": ones(4, 2, 4)}, ValueError, r"q has shape \(4, 2, 4\), expected \(batch, heads, tokens, head_dim\)"),
    ({"q": [1.0]}, TypeError, "q is a list, expected a NumPy array"),
    ({"q": ones(2, 4, 2, 4, dtype=int)}, TypeError, "q .*int64"),
    ({"mask": ones(2, 6, dtype=bool)}, ValueError, "mask"),  # T is 8
    ({"mask": ones(2, 8, dtype=int)}, TypeError, "mask"),
    ({"mask": [[True]]}, TypeError, "mask is a list"),
    ({"sinks": ones(2)}, ValueError, r"sinks has shape \(2,\), expected \(4,\)"),
    ({"sinks": ones(4, dtype=int)}, TypeError, "sinks has dtype int64"),
    ({"causal": 1}, TypeError, "causal is 1, expected True or False"),
    ({"window": (-1, 0)}, ValueError, r"window is \(-1, 0\)"),
    ({"window": 3}, TypeError, "window is 3"),
    ({"scale": np.nan}, ValueError, "scale is nan"),
    ({"scale": "1"}, TypeError, "scale is '1'"),
    ({"softcap": -1.0}, ValueError, "softcap is -1"),
    ({"num_threads": 0}, ValueError, "num_threads is 0"),
    ({"num_threads": 1.5}, TypeError, "num_threads is 1.5"),
    ({"return_lse": 1}, TypeError, "return_lse is 1"),
    ({"out": ones(2, 4, 2, 4)}, ValueError, r"out has shape \(2, 4, 2, 4\), expected \(2, 4, 2, 6\)"),
    ({"out": ones(2, 4, 2, 6, dtype=np.float64)}, TypeError, "out has dtype float64, expected float32"),
    ({"out": [1.0]}, TypeError, "out is a list"),
]


@pytest.mark.parametrize(("change", "error", "message"), TOKENS, ids=lambda x: str(x)[:40])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_new_tokens(dtype, change, error, message):
    cache = filled(dtype=dtype)
    assert_refused(cache, lambda cache: cache.append(**NEW | change), error, message)
    assert_refused(cache, lambda cache: cache.attend(**QUERIES | NEW | change), error, message)
    cache.append(ones(2, 2, 2, 4), ones(2, 2, 2, 6))


@pytest.mark.parametrize(("change", "error", "message"), OPTIONS, ids=lambda x: str(x)[:40])
@pytest.mark.parametrize("window", [None, 4])
def test_options_with_new_tokens(window, change, error, message):
    assert filled(window=window).attend(**FEW).shape == (2, 4, 2, 6)
    assert_refused(filled(window=window), lambda cache: cache.attend(**FEW | change), error, message)


def test_lengths_need_tokens():
    assert_refused(
        filled(), lambda cache: cache.attend(**QUERIES, lengths=[1, 1]), ValueError, "lengths is given without"
    )


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_tokens_that_lie_in_the_cache(dtype):
    """Written while they are read, they would change; out in the cache would change it."""
    cache = filled(dtype=dtype)
    keys, values = cache.keys[:, :, :2], cache.values[:, :, :2]
    for call in (
        lambda cache: cache.append(keys, ones(2, 2, 2, 6)),
        lambda cache: cache.append(ones(2, 2, 2, 4), values),
        lambda cache: cache.attend(ones(2, 4, 2, 4), keys, values),
    ):
        assert_refused(cache, call, ValueError, "k or v shares memory with the cache")


def test_out_over_an_input():
    cache, out = filled(), ones(2, 4, 2, 6)
    few = FEW | {"v": ones(2, 2, 2, 6, dtype=np.float64)}  # stored as float32: not the memory that is attended
    for change, name in (
        ({"q": out[..., :4], "out": out}, "q"),
        ({"mask": out[0, 0, :, :1], "out": out}, "mask"),
        ({"out": few["v"].view(np.float32).reshape(2, 4, 2, 6)}, "v in memory"),
        ({"out": cache._slots.store[1].reshape(2, 4, 4, 6)[:, :, :2]}, "the cached v"),
    ):
        assert_refused(cache, lambda cache, x=few | change: cache.attend(**x), ValueError, f"out overlaps {name}")


def test_a_read_only_out():
    out = ones(2, 4, 2, 6)
    out.flags.writeable = False
    assert_refused(filled(), lambda cache: cache.attend(**FEW, out=out), ValueError, "out is read-only")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda cache: cache.truncate([6, 5]), ValueError, r"lengths\[1\] is 5, expected 0 to 4"),
        (lambda cache: cache.truncate(5), ValueError, r"lengths\[1\] is 5, expected 0 to 4"),
        (lambda cache: cache.truncate([-1, 4]), ValueError, r"lengths\[0\] is -1, expected 0 to 6"),
        (lambda cache: cache.truncate([1, 2, 3]), ValueError, r"lengths has shape \(3,\), expected \(2,\)"),
        (lambda cache: cache.truncate(1.0), TypeError, "lengths is 1.0, expected an integer"),
        (lambda cache: cache.truncate(None), TypeError, "lengths is None, expected an integer"),
        (lambda cache: cache.select([2]), ValueError, r"rows\[0\] is 2, expected 0 to 1"),
        (lambda cache: cache.select([0, -1]), ValueError, r"rows\[1\] is -1, expected 0 to 1"),
        (lambda cache: cache.select([True, False]), TypeError, "rows has dtype bool"),
        (lambda cache: cache.select(0), ValueError, "rows has shape"),
        (lambda cache: cache.select([[0, 1]]), ValueError, r"rows has shape \(1, 2\), expected \(2,\)"),
        (lambda cache: cache.grow(5), ValueError, "capacity is 5, expected at least 6"),
        (
            lambda cache: cache.grow(2**62),
            ValueError,
            "capacity is 4611686018427387904, expected less: float32 of shape",
        ),
        (lambda cache: cache.grow(None), TypeError, "capacity is None, expected an integer"),
    ],
    ids=lambda x: "call" if callable(x) and not isinstance(x, type) else str(x)[:40],
)
def test_changes(call, error, message):
    assert_refused(filled(), call, error, message)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch": -1}, ValueError, "batch is -1, expected at least 0"),
        ({"kv_heads": 0}, ValueError, "kv_heads is 0, expected at least 1"),
        ({"capacity": -1}, ValueError, "capacity is -1, expected at least 0"),
        ({"capacity": 2**80}, ValueError, "capacity is 1208925819614629174706176, expected less"),
        ({"capacity": 2.5}, TypeError, "capacity is 2.5, expected an integer"),
        ({"head_dim": 65537}, ValueError, "head_dim is 65537, expected at most 65536"),
        ({"v_head_dim": -1}, ValueError, "v_head_dim is -1, expected at least 0"),
        ({"dtype": "int4"}, TypeError, "int4"),
        ({"dtype": "uint8"}, TypeError, "dtype is uint8, expected float32, float64, float16, bfloat16 or int8"),
        ({"window": 0}, ValueError, "window is 0, expected at least 1"),
        ({"window": 9}, ValueError, "capacity is 8, expected at least the window of 9"),
        ({"window": (4, None)}, TypeError, "window is .* expected an integer"),
        ({"layout": "bdsh"}, ValueError, "layout is 'bdsh', expected one of 'bhsd', 'bshd'"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_sizes(change, error, message):
    with pytest.raises(error, match=message):
        gqa.KVCache(**SIZES | change)
