"""What PagedKVCache refuses; a refused call has written nothing and taken no page."""

import numpy as np
import pytest

import gqa
from sequence_model import bytes_of


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


SIZES = {"num_pages": 4, "page_size": 4, "kv_heads": 2, "head_dim": 4, "v_head_dim": 6}
NEW = {"k": ones(5, 2, 4), "v": ones(5, 2, 6)}


def filled(**options):
    """Sequence 0 with 6 tokens and 1 with 3, in 3 of the 4 pages."""
    cache = gqa.PagedKVCache(**SIZES | options)
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((9, 2, 4), np.float32), rng.standard_normal((9, 2, 6), np.float32)
    cache.append([cache.add(), cache.add()], k, v, [6, 3])
    return cache


def state(cache):
    tables = {id_: pages.tolist() for id_, pages in cache.block_tables.items()}
    return bytes_of(cache.keys, cache.values), cache.lengths, tables, cache.free_pages


def assert_refused(cache, call, error, message):
    before = state(cache)
    with pytest.raises(error, match=message):
        call(cache)
    assert state(cache) == before


TOKENS = [
    ({"lengths": [3, 3]}, ValueError, r"k has shape \(5, 2, 4\), expected \(6, 2, 4\)"),
    ({"lengths": [-1, 6]}, ValueError, r"lengths are \[-1, 6\], expected at least 0"),
    ({"lengths": [5]}, ValueError, r"lengths has shape \(1,\), expected \(2,\)"),
    ({"lengths": [2.0, 3.0]}, TypeError, "lengths has dtype float64, expected integers"),
    ({"ids": [0, 2]}, ValueError, r"ids\[1\] is 2, which is no sequence of this cache"),
    ({"ids": [0, -1]}, ValueError, r"ids\[1\] is -1, which is no sequence of this cache"),
    ({"ids": [1, 1]}, ValueError, r"ids are \[1, 1\], expected different ones"),
    ({"ids": [[0, 1]]}, ValueError, r"ids has shape \(1, 2\), expected \(2,\)"),
    ({"ids": ["0", "1"]}, TypeError, "ids has dtype <U1, expected integers"),
    ({"k": None}, ValueError, "v is given without k"),
    ({"v": None}, ValueError, "k is given without v"),
    ({"k": ones(5, 1, 4)}, ValueError, r"k has shape \(5, 1, 4\), expected \(5, 2, 4\)"),
    ({"v": ones(5, 2, 4)}, ValueError, r"v has shape \(5, 2, 4\), expected \(5, 2, 6\)"),
    ({"v": ones(1, 5, 2, 6)}, ValueError, r"v has shape \(1, 5, 2, 6\), expected \(5, 2, 6\)"),
    ({"k": [1.0]}, TypeError, "k is a list, expected a NumPy array"),
    ({"k": ones(5, 2, 4, dtype=np.int8)}, TypeError, "k has dtype int8, expected .*gqa.Quantized"),
    ({"v": ones(5, 2, 6).astype(">f4")}, TypeError, "v has dtype '>f4', expected native byte order"),
]
OPTIONS = [
    ({"q": ones(4, 4, 4)}, ValueError, "q has 4 tokens, expected 5, the sum of q_lengths"),
    ({"q": ones(5, 3, 4)}, ValueError, r"the cache has 2 heads, which does not divide the 3 heads of q"),
    ({"q": ones(5, 4, 5)}, ValueError, "q has head_dim 5, expected 4 as the cache"),
    ({"q": ones(1, 5, 4, 4)}, ValueError, r"q has shape \(1, 5, 4, 4\), expected \(tokens, heads, head_dim\)"),
    ({"q": None}, TypeError, "q is a NoneType, expected a NumPy array"),
    ({"q": ones(5, 4, 4, dtype=int)}, TypeError, "q .*int64"),
    ({"sinks": ones(2)}, ValueError, r"sinks has shape \(2,\), expected \(4,\)"),
    ({"mask": ones(2, 4, 3, 7, dtype=bool)}, ValueError, r"mask has shape \(2, 4, 3, 7\).* \(2, 4, 3, 8\)"),
    ({"mask": [[True]]}, TypeError, "mask is a list"),
    ({"causal": None}, TypeError, "causal is None, expected True or False"),
    ({"window": (0, -1)}, ValueError, r"window is \(0, -1\)"),
    ({"scale": np.inf}, ValueError, "scale is inf"),
    ({"softcap": "1"}, TypeError, "softcap is '1'"),
    ({"num_threads": -1}, ValueError, "num_threads is -1"),
    ({"return_lse": 0}, TypeError, "return_lse is 0"),
    ({"out": ones(5, 4, 4)}, ValueError, r"out has shape \(5, 4, 4\), expected \(5, 4, 6\)"),
    ({"out": ones(5, 4, 6, dtype=np.float16)}, TypeError, "out has dtype float16, expected float32"),
]
STEP = {"ids": [0, 1], "q": ones(5, 4, 4), "q_lengths": [2, 3], **NEW}


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(("change", "error", "message"), TOKENS, ids=lambda x: str(x)[:40])
def test_new_tokens(dtype, change, error, message):
    arguments = {"ids": [0, 1], "lengths": [2, 3], **NEW}
    cache = filled(dtype=dtype)
    assert_refused(cache, lambda cache: cache.append(**arguments | change), error, message)
    cache.append(**arguments)
    step = STEP | {"q_lengths" if name == "lengths" else name: x for name, x in change.items()}
    assert_refused(
        filled(dtype=dtype), lambda cache: cache.attend(**step), error, "q has 5 tokens, expected 6|" + message
    )


