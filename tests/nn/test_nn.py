"""gqa.nn.MultiHeadAttention against its definition in float64: parameters and the forward pass."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compare import assert_same_bits
from gqa.nn import MultiHeadAttention
from nn_reference import assert_near, make, reference


def test_grouped_heads_shrink_the_key_and_value_projections():
    layer = MultiHeadAttention(num_heads=32, in_features=128, qkv_features=2048, num_key_value_heads=8)
    assert layer.head_dim == 64
    assert layer.query.kernel.shape == (128, 32, 64)
    assert layer.key.kernel.shape == layer.value.kernel.shape == (128, 8, 64)
    assert layer.out.kernel.shape == (32, 64, 128)
    assert layer.query.bias.shape == (32, 64)
    assert layer.key.bias.shape == layer.value.bias.shape == (8, 64)
    assert layer.out.bias.shape == (128,)
    assert layer(np.ones((1, 10, 128), np.float32)).shape == (1, 10, 128)
    layer.init_cache((1, 10, 128))
    assert layer.cached_key.shape == layer.cached_value.shape == (1, 10, 8, 64)
    assert layer.cached_key.dtype == np.float32
    assert layer(np.ones((1, 1, 128), np.float32), decode=True).shape == (1, 1, 128)
    assert layer.cache_index == 1


def test_defaults():
    layer = MultiHeadAttention(4, 12)
    assert layer.num_kv_heads == 4
    assert layer.qkv_features == layer.out_features == layer.in_kv_features == 12
    assert layer.query_ln is layer.key_ln is None
    assert MultiHeadAttention(4, 12, use_bias=False).query.bias is None
    assert (layer.query.bias == 0).all()


def test_num_kv_heads_has_two_names(rng):
    x = rng.standard_normal((2, 5, 12), np.float32)
    same = [make(num_kv_heads=2), make(num_key_value_heads=2), make(num_kv_heads=2, num_key_value_heads=2)]
    for layer in same:
        assert layer.num_kv_heads == 2
        assert_same_bits(layer(x), same[0](x))
    assert_same_bits(make(num_kv_heads=None)(x), make(num_kv_heads=4)(x))


def test_initial_kernels_have_variance_one_by_inputs_and_come_from_rng():
    layer = MultiHeadAttention(8, 512, rng=np.random.default_rng(1))
    for kernel in (layer.query.kernel, layer.value.kernel, layer.out.kernel):
        assert kernel.std() * np.sqrt(512) == pytest.approx(1, abs=0.01)
    again = MultiHeadAttention(8, 512, rng=1)
    assert_same_bits(layer.out.kernel, again.out.kernel)


@pytest.mark.parametrize("normalize_qk", [False, True])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_self_attention(rng, dtype, num_kv_heads, normalize_qk):
    layer = make(num_kv_heads=num_kv_heads, normalize_qk=normalize_qk, dtype=dtype)
    x = rng.standard_normal((2, 7, 12)).astype(dtype)
    for options in ({}, {"is_causal": True}, {"mask": rng.random((2, 1, 7, 7)) < 0.5}):
        out = layer(x, **options)
        assert out.dtype == dtype
        assert_near(out, reference(layer, x, **options))


def test_cross_attention_is_top_left_causal(rng):
    layer = make(4, 12, 8, 5, 2, in_kv_features=3, use_bias=False)
    q, k, v = (rng.standard_normal((2, *shape), np.float32) for shape in ((4, 12), (9, 3), (9, 3)))
    assert_near(layer(q, k, v), reference(layer, q, k, v))
    assert_near(layer(q, k, v, is_causal=True), reference(layer, q, k, v, is_causal=True))
    assert_same_bits(layer(q, k), layer(q, k, k))
    longer = make(4, 12)
    x = rng.standard_normal((2, 9, 12), np.float32)
    assert_near(longer(x, x[:, :4], is_causal=True), reference(longer, x, x[:, :4], is_causal=True))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_leading_axes_and_any_mask_that_broadcasts(data):
    leading = tuple(data.draw(st.lists(st.integers(1, 3), max_size=3)))
    queries, keys = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    q, k = (rng.standard_normal((*leading, n, 12), np.float32) for n in (queries, keys))
    shape = [data.draw(st.sampled_from([1, n])) for n in (*leading, 4, queries, keys)]
    mask = rng.random(shape[data.draw(st.integers(0, len(shape) - 1)) :]) < 0.6
    mask = mask.astype(data.draw(st.sampled_from([bool, np.float32, np.int64])))
    layer = make(num_kv_heads=2)
    causal = data.draw(st.booleans())
    assert_near(layer(q, k, mask=mask, is_causal=causal), reference(layer, q, k, mask=mask, is_causal=causal))


@pytest.mark.parametrize(("queries", "keys"), [((0, 3, 12), (0, 3, 12)), ((2, 0, 12), (2, 3, 12)), ((0, 12), (0, 12))])
def test_empty_inputs(queries, keys):
    assert make()(np.ones(queries, np.float32), np.ones(keys, np.float32)).shape == queries


def test_inputs_of_another_dtype_and_any_strides(rng, dtype):
    layer = make(dtype=dtype)
    x = rng.standard_normal((7, 12, 2))
    for view in (x.transpose(2, 0, 1), x.transpose(2, 0, 1)[:, ::-1, ::-1], np.broadcast_to(x[..., 0], (3, 7, 12))):
        assert_same_bits(layer(view), layer(np.ascontiguousarray(view).astype(dtype)))


def test_a_query_without_keys_gives_the_bias_of_the_output(rng):
    layer = make(num_kv_heads=2)
    x = rng.standard_normal((2, 5, 12), np.float32)
    mask = np.ones((5, 5), bool)
    mask[3] = False
    out = layer(x, mask=mask)
    assert_same_bits(out[:, 3], np.broadcast_to(layer.out.bias, (2, 12)).copy())
    assert_near(layer(x, x[:, :0]), np.broadcast_to(layer.out.bias, (2, 5, 12)))


def test_masked_nan_does_not_leak(rng):
    layer = make()
    q, k = rng.standard_normal((2, 5, 12), np.float32), rng.standard_normal((2, 6, 12), np.float32)
    clean = layer(q, k[:, :5])
    k[:, 5] = np.nan
    assert_near(layer(q, k, mask=np.arange(6) < 5), clean)


@pytest.mark.parametrize("dropout", [{}, {"dropout_rate": 0.5, "deterministic": False}], ids=["", "dropout"])
@pytest.mark.parametrize("decode", [False, True])
def test_threads(rng, monkeypatch, decode, dropout):
    seen = []
    for name in ("multi_head_attention", "dropout"):
        module = importlib.import_module(f"gqa.nn.{name}")
        monkeypatch.setattr(
            module, "attention", lambda *x, f=module.attention, **y: seen.append(y["num_threads"]) or f(*x, **y)
        )
    x = rng.standard_normal((2, 1, 12), np.float32)
    one, other = make(**dropout), make(**dropout)
    for layer in (one, other):
        layer.init_cache((2, 4, 12))
    assert_same_bits(one(x, decode=decode), other(x, decode=decode, num_threads=np.int64(2)))
    assert seen == ([None] * 2 + [2] * 2 if dropout else [None, 2])


def test_load_copies_all_parameters(rng, dtype):
    source, target = (make(num_kv_heads=2, normalize_qk=True, rng=seed, bias_rng=seed, dtype=dtype) for seed in (1, 2))
    parts = ("query", "key", "value", "out")
    state = {name: {"kernel": getattr(source, name).kernel, "bias": getattr(source, name).bias} for name in parts}
    state |= {name: {"scale": getattr(source, name).scale} for name in ("query_ln", "key_ln")}
    x = rng.standard_normal((1, 3, 12)).astype(dtype)
    assert not np.array_equal(source(x), target(x))
    target.load(state)
    assert_same_bits(target(x), source(x))
    assert not np.shares_memory(target.query.kernel, source.query.kernel)
