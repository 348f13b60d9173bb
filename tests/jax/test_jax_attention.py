"""gqa.jax.attention against gqa.attention: eagerly, within jit, vmap and other transformations."""

import importlib

import numpy as np
import pytest

import gqa
from compare import assert_same_bits

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402

import gqa.jax  # noqa: E402

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental").enable_x64
DTYPES = (jnp.float32, jnp.float16, jnp.bfloat16)
CALLS = {
    "plain": {},
    "causal, window, soft cap": {"causal": True, "window": (3, None), "softcap": 5.0, "scale": 0.3},
    "lse": {"return_lse": True},
    "positions": {"kv_lengths": np.array([9, 4]), "query_offset": np.array([3, -1]), "causal": True},
    "one offset": {"query_offset": 0, "causal": True},
    "mask": {"mask": np.arange(9) % 3 > 0},
    "masks": {"mask": np.arange(2 * 4 * 5 * 9).reshape(2, 4, 5, 9) % 3 > 0},
    "added mask": {"mask": np.linspace(-2, 2, 45, dtype=np.float32).reshape(5, 9)},
    "sinks": {"sinks": np.linspace(-1, 2, 4, dtype=np.float32)},
    "layout": {"layout": "bshd"},
    "float32 of half precision": {"out_dtype": np.float32, "return_lse": True},
}


pytestmark = pytest.mark.usefixtures("door")


def tensors(rng, dtype=np.float32, sizes=(2,), layout="bhsd", tokens=(5, 9, 9)):
    axes = [(*sizes, heads, length, 16) for heads, length in zip((4, 2, 2), tokens)]
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in axes]
    return [np.ascontiguousarray(x.swapaxes(-3, -2)) if layout == "bshd" else x for x in arrays]


def assert_equal(result, expected):
    """Bits, shapes and dtypes of JAX's arrays, or tuples of them, as NumPy's."""
    assert isinstance(result, tuple) == isinstance(expected, tuple)
    results, expecteds = ((x,) if not isinstance(x, tuple) else x for x in (result, expected))
    for x, y in zip(results, expecteds, strict=True):
        assert isinstance(x, jax.Array)
        assert_same_bits(np.asarray(x), y)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda x: x.__name__)
def test_jit_and_eager_have_the_bits_of_numpy(rng, dtype, call):
    options = CALLS[call]
    arrays = tensors(rng, dtype, layout=options.get("layout", "bhsd"))
    expected = gqa.attention(*arrays, **options)
    operands = [jnp.asarray(x) for x in arrays]
    assert_equal(gqa.jax.attention(*operands, **options), expected)
    assert_equal(jax.jit(lambda *x: gqa.jax.attention(*x, **options))(*operands), expected)


def test_arrays_among_the_options_are_traced(rng):
    q, k, v = tensors(rng)
    past = tensors(rng)[1:]
    options = {
        "past_key": past[0],
        "past_value": past[1],
        "mask": rng.random((2, 1, 5, 18)) < 0.7,
        "sinks": rng.standard_normal(4).astype(np.float32),
        "kv_lengths": np.array([18, 11], np.int32),
        "query_offset": np.array([3, 5], np.int32),
    }
    expected = gqa.attention(q, k, v, causal=True, **options)
    step = jax.jit(lambda q, k, v, options: gqa.jax.attention(q, k, v, causal=True, **options))
    assert_equal(step(q, k, v, options), expected)
    assert_equal(
        jax.jit(lambda q, options: gqa.jax.attention(q, **options))(q, {"past_key": k, "past_value": v}),
        gqa.attention(q, k, v),
    )


def test_float64(rng):
    with enable_x64(True):
        arrays = tensors(rng, np.float64)
        expected = gqa.attention(*arrays, return_lse=True)
        assert_equal(jax.jit(lambda *x: gqa.jax.attention(*x, return_lse=True))(*arrays), expected)
        assert_equal(gqa.jax.attention(*arrays, return_lse=True), expected)