@pytest.mark.parametrize(("change", "error", "message"), OPTIONS, ids=lambda x: str(x)[:40])
def test_options(change, error, message):
    assert filled().attend(**STEP).shape == (5, 4, 6)
    assert_refused(filled(), lambda cache: cache.attend(**STEP | change), error, message)


def test_a_full_pool_changes_nothing():
    cache, new = filled(), {"k": ones(9, 2, 4), "v": ones(9, 2, 6)}
    for call in (
        lambda cache: cache.append([0, 1], lengths=[1, 8], **new),
        lambda cache: cache.attend([0, 1], ones(9, 4, 4), [1, 8], **new),
    ):
        assert_refused(cache, call, ValueError, "9 more tokens need 2 pages, but only 1 are free")
    cache.truncate(0, 3)
    cache.append([0, 1], lengths=[1, 8], **new)
    assert cache.free_pages == 0


def test_copies_of_shared_pages_count_as_needed():
    cache = filled()
    fork = cache.fork(1)
    other = cache.fork(1)
    one = {"k": ones(3, 2, 4), "v": ones(3, 2, 6), "lengths": [1, 1, 1]}
    assert_refused(
        cache, lambda cache: cache.append([1, fork, other], **one), ValueError, "3 more tokens need 2 pages, but only 1"
    )
    cache.free(other)
    cache.append([1, fork], ones(2, 2, 4), ones(2, 2, 6), [1, 1])
    assert cache.free_pages == 0


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_tokens_that_lie_in_the_pool(dtype):
    cache = filled(dtype=dtype)
    page = cache.keys[0].data.swapaxes(0, 1) if dtype == "int8" else cache.keys[0].swapaxes(0, 1)
    keys = gqa.Quantized(page, np.ones(page.shape[:-1], np.float32)) if dtype == "int8" else page
    assert_refused(cache, lambda cache: cache.append([0], keys, ones(4, 2, 6), [4]), ValueError, "k or v shares memory")


