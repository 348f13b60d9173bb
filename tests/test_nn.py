"""gqa.nn.MultiHeadAttention against its definition in float64, and against flax where it is installed."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from compare import assert_same_bits
from gqa.nn import MultiHeadAttention


def make(num_heads=4, in_features=12, *args, bias_rng=5, **options):
    """A layer whose biases and scales are not the trivial ones it starts with."""
    layer = MultiHeadAttention(num_heads, in_features, *args, **{"rng": 0} | options)
    rng = np.random.default_rng(bias_rng)
    for part in (layer.query, layer.key, layer.value, layer.out):
        if layer.use_bias:
            part.bias = rng.standard_normal(part.bias.shape).astype(layer.dtype)
    if layer.normalize_qk:
        for norm in (layer.query_ln, layer.key_ln):
            norm.scale = rng.uniform(0.5, 1.5, norm.scale.shape).astype(layer.dtype)
    return layer


def projected(layer, inputs, rounded=lambda x: x):
    """Queries, keys and values (..., length, heads, head_dim) in float64, `rounded` where the layer rounds."""
    norms = (layer.query_ln, layer.key_ln, None)
    for x, part, norm in zip(inputs, (layer.query, layer.key, layer.value), norms):
        y = np.einsum("...f,fhd->...hd", oracle.wide(x), oracle.wide(part.kernel))
        y = rounded(y + oracle.wide(part.bias) if layer.use_bias else y)
        if norm is not None:
            y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
            y = rounded(y * oracle.wide(norm.scale))
        yield y


def reference(layer, inputs_q, inputs_k=None, inputs_v=None, *, mask=None, is_causal=False):
    """The layer's result in float64, rounding to its dtype where it does."""

    def rounded(x):
        return x.astype(layer.dtype).astype(np.float64)

    inputs_k = inputs_q if inputs_k is None else inputs_k
    q, k, v = projected(layer, (inputs_q, inputs_k, inputs_k if inputs_v is None else inputs_v), rounded)
    leading, heads, queries, keys = q.shape[:-3], layer.num_heads, q.shape[-3], k.shape[-3]
    if mask is not None:
        mask = np.broadcast_to(mask != 0, (*leading, heads, queries, keys)).reshape(-1, heads, queries, keys)
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    attended, _ = oracle.attention(q, k, v, mask=mask, causal=is_causal, query_offset=0, layout="bshd")
    out = np.einsum("...hd,hdf->...f", rounded(attended), oracle.wide(layer.out.kernel))
    out = out + oracle.wide(layer.out.bias) if layer.use_bias else out
    return out.reshape(*leading, queries, layer.out_features)


def assert_near(actual, expected):
    """Errors of a few roundings of sums of values of about 1; half precision may round an intermediate otherwise."""
    tolerance = {"float64": 1e-13, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}[actual.dtype.name]
    np.testing.assert_allclose(oracle.wide(actual), oracle.wide(expected), rtol=tolerance, atol=tolerance)


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


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": None}, TypeError, "query is a NoneType, expected a dict"),
        ({"query_ln": {"scale": np.ones(3)}}, ValueError, "state has an unknown 'query_ln'"),
        ({"out": {"kernel": np.ones((4, 3, 12))}}, ValueError, "out has no 'bias'"),
        ({"key": {"kernel": np.ones((12, 4, 3)), "bias": np.ones((4, 3)), "scale": 1}}, ValueError, "unknown 'scale'"),
        (
            {"key": {"kernel": np.ones((12, 12)), "bias": np.ones((4, 3))}},
            ValueError,
            r"key\.kernel has shape \(12, 12\)",
        ),
        ({"key": {"kernel": np.ones((12, 4, 3)), "bias": np.ones((4, 3), int)}}, TypeError, "key.bias has dtype int64"),
    ],
)
def test_load_refuses_what_does_not_fit_and_changes_nothing(change, error, message):
    layer = make()
    state = {
        name: {"kernel": np.zeros_like(part.kernel), "bias": np.zeros_like(part.bias)}
        for name, part in (("query", layer.query), ("key", layer.key), ("value", layer.value), ("out", layer.out))
    }
    with pytest.raises(error, match=message):
        layer.load(state | change)
    with pytest.raises(ValueError, match="state has no 'value'"):
        layer.load({name: part for name, part in state.items() if name != "value"})
    assert layer.query.kernel.all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_heads": 5}, ValueError, "qkv_features is 12, expected a multiple of num_heads 5"),
        ({"num_kv_heads": 3}, ValueError, "num_kv_heads is 3, which does not divide num_heads 4"),
        ({"num_kv_heads": 8}, ValueError, "num_kv_heads is 8, which does not divide"),
        ({"num_kv_heads": 2, "num_key_value_heads": 4}, ValueError, "num_kv_heads is 2, but num_key_value_heads is 4"),
        ({"num_heads": 0}, ValueError, "num_heads is 0"),
        ({"num_kv_heads": 0}, ValueError, "num_kv_heads is 0"),
        ({"in_features": 12.0}, TypeError, "in_features is 12.0"),
        ({"dropout_rate": 1.0}, ValueError, "dropout_rate is 1.0"),
        ({"dropout_rate": -0.1}, ValueError, "dropout_rate is -0.1"),
        ({"use_bias": 1}, TypeError, "use_bias is 1"),
        ({"dtype": "int8"}, TypeError, "dtype is int8"),
    ],
)
def test_wrong_constructor_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        MultiHeadAttention(**{"num_heads": 4, "in_features": 12} | arguments)


X = np.ones((2, 5, 12), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inputs_q": X.tolist()}, TypeError, "inputs_q is a list"),
        ({"inputs_q": X.astype(int)}, TypeError, "inputs_q has dtype int64"),
        ({"inputs_q": X[..., :3]}, ValueError, r"inputs_q has shape \(2, 5, 3\), expected \(..., length, 12\)"),
        ({"inputs_q": X[0, 0]}, ValueError, r"inputs_q has shape \(12,\)"),
        ({"inputs_v": X}, ValueError, "inputs_v is given without inputs_k"),
        ({"inputs_k": X[:1]}, ValueError, r"inputs_k has shape \(1, 5, 12\), expected \(2, 5, 12\)"),
        ({"inputs_k": X[0]}, ValueError, r"inputs_k has shape \(5, 12\), expected \(2, 5, 12\)"),
        ({"inputs_k": X, "inputs_v": X[:, :4]}, ValueError, r"inputs_v has shape \(2, 4, 12\), expected \(2, 5, 12\)"),
        ({"mask": np.ones((3, 1, 5, 5), bool)}, ValueError, r"does not broadcast to \(2, 4, 5, 5\)"),
        ({"mask": [[True] * 5] * 5}, TypeError, "mask is a list"),
        ({"mask": np.triu(np.full((5, 5), -np.inf), 1)}, ValueError, "mask has negative values"),
        ({"mask": np.full((5, 5), np.nan)}, ValueError, "mask has negative values or NaN"),
        ({"is_causal": 1}, TypeError, "is_causal is 1"),
        ({"deterministic": 0}, TypeError, "deterministic is 0"),
    ],
)
def test_wrong_call_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        make()(**{"inputs_q": X} | arguments)


@pytest.mark.parametrize("shape", [(12,), (2, 5, 11), (), (2, -1, 12)])
def test_wrong_cache_shapes(shape):
    with pytest.raises(ValueError, match="input_shape is"):
        make().init_cache(shape)


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
    nnx = pytest.importorskip("flax.nnx")
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
