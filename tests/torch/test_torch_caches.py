"""gqa.torch's caches against gqa's: the same bits for tensors, whose memory is read and written in place."""

import copy

import numpy as np
import pytest

import gqa
from compare import assert_same_bits
from gqa import _core

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import gqa.torch  # noqa: E402

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8)


def array(x):
    return _core.as_array("x", x) if isinstance(x, torch.Tensor) else x


def assert_equal(result, expected):
    if isinstance(expected, gqa.Quantized):
        assert_same_bits(result.data, expected.data)
        assert_same_bits(result.scale, expected.scale)
        return
    assert isinstance(result, torch.Tensor)
    assert_same_bits(array(result), expected)


def tokens(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"layout": "bshd", "v_head_dim": 8}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kv_cache(dtype, options):
    cache = gqa.torch.KVCache(2, 2, 16, 16, dtype=dtype, **options)
    other = gqa.KVCache(2, 2, 16, 16, dtype=str(dtype).removeprefix("torch."), **options)
    given = torch.float32 if dtype == torch.int8 else dtype
    for step, n in enumerate((5, 1, 3)):
        sizes = ((4, 16), (2, 16), (2, options.get("v_head_dim", 16)))
        q, k, v = (tokens(2, h, n, d, dtype=given, seed=step) for h, d in sizes)
        if "layout" in options:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        arrays = [array(x) for x in (q, k, v)]
        lengths = torch.tensor([n, n - 1])
        if step == 1:
            assert cache.append(k, v, lengths) is cache
            other.append(*arrays[1:], lengths.numpy())
            assert_equal(cache.attend(q), other.attend(arrays[0]))
        else:
            out, lse = cache.attend(q, k, v, lengths=lengths, return_lse=True, softcap=3.0)
            expected = other.attend(*arrays, lengths=lengths.numpy(), return_lse=True, softcap=3.0)
            assert_equal(out, expected[0])
            assert_equal(lse, expected[1])
    assert torch.equal(cache.lengths, torch.tensor([9, 6]))
    assert cache.dtype == dtype
    assert cache.nbytes == other.nbytes
    for changed, expected in (
        (cache, other),
        (cache.copy().truncate(torch.tensor([8, 5])), other.copy().truncate([8, 5])),
        (copy.copy(cache).select(torch.tensor([1, 0, 1])), other.copy().select([1, 0, 1])),
        (cache.copy().grow(20), other.copy().grow(20)),
        (cache.copy().reset(), other.copy().reset()),
    ):
        assert isinstance(changed, gqa.torch.KVCache)
        assert changed.lengths.tolist() == expected.lengths.tolist()
        assert_equal(changed.keys, expected.keys)
        assert_equal(changed.values, expected.values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_paged_cache(dtype):
    given = torch.float32 if dtype == torch.int8 else dtype
    cache = gqa.torch.PagedKVCache(8, 4, 2, 16, dtype=dtype)
    other = gqa.PagedKVCache(8, 4, 2, 16, dtype=str(dtype).removeprefix("torch."))
    for x in (cache, other):
        assert [x.add(), x.add()] == [0, 1]
    k, v = tokens(9, 2, 16, dtype=given), tokens(9, 2, 16, dtype=given, seed=1)
    assert cache.append([0, 1], k, v, torch.tensor([6, 3])) is cache
    other.append([0, 1], array(k), array(v), [6, 3])
    for x in (cache, other):
        assert x.fork(0) == 2
    q, k, v = (tokens(4, h, 16, dtype=given, seed=2) for h in (4, 2, 2))
    ids, counts = torch.tensor([2, 0, 1]), torch.tensor([1, 1, 2])
    out, lse = cache.attend(ids, q, counts, k, v, return_lse=True)
    expected = other.attend([2, 0, 1], *map(array, (q,)), [1, 1, 2], array(k), array(v), return_lse=True)
    assert_equal(out, expected[0])
    assert_equal(lse, expected[1])
    assert_equal(cache.attend([1], q[:1], [1]), other.attend([1], array(q[:1]), [1]))
    assert cache.dtype == dtype
    assert cache.lengths == other.lengths
    assert {i: x.tolist() for i, x in cache.block_tables.items()} == {
        i: x.tolist() for i, x in other.block_tables.items()
    }
    for x, y in zip((cache, cache.copy()), (other, other.copy())):
        assert_equal(x.keys, y.keys)
        assert_equal(x.values, y.values)


def test_pages_in_the_callers_tensors():
    keys, values = torch.zeros(2, 2, 4, 16), torch.zeros(2, 2, 4, 8)
    cache = gqa.torch.PagedKVCache(2, 4, 2, 16, v_head_dim=8, storage=(keys, values))
    k, v = tokens(3, 2, 16), tokens(3, 2, 8)
    cache.append([cache.add()], k, v, [3])
    assert torch.equal(keys[0, :, :3], k.transpose(0, 1))
    assert cache.keys.data_ptr() == keys.data_ptr()
    assert cache.values.data_ptr() == values.data_ptr()


def test_keys_and_values_share_the_memory_of_the_cache():
    cache = gqa.torch.KVCache(1, 1, 4, 8, dtype=torch.bfloat16)
    cache.append(tokens(1, 1, 2, 8), tokens(1, 1, 2, 8))
    cache.keys[...] = 1
    assert cache.keys.dtype == torch.bfloat16
    assert torch.equal(cache.keys, torch.ones(1, 1, 2, 8, dtype=torch.bfloat16))


def test_out():
    cache, q, k = gqa.torch.KVCache(1, 1, 4, 8), tokens(1, 2, 2, 8), tokens(1, 1, 2, 8)
    out = torch.empty(1, 2, 2, 8)
    assert cache.attend(q, k, k, out=out) is out
    assert_equal(out, gqa.attention(array(q), array(k), array(k), causal=True))


def test_refused():
    cache, paged = gqa.torch.KVCache(1, 1, 4, 8), gqa.torch.PagedKVCache(2, 4, 1, 8)
    paged.add()
    q, k = tokens(1, 2, 2, 8), tokens(1, 1, 2, 8)
    packed, keys = q[0].transpose(0, 1), k[0].transpose(0, 1)
    with pytest.raises(TypeError, match=r"q is a ndarray, expected a torch\.Tensor"):
        cache.attend(np.zeros((1, 2, 2, 8), np.float32))
    with pytest.raises(TypeError, match=r"q is a ndarray, expected a torch\.Tensor"):
        paged.attend([0], np.zeros((2, 2, 8), np.float32), [2])
    with pytest.raises(TypeError, match="dtype is complex64"):
        gqa.torch.KVCache(1, 1, 4, 8, dtype=torch.complex64)
    for message, call in (
        ("q requires a gradient", lambda x: cache.attend(x(q), k, k)),
        ("k requires a gradient", lambda x: cache.append(x(k), k)),
        ("v requires a gradient", lambda x: paged.append([0], keys, x(keys), [2])),
        ("q requires a gradient", lambda x: paged.attend([0], x(packed), [2], keys, keys)),
        ("sinks requires a gradient", lambda x: cache.attend(q, k, k, sinks=x(torch.zeros(2)))),
    ):
        with pytest.raises(NotImplementedError, match=message):
            call(lambda x: x.clone().requires_grad_())
        with torch.no_grad():
            cache.reset(), paged.truncate(0, 0)
            call(lambda x: x.clone().requires_grad_())
            cache.reset(), paged.truncate(0, 0)


def test_a_compiled_loop_around_a_cache():
    """The cache is no part of the graphs: it runs between them."""
    torch._dynamo.reset()
    cache, other = (gqa.torch.KVCache(1, 1, 8, 8) for _ in range(2))

    def step(x, cache):
        return cache.attend(x * 2, x[:, :1], x[:, 1:] + 1) - 1

    compiled = torch.compile(step, backend="aot_eager")
    for seed in range(3):
        x = tokens(1, 2, 1, 8, seed=seed)
        torch.testing.assert_close(compiled(x, cache), step(x, other), rtol=0, atol=1e-6)
    assert cache.lengths.tolist() == [3]
