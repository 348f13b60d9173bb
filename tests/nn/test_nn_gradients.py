"""gqa.nn.MultiHeadAttention.vjp: gradients by inputs and parameters."""

import numpy as np
import pytest

from compare import assert_same_bits
from nn_reference import make

LAYERS = {
    "one head each": {},
    "groups": {"num_kv_heads": 2},
    "one group, no biases": {"num_kv_heads": 1, "use_bias": False},
    "norms": {"num_kv_heads": 2, "normalize_qk": True},
    "sizes": {"qkv_features": 20, "out_features": 5, "in_kv_features": 3, "num_kv_heads": 2, "normalize_qk": True},
}


def state_of(layer):
    """The layer's parameters, as load takes them."""
    parts = [
        name for name in ("query", "key", "value", "out", "query_ln", "key_ln") if getattr(layer, name) is not None
    ]
    return {name: {n: getattr(getattr(layer, name), n) for n in getattr(layer, name).shapes} for name in parts}


def assert_differences(layer, inputs, options, rng):
    """The gradients are the slopes of sum(dout * out) in directions of chance, one for each argument and parameter."""
    out, pullback = layer.vjp(*inputs, **options)
    dout = rng.standard_normal(out.shape)
    gradients = pullback(dout)
    parameters = state_of(layer)
    assert {name: set(part) for name, part in gradients.parameters.items()} == {
        name: set(part) for name, part in parameters.items()
    }
    pairs = list(zip(inputs, gradients[:3]))
    for name, part in parameters.items():
        pairs += [(x, gradients.parameters[name][n]) for n, x in part.items()]
    for x, gradient in pairs:
        assert (gradient.shape, gradient.dtype) == (x.shape, x.dtype)
        start, step, ends = x.copy(), 1e-6 * rng.standard_normal(x.shape), []
        for sign in (1, -1):
            x[...] = start + sign * step
            ends.append((layer(*inputs, **options) * dout).sum())
        x[...] = start
        rounding = 1e-14 * np.abs(out * dout).sum()  # the bias of keys has a gradient of 0
        allowed = 1e-6 * np.abs(gradient * step).sum() + rounding
        assert ends[0] - ends[1] == pytest.approx(2 * (gradient * step).sum(), rel=0, abs=allowed)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"mask": "chance"}])
@pytest.mark.parametrize("given", [1, 2, 3])
def test_central_differences(rng, name, options, given):
    """given: inputs_q alone, inputs_q and inputs_k, or all three."""
    layer = make(**LAYERS[name] | {"dtype": np.float64})
    if given == 1 and layer.in_kv_features != layer.in_features:
        pytest.skip("keys of another width")
    keys = 5 if given == 1 else 7
    inputs = [rng.standard_normal((2, 5, 12))]
    inputs += [rng.standard_normal((2, keys, layer.in_kv_features)) for _ in range(given - 1)]
    if "mask" in options:
        options = {"mask": rng.random((2, 1, 5, keys)) < 0.6}
        options["mask"][0, 0, 3] = False  # a query without keys
    assert_differences(layer, inputs, options, rng)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,)])
def test_leading_axes(rng, leading):
    layer = make(num_kv_heads=2, dtype=np.float64)
    assert_differences(layer, [rng.standard_normal((*leading, 4, 12))], {"is_causal": True}, rng)


def test_the_result_is_that_of_a_call(rng, dtype):
    layer = make(num_kv_heads=2, normalize_qk=True, dtype=dtype)
    x = rng.standard_normal((2, 9, 12)).astype(dtype)
    out, _ = layer.vjp(x, is_causal=True)
    assert_same_bits(out, layer(x, is_causal=True))


def test_dtypes(rng, dtype):
    """Gradients are near those in float64, and have the dtypes of inputs and parameters."""
    options = {"qkv_features": 64, "num_kv_heads": 2, "normalize_qk": True}
    wide, layer = make(**options, dtype=np.float64), make(**options, dtype=dtype)
    layer.load(state_of(wide))
    wide.load(state_of(layer))  # rounded
    x = rng.standard_normal((2, 9, 12)).astype(np.float16)
    dout = rng.standard_normal((2, 9, 12))
    actual, expected = (each.vjp(x)[1](dout) for each in (layer, wide))
    assert actual.inputs_q.dtype == np.float16
    tolerance = {"float64": 1e-3, "float32": 1e-3, "float16": 6e-3, "bfloat16": 4e-2}[np.dtype(dtype).name]
    pairs = [(actual.inputs_q, expected.inputs_q)]
    for name, part in expected.parameters.items():
        for n in part:
            assert actual.parameters[name][n].dtype == dtype
            pairs.append((actual.parameters[name][n], part[n]))
    largest = max(np.abs(y).max() for _, y in pairs)  # the bias of keys has a gradient of 0
    for x, y in pairs:
        np.testing.assert_allclose(x.astype(np.float64), y, rtol=0, atol=tolerance * largest)


def test_bits_do_not_depend_on_threads_or_on_calls_before(rng):
    layer = make(num_kv_heads=2)
    x, dout = rng.standard_normal((2, 3, 40, 12), np.float32)
    one, many = (layer.vjp(x, is_causal=True, num_threads=n)[1] for n in (1, 4))
    first, again, other = one(dout), one(dout), many(dout)
    for gradients in (again, other):
        assert_same_bits(gradients.inputs_q, first.inputs_q)
        for name, part in first.parameters.items():
            for n in part:
                assert_same_bits(gradients.parameters[name][n], part[n])


def test_masked_nan_does_not_leak(rng):
    layer = make()
    q, k = rng.standard_normal((2, 5, 12), np.float32), rng.standard_normal((2, 6, 12), np.float32)
    dout = rng.standard_normal((2, 5, 12), np.float32)
    clean = layer.vjp(q, k, mask=np.arange(6) < 5)[1](dout)
    k[:, 5] = 1e6
    spoilt = layer.vjp(q, k, mask=np.arange(6) < 5)[1](dout)
    assert_same_bits(spoilt.inputs_q, clean.inputs_q)
    assert_same_bits(spoilt.inputs_k, clean.inputs_k)
    assert not clean.inputs_k[:, 5].any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"decode": True}, ValueError, "the layer decodes"),
        ({"dropout_rate": 0.1, "deterministic": False}, ValueError, "dropout_rate is 0.1, which has no gradient"),
    ],
)
def test_layers_without_gradients(change, error, message):
    with pytest.raises(error, match=message):
        make(**change).vjp(np.ones((2, 5, 12), np.float32))


def test_refused(rng):
    layer = make(dropout_rate=0.1)
    x = np.ones((2, 5, 12), np.float32)
    with pytest.raises(ValueError, match="inputs_v is given without inputs_k"):
        layer.vjp(x, inputs_v=x)
    with pytest.raises(TypeError, match="is_causal is 1"):
        layer.vjp(x, is_causal=1)
    with pytest.raises(ValueError, match="num_threads is 0"):
        layer.vjp(x, num_threads=0)
    _, pullback = layer.vjp(x)
    with pytest.raises(ValueError, match=r"dout has shape \(2, 4, 12\), expected \(2, 5, 12\)"):
        pullback(x[:, :4])
    with pytest.raises(TypeError, match="dout has dtype int64"):
        pullback(np.ones((2, 5, 12), int))
    with pytest.raises(TypeError, match="dout is a list"):
        pullback([1.0])