def test_out_over_an_input():
    out = ones(5, 4, 6)
    few = STEP | {"v": ones(5, 2, 6, dtype=np.float64)}  # stored as float32: not the memory that is attended
    for change, name in (
        ({"q": out[..., :4], "out": out}, "q"),
        ({"out": few["v"].view(np.float32).reshape(5, 4, 6)}, "v in memory"),
    ):
        assert_refused(filled(), lambda cache, x=few | change: cache.attend(**x), ValueError, f"out overlaps {name}")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda cache: cache.fork(2), ValueError, "id is 2, which is no sequence of this cache"),
        (lambda cache: cache.free(2), ValueError, "id is 2, which is no sequence of this cache"),
        (lambda cache: cache.free(np.array(2)), ValueError, "id is 2, which is no sequence of this cache"),
        (lambda cache: cache.free([0]), TypeError, r"id is \[0\], expected an integer"),
        (lambda cache: cache.free(0.0), TypeError, r"id is 0.0, expected an integer"),
        (lambda cache: cache.fork("0"), TypeError, "id is '0', expected an integer"),
        (lambda cache: cache.truncate(0, 7), ValueError, "length is 7, expected at most 6"),
        (lambda cache: cache.truncate(0, -1), ValueError, "length is -1, expected at least 0"),
        (lambda cache: cache.truncate(0, 1.0), TypeError, "length is 1.0, expected an integer"),
        (lambda cache: cache.truncate(5, 0), ValueError, "id is 5"),
    ],
)
def test_changes(call, error, message):
    assert_refused(filled(), call, error, message)


def test_a_sequence_that_was_freed_is_gone():
    cache = filled()
    cache.free(0)
    assert_refused(cache, lambda cache: cache.append([0], **NEW, lengths=[5]), ValueError, r"ids\[0\] is 0")
    assert_refused(cache, lambda cache: cache.free(0), ValueError, "id is 0")


KEYS, VALUES = ones(4, 2, 4, 4), ones(4, 2, 4, 6)


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_pages": 2**62}, ValueError, "num_pages is 4611686018427387904, expected less: float32 of shape"),
        ({"num_pages": -1}, ValueError, "num_pages is -1, expected at least 0"),
        ({"page_size": 0}, ValueError, "page_size is 0, expected at least 1"),
        ({"page_size": 1.5}, TypeError, "page_size is 1.5, expected an integer"),
        ({"kv_heads": 0}, ValueError, "kv_heads is 0, expected at least 1"),
        ({"head_dim": 65537}, ValueError, "head_dim is 65537, expected at most 65536"),
        ({"dtype": "int16"}, TypeError, "dtype is int16, expected float32, float64, float16, bfloat16 or int8"),
        ({"storage": KEYS}, TypeError, r"storage is a ndarray, expected two arrays: \(keys, values\)"),
        ({"storage": (KEYS,)}, TypeError, "storage is a tuple, expected two arrays"),
        ({"storage": (KEYS, None)}, TypeError, "storage of values is a NoneType, expected a NumPy array"),
        ({"storage": (KEYS, VALUES[:3])}, ValueError, r"storage of values has shape \(3, 2, 4, 6\), expected \(4, 2"),
        ({"storage": (KEYS, VALUES), "dtype": "int8"}, TypeError, "storage of keys has dtype float32, expected int8"),
        ({"storage": (KEYS, VALUES.astype("f8"))}, TypeError, "storage of values has dtype float64, expected float32"),
        ({"storage": (KEYS.astype(">f4"), VALUES)}, TypeError, "storage of keys has dtype '>f4', expected native"),
        ({"storage": (read_only(KEYS), VALUES)}, ValueError, "storage of keys is read-only"),
        ({"storage": (np.asfortranarray(KEYS), VALUES)}, ValueError, "storage of keys has strides .* contiguous last"),
        ({"storage": (VALUES[..., :4], VALUES)}, ValueError, "storage has keys and values that overlap in memory"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_sizes_and_storage(change, error, message):
    with pytest.raises(error, match=message):
        gqa.PagedKVCache(**SIZES | change)