def test_nothing_to_compute(rng):
    for tokens in ((0, 9, 9), (5, 0, 0)):
        arrays = tensors(rng, tokens=tokens)
        assert_equal(jax.jit(lambda *x: gqa.jax.attention(*x))(*arrays), gqa.attention(*arrays))


# ---- vmap ----------------------------------------------------------------------------------------------------------


def one_by_one(function, axes, arrays):
    """What vmap gives, by a loop over NumPy arrays."""
    n = next(x.shape[0] for x, axis in zip(arrays, axes) if axis is not None)
    return np.stack([function(*(x if axis is None else x[i] for x, axis in zip(arrays, axes))) for i in range(n)])


@pytest.mark.parametrize("axes", [(0, 0, 0), (0, None, None), (None, 0, 0), (0, 0, None)], ids=str)
@pytest.mark.parametrize("sizes", [(), (1,), (2,)], ids=str)
def test_vmap(rng, sizes, axes):
    arrays = [tensors(rng, sizes=(3, *sizes) if axis == 0 else sizes)[i] for i, axis in enumerate(axes)]
    expected = one_by_one(lambda *x: gqa.attention(*x, causal=True), axes, arrays)
    mapped = jax.vmap(lambda *x: gqa.jax.attention(*x, causal=True), in_axes=axes)
    assert_equal(mapped(*arrays), expected)
    assert_equal(jax.jit(mapped)(*arrays), expected)


OPTIONS = {
    "a mask for each": lambda rng, sizes: ("mask", rng.random((3, *sizes, 4, 5, 9)) < 0.7, 0),
    "a mask for each, for all of its batch": lambda rng, sizes: ("mask", rng.random((3, 5, 9)) < 0.7, 0),
    "a mask for all": lambda rng, sizes: ("mask", rng.random((*sizes, 1, 5, 9)) < 0.7, None),
    "lengths for each": lambda rng, sizes: ("kv_lengths", rng.integers(0, 9, (3, *sizes)), 0),
    "lengths for all": lambda rng, sizes: ("kv_lengths", rng.integers(0, 9, sizes), None),
    "an offset for each": lambda rng, sizes: ("query_offset", np.array([0, 4, -2]), 0),
    "sinks for each": lambda rng, sizes: ("sinks", rng.standard_normal((3, 4)).astype(np.float32), 0),
    "sinks for all": lambda rng, sizes: ("sinks", rng.standard_normal(4).astype(np.float32), None),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("sizes", [(), (2,)], ids=str)
def test_vmap_over_options(rng, sizes, option):
    name, value, axis = OPTIONS[option](rng, sizes)
    arrays = [*tensors(rng, sizes=(3, *sizes)), value]
    expected = one_by_one(lambda q, k, v, x: gqa.attention(q, k, v, causal=True, **{name: x}), (0, 0, 0, axis), arrays)
    mapped = jax.vmap(lambda q, k, v, x: gqa.jax.attention(q, k, v, causal=True, **{name: x}), (0, 0, 0, axis))
    assert_equal(mapped(*arrays), expected)


def test_vmap_of_vmap_with_two_results(rng):
    q, k, v = tensors(rng, sizes=(3, 4, 2))
    inner = jax.vmap(lambda q, k, v: gqa.jax.attention(q, k, v, return_lse=True), in_axes=(0, 0, None))
    result = jax.vmap(inner, in_axes=(0, None, 0))(q, k[0], v[:, 0])
    for i in range(3):
        for j in range(4):
            expected = gqa.attention(q[i, j], k[0, j], v[i, 0], return_lse=True)
            assert_equal(tuple(x[i, j] for x in result), expected)


def test_vmap_makes_one_call_of_what_is_a_larger_batch(rng, monkeypatch, door):
    if door == "XLA calls the core":
        pytest.skip("only calls of Python can be counted")
    calls = []
    whole = gqa.scaled_dot_product.attention
    monkeypatch.setattr(gqa.scaled_dot_product, "attention", lambda **x: calls.append(x["q"].shape) or whole(**x))
    q, k, v = tensors(rng, sizes=(3, 2))
    jax.block_until_ready(jax.vmap(gqa.jax.attention)(q, k, v))
    jax.block_until_ready(jax.vmap(gqa.jax.attention, (0, None, None))(q[:, 0], k[0, 0], v[0, 0]))
    assert calls == [(6, 4, 5, 16), (3, 4, 5, 16)]


# ---- memory, threads, loops ----------------------------------------------------------------------------------------


def test_keys_and_values_are_read_in_place_eagerly(rng, monkeypatch):
    seen = []
    whole = gqa.scaled_dot_product.attention
    monkeypatch.setattr(
        gqa.scaled_dot_product, "attention", lambda **x: seen.append([x[n].ctypes.data for n in "kv"]) or whole(**x)
    )
    q, k, v = (jnp.asarray(x) for x in tensors(rng))
    gqa.jax.attention(q, k, v)
    assert seen == [[x.unsafe_buffer_pointer() for x in (k, v)]]


def test_xla_makes_no_copies(rng):
    q, k, v = (jnp.asarray(x) for x in tensors(rng))
    for function in (lambda *x: gqa.jax.attention(*x, causal=True), jax.vmap(gqa.jax.attention, (0, None, None))):
        operands = (q, k, v) if function.__name__ == "<lambda>" else (q, k[0], v[0])
        assert jax.jit(function).lower(*operands).compile().memory_analysis().temp_size_in_bytes == 0


def test_many_calls_in_one_computation(rng):
    """Calls that do not wait for each other, on arrays that the computation makes, of some size."""
    q, k, v = (jnp.asarray(rng.standard_normal((1, heads, 512, 64), np.float32)) for heads in (8, 2, 2))

    def layers(q):
        return sum(gqa.jax.attention(q + i, k * (i + 1), v, causal=True) for i in range(8))

    result = jax.jit(layers)(q)
    expected = sum(gqa.attention(np.asarray(q + i), np.asarray(k * (i + 1)), v, causal=True) for i in range(8))
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)


