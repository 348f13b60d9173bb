"""Dropout of gqa.nn.MultiHeadAttention: which weights go, and what the others become."""

import copy

import numpy as np
import pytest

from compare import assert_same_bits
from nn_reference import assert_near, make, projected, reference


@pytest.mark.parametrize("broadcast_dropout", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_dropout_drops_weights_and_scales_the_others(rng, broadcast_dropout, masked):
    layer = make(num_kv_heads=2, dropout_rate=0.3, broadcast_dropout=broadcast_dropout, dtype="float64")
    x = rng.standard_normal((2, 7, 12))
    mask = rng.random((2, 4, 7, 7)) < 0.7 if masked else np.ones((2, 4, 7, 7), bool)
    mask[:, :, 5] = not masked
    keep = copy.deepcopy(layer.rng).random((1, 1, 7, 7) if broadcast_dropout else mask.shape, np.float32) >= 0.3

    q, k, v = projected(layer, (x, x, x))
    k, v = np.repeat(k, 2, axis=2), np.repeat(v, 2, axis=2)
    weights = np.exp(np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(3)) * mask
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    attended = np.einsum("bhij,bjhd->bihd", weights * keep / 0.7, v)
    expected = np.einsum("bihd,hdf->bif", attended, layer.out.kernel) + layer.out.bias
    assert_near(layer(x, mask=mask if masked else None, deterministic=False), expected)


def test_dropout_is_random_unless_deterministic(rng):
    x = rng.standard_normal((1, 64, 12), np.float32)
    layer = make(dropout_rate=0.5)
    assert_same_bits(layer(x), make()(x))
    assert_same_bits(make(deterministic=False)(x), make()(x))
    assert not np.array_equal(layer(x, deterministic=False), layer(x, deterministic=False))
    mean = np.mean([layer(x, deterministic=False) for _ in range(400)], axis=0)
    np.testing.assert_allclose(mean, layer(x), atol=0.15)


def test_dropout_while_decoding(rng):
    """The first token attends itself alone: its value counts twice, or not at all."""
    layer = make(num_kv_heads=2, dropout_rate=0.5, deterministic=False)
    x = rng.standard_normal((1, 1, 12), np.float32)
    bias, once = layer.out.bias, reference(layer, x) - layer.out.bias
    seen = set()
    for _ in range(30):
        layer.init_cache((1, 3, 12))
        out = layer(x, decode=True)
        times = round(float(np.mean((out - bias) / once)))
        assert_near(out, (bias + times * once).astype(np.float32))
        seen.add(times)
    assert seen == {0, 2}
