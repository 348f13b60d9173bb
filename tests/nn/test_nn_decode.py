"""gqa.nn.MultiHeadAttention token by token: the cache, and steps that equal the causal forward pass."""

import numpy as np
import pytest

from compare import assert_same_bits
from nn_reference import assert_near, make, projected, reference


def test_decoding_steps_equal_the_causal_forward(rng, dtype):
    layer = make(num_kv_heads=2, normalize_qk=True, dtype=dtype)
    x = rng.standard_normal((2, 6, 12)).astype(dtype)
    layer.set_view(decode=True, batch_size=2, max_length=8)
    key, value = layer.cached_key, layer.cached_value
    steps = [layer(x[:, i : i + 1]) for i in range(6)]
    assert_near(np.concatenate(steps, axis=1), reference(layer, x, is_causal=True))
    assert layer.cached_key is key
    assert layer.cached_value is value
    assert layer.cache_index == 6
    assert key.dtype == value.dtype == dtype
    assert not key[:, 6:].any()
    assert not value[:, 6:].any()
    for cache, expected in zip((key, value), list(projected(layer, (x, x, x)))[1:]):
        assert_near(cache[:, :6], expected)


def test_decoding_ands_the_mask(rng):
    layer = make(num_kv_heads=2)
    x = rng.standard_normal((2, 5, 12), np.float32)
    mask = rng.random((2, 4, 5, 5)) < 0.6
    layer.init_cache(x.shape)
    steps = [layer(x[:, i : i + 1], mask=mask[:, :, i : i + 1], decode=True) for i in range(5)]
    assert_near(np.concatenate(steps, axis=1), reference(layer, x, mask=mask, is_causal=True))


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_decoding_with_any_leading_axes(rng, leading):
    layer = make(num_kv_heads=1)
    x = rng.standard_normal((*leading, 4, 12), np.float32)
    layer.set_view(batch_size=leading, max_length=4)
    steps = [layer(x[..., i : i + 1, :], decode=True, is_causal=True) for i in range(4)]
    assert layer.cached_key.shape == (*leading, 4, 1, 3)
    assert_near(np.concatenate(steps, axis=-2), reference(layer, x, is_causal=True))


def test_a_full_cache_is_an_error_and_errors_leave_the_cache_alone(rng):
    layer = make(num_kv_heads=2)
    x = rng.standard_normal((2, 1, 12), np.float32)
    with pytest.raises(ValueError, match="there is no cache"):
        layer(x, decode=True)
    layer.init_cache((2, 2, 12))
    layer(x, decode=True)
    before = layer.cached_key.copy(), layer.cached_value.copy()
    two_tokens = np.concatenate([x, x], axis=1)
    for inputs, mask, message in [
        ((two_tokens,), None, r"inputs_q has shape \(2, 2, 12\), expected \(2, 1, 12\)"),
        ((x, two_tokens), None, r"inputs_k has shape \(2, 2, 12\), expected \(2, 1, 12\)"),
        ((x[:1],), None, r"inputs_q has shape \(1, 1, 12\), expected \(2, 1, 12\)"),
        ((x[0],), None, r"inputs_q has shape \(1, 12\), expected \(2, 1, 12\)"),
        ((x,), np.ones((2, 1, 1, 3), bool), r"does not broadcast to \(2, 4, 1, 2\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            layer(*inputs, mask=mask, decode=True)
    for part in (layer.key, layer.out):
        kernel = part.kernel
        part.kernel = kernel[:, :1]
        with pytest.raises(ValueError, match=rf"{part.name}\.kernel has shape"):
            layer(x, decode=True)
        part.kernel = kernel
    assert layer.cache_index == 1
    assert_same_bits(layer.cached_key, before[0])
    assert_same_bits(layer.cached_value, before[1])
    layer = make(num_kv_heads=2)
    layer.init_cache((2, 1, 12))
    layer(x, decode=True)
    with pytest.raises(ValueError, match="cache_index is 1, beyond the 1 tokens"):
        layer(x, decode=True)


def test_set_view_changes_defaults_and_allocates(rng):
    layer = make(dropout_rate=0.5)
    x = rng.standard_normal((3, 1, 12), np.float32)
    layer.set_view(decode=True, deterministic=False)
    assert (layer.decode, layer.deterministic, layer.cached_key) == (True, False, None)
    layer.set_view(batch_size=3, max_length=2)
    assert (layer.decode, layer.deterministic) == (True, False)
    layer(x)
    assert layer.cache_index == 1
    layer.set_view(deterministic=True)
    assert layer.cache_index == 1
    assert_near(layer(x, decode=False), reference(layer, x))
    layer.init_cache((3, 2, 12))
    assert layer.cache_index == 0
    assert not layer.cached_key.any()
    for arguments, error in [
        ({"batch_size": 3}, TypeError),
        ({"max_length": 3}, TypeError),
        ({"batch_size": -1, "max_length": 3}, ValueError),
        ({"batch_size": 2, "max_length": 1.5}, TypeError),
        ({"decode": 1}, TypeError),
    ]:
        with pytest.raises(error, match=next(iter(arguments)) if len(arguments) < 2 else "is"):
            layer.set_view(**arguments)
