"""gqa.nn.MultiHeadAttention against flax.nnx.MultiHeadAttention with the same parameters."""

import numpy as np
import pytest

from nn_reference import make

nnx = pytest.importorskip("flax.nnx")

FLAX_LAYERS = [
    {"num_heads": 8, "in_features": 64},
    {"num_heads": 8, "in_features": 64, "num_kv_heads": 1, "use_bias": False},
    {
        "num_heads": 8,
        "in_features": 64,
        "qkv_features": 128,
        "out_features": 48,
        "num_kv_heads": 2,
        "in_kv_features": 32,
        "normalize_qk": True,
    },
]


def flax_pair(**options):
    """The same layer twice: of flax and of gqa."""
    flax_layer = nnx.MultiHeadAttention(**options, decode=False, rngs=nnx.Rngs(0))
    layer = make(**options)
    for name in ("query", "key", "value", "out"):
        if layer.use_bias:
            getattr(flax_layer, name).bias[...] = getattr(layer, name).bias
    if layer.normalize_qk:
        flax_layer.query_ln.scale[...], flax_layer.key_ln.scale[...] = layer.query_ln.scale, layer.key_ln.scale
    layer.load(nnx.to_pure_dict(nnx.state(flax_layer, nnx.Param)))
    return flax_layer, layer


@pytest.mark.parametrize("options", FLAX_LAYERS)
def test_forward_equals_flax(rng, options):
    flax_layer, layer = flax_pair(**options)
    q = rng.standard_normal((3, 7, 64), np.float32)
    k, v = rng.standard_normal((2, 3, 9, layer.in_kv_features), np.float32)
    mask = rng.random((3, 1, 7, 9)) < 0.7
    mask[..., 0] = True
    for call in ({}, {"mask": mask}, {"is_causal": True}, {"is_causal": True, "mask": mask.astype(np.float32)}):
        np.testing.assert_allclose(layer(q, k, v, **call), flax_layer(q, k, v, **call), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", FLAX_LAYERS)
@pytest.mark.parametrize("call", ["full", "causal", "masked"])
def test_gradients_equal_those_of_jax(rng, options, call):
    jax = pytest.importorskip("jax")
    flax_layer, layer = flax_pair(**options)
    q = rng.standard_normal((3, 7, 64), np.float32)
    k, v = rng.standard_normal((2, 3, 9, layer.in_kv_features), np.float32)
    mask = rng.random((3, 1, 7, 9)) < 0.7
    mask[..., 0] = True
    keywords = {"full": {}, "causal": {"is_causal": True}, "masked": {"mask": mask}}[call]
    graph, state = nnx.split(flax_layer, nnx.Param)
    expected_out, of_flax = jax.vjp(lambda state, *x: nnx.merge(graph, state)(*x, **keywords), state, q, k, v)
    out, pullback = layer.vjp(q, k, v, **keywords)
    np.testing.assert_allclose(out, expected_out, rtol=0, atol=1e-5)
    dout = rng.standard_normal(out.shape, np.float32)
    expected, *of_inputs = of_flax(dout)
    actual, expected = pullback(dout), nnx.to_pure_dict(expected)
    for x, y in zip(actual[:3], of_inputs):
        np.testing.assert_allclose(x, y, rtol=0, atol=3e-6 * max(1, np.abs(y).max()))
    assert set(actual.parameters) == set(expected)
    for name, part in expected.items():
        for n, y in part.items():
            np.testing.assert_allclose(actual.parameters[name][n], y, rtol=0, atol=1e-5 * max(1, np.abs(y).max()))


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_leading_axes_equal_flax(rng, leading):
    flax_layer, layer = flax_pair(**FLAX_LAYERS[0])
    x = rng.standard_normal((*leading, 7, 64), np.float32)
    np.testing.assert_allclose(layer(x), flax_layer(x), rtol=0, atol=1e-5)


def test_decoding_equals_flax(rng):
    flax_layer, layer = flax_pair(**FLAX_LAYERS[2] | {"in_kv_features": 64})
    x = rng.standard_normal((2, 32, 64), np.float32)
    mask = rng.random((2, 8, 32, 32)) < 0.7
    mask |= np.eye(32, dtype=bool)
    for each in (flax_layer, layer):
        each.init_cache(x.shape)
    for i in range(32):
        token, allowed = x[:, i : i + 1], mask[:, :, i : i + 1]
        step, expected = (each(token, mask=allowed, decode=True) for each in (layer, flax_layer))
        np.testing.assert_allclose(step, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(layer.cached_key, flax_layer.cached_key[...], rtol=0, atol=1e-5)
    np.testing.assert_allclose(layer.cached_value, flax_layer.cached_value[...], rtol=0, atol=1e-5)
    assert layer.cache_index == flax_layer.cache_index[...]
