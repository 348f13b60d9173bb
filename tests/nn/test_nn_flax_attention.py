"""gqa.nn.attention_fn within flax's layers and against flax.nnx.dot_product_attention."""

import numpy as np
import pytest

import gqa.nn
from child import output_of

jax = pytest.importorskip("jax", reason="JAX is not installed")
nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")


def layers(**options):
    """A layer of flax with flax's attention and with this one, of the same parameters."""
    return [
        nnx.MultiHeadAttention(num_heads=8, in_features=64, rngs=nnx.Rngs(0), **{"decode": False} | options, **function)
        for function in ({}, {"attention_fn": gqa.nn.attention_fn})
    ]


@pytest.mark.parametrize("options", [{}, {"normalize_qk": True}, {"num_kv_heads": 2}], ids=str)
@pytest.mark.parametrize("leading", [(2,), (2, 3)], ids=str)
def test_a_layer(rng, leading, options):
    expected, layer = layers(**options)
    x = rng.standard_normal((*leading, 7, 64), np.float32)
    mask = rng.random((*leading, 1, 7, 7)) < 0.7
    mask[..., 0] = True
    if len(leading) == 2:  # to flax itself, a mask of all heads
        mask = np.broadcast_to(mask, (*leading, 8, 7, 7))
    for call in ({}, {"is_causal": True}, {"mask": mask}, {"mask": mask.astype(np.float32), "is_causal": True}):
        for run in (
            lambda layer, x, call=call: layer(x, **call),
            nnx.jit(lambda layer, x, call=call: layer(x, **call)),
        ):
            np.testing.assert_allclose(run(layer, x), expected(x, **call), rtol=0, atol=1e-5)


def test_decoding(rng):
    pair = layers(decode=True)
    x = rng.standard_normal((2, 12, 64), np.float32)
    for layer in pair:
        layer.init_cache(x.shape)
    for i in range(12):
        expected, result = (layer(x[:, i : i + 1]) for layer in pair)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)


def test_dtype_and_bias(rng):
    q, k, v = (rng.standard_normal((2, 7, heads, 16), np.float32) for heads in (4, 2, 2))
    bias = rng.standard_normal((2, 4, 7, 7), np.float32)
    np.testing.assert_allclose(
        gqa.nn.attention_fn(q, k, v, bias), nnx.dot_product_attention(q, k, v, bias), rtol=0, atol=1e-5
    )
    assert gqa.nn.attention_fn(q, k, v, dtype="bfloat16").dtype == "bfloat16"
    assert gqa.nn.attention_fn(q, k.astype(np.float16), v).dtype == "float32"


def test_refused(rng):
    x = rng.standard_normal((2, 7, 64), np.float32)
    _, layer = layers(dropout_rate=0.5)
    with pytest.raises(ValueError, match=r"dropout_rate is 0.5, expected 0, or deterministic=True"):
        layer(x, deterministic=False, rngs=nnx.Rngs(1))
    assert layer(x, deterministic=True).shape == x.shape
    with pytest.raises(ValueError, match="module is given, expected None"):
        layer(x, deterministic=True, sow_weights=True)


def test_training(rng):
    """Steps of gradient descent through both layers end at the same parameters."""
    x, y = rng.standard_normal((2, 4, 7, 64), np.float32)
    pair = layers(num_kv_heads=2)

    @nnx.jit
    def step(layer):
        loss, gradients = nnx.value_and_grad(lambda layer: ((layer(x, is_causal=True) - y) ** 2).mean())(layer)
        parameters = nnx.state(layer, nnx.Param)
        nnx.update(layer, jax.tree.map(lambda p, g: p - g, parameters, gradients))
        return loss

    losses = [[float(step(layer)) for _ in range(5)] for layer in pair]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert losses[1][-1] < losses[1][0]
    for one, other in zip(*(jax.tree.leaves(nnx.state(layer, nnx.Param)) for layer in pair), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5)


def test_the_layer_of_numpy_does_not_import_jax():
    assert (
        output_of("import sys, gqa.nn; gqa.nn.MultiHeadAttention(2, 8); print('jax' in sys.modules)").strip() == "False"
    )