def test_scan(rng):
    q, k, v = tensors(rng)

    def step(x, _):
        return gqa.jax.attention(x, k, v), None

    result, _ = jax.lax.scan(step, jnp.asarray(q), length=3)
    expected = q
    for _ in range(3):
        expected = gqa.attention(expected, k, v)
    assert_equal(result, expected)


# ---- refused -------------------------------------------------------------------------------------------------------


def test_what_has_no_gradient_is_not_differentiated(rng):
    q, k, v = tensors(rng)
    gradient = jax.grad(lambda x: (x * gqa.jax.attention(jax.lax.stop_gradient(x), k, v)).sum())(jnp.asarray(q))
    assert_equal(gradient, gqa.attention(q, k, v))


def test_what_does_not_fit_is_refused_while_tracing(rng):
    q, k, v = tensors(rng)
    for options, kind, message in (
        ({"kv_lengths": np.array([1, 2, 3])}, ValueError, r"kv_lengths has shape \(3,\), expected \(2,\)"),
        ({"mask": np.ones((3, 9), bool)}, ValueError, "mask has shape .* does not broadcast"),
        ({"window": (-1, 0)}, ValueError, "window"),
        ({"causal": 1}, TypeError, "causal is 1, expected True or False"),
        ({"out": q}, TypeError, "out is given, but JAX arrays cannot be written to"),
        ({"past_key": gqa.quantize(k)}, TypeError, "past_key is quantised, expected an array"),
    ):
        with pytest.raises(kind, match=message):
            gqa.jax.attention(q, k, v, **options)
        with pytest.raises(kind, match=message):
            jax.eval_shape(lambda *x, options=options: gqa.jax.attention(*x, **options), q, k, v)
    with pytest.raises(TypeError, match="dropout"):
        jax.eval_shape(lambda *x: gqa.jax.attention(*x, dropout=0.5), q, k, v)


def test_a_length_out_of_range_within_jit(rng):
    q, k, v = tensors(rng)
    step = jax.jit(lambda lengths: gqa.jax.attention(q, k, v, kv_lengths=lengths))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"kv_lengths\[1\] is 10, expected 0 to 9"):
        jax.block_until_ready(step(np.array([9, 10])))
