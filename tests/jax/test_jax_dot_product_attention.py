"""gqa.jax.dot_product_attention against jax.nn's."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402

import gqa.jax  # noqa: E402

TOLERANCES = {jnp.float32: 1e-5, jnp.float16: 2e-3, jnp.bfloat16: 2e-2}
SHAPES = {
    "heads": (2, 7, 9, 4, 4),
    "groups": (2, 7, 7, 6, 2),
    "one kv head": (1, 1, 9, 4, 1),
    "more queries": (2, 9, 7, 4, 2),
}
LENGTHS = np.array([7, 4], np.int32)
CALLS = {
    "plain": {},
    "causal": {"is_causal": True, "scale": 0.2, "implementation": "xla"},
    "window": {"local_window_size": 2},
    "one-sided window": {"local_window_size": (3, 0)},
    "keys": {"key_value_seq_lengths": LENGTHS},
    "queries": {"query_seq_lengths": LENGTHS},
    "both, causal": {"query_seq_lengths": LENGTHS, "key_value_seq_lengths": LENGTHS + 1, "is_causal": True},
}


# Older versions of jax.nn leave out a window that stands alone, and further queries attend keys.
JAX_DIFFERS = ({"local_window_size"}, {"query_seq_lengths"}) if jax.__version_info__ < (0, 9) else ()


def tensors(rng, shape, dtype):
    batch, queries, keys, heads, kv_heads = shape
    sizes = ((queries, heads), (keys, kv_heads), (keys, kv_heads))
    return [jnp.asarray(rng.standard_normal((batch, *size, 16)), dtype) for size in sizes]


def assert_as_jax(arrays, options, dtype=jnp.float32):
    if set(options) in JAX_DIFFERS:
        pytest.skip("this version of jax.nn has it otherwise")
    expected = jax.nn.dot_product_attention(*arrays, **options)

    def eager(*x):
        return gqa.jax.dot_product_attention(*x, **options)

    for function in (eager, jax.jit(eager)):
        result = function(*arrays)
        assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(
            np.float32(result), np.float32(expected), rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype]
        )


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda x: x.__name__)
def test_dtypes(rng, dtype, call):
    assert_as_jax(tensors(rng, (2, 7, 9, 4, 2), dtype), CALLS[call], dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"local_window_size": (4, 2)}], ids=str)
def test_shapes(rng, shape, options):
    assert_as_jax(tensors(rng, SHAPES[shape], jnp.float32), options)


@pytest.mark.parametrize("sizes", [(7, 9), (1, 7, 9), (4, 7, 9), (2, 1, 7, 9), (1, 4, 1, 9), (2, 4, 7, 9)], ids=str)
def test_bias_and_mask(rng, sizes):
    arrays = tensors(rng, (2, 7, 9, 4, 2), jnp.float32)
    mask = rng.random(sizes) < 0.7
    mask[..., 0] = True
    bias = rng.standard_normal(sizes, np.float32)
    for options in ({"mask": mask}, {"bias": bias}, {"mask": mask, "bias": bias, "is_causal": True}):
        assert_as_jax(arrays, options)


def test_without_a_batch(rng):
    arrays = [x[0] for x in tensors(rng, (1, 7, 9, 4, 2), jnp.float32)]
    assert_as_jax(arrays, {"is_causal": True})
    assert_as_jax(arrays, {"key_value_seq_lengths": np.array([5], np.int32), "mask": rng.random((4, 7, 9)) < 2})


def test_vmap(rng):
    arrays = [jnp.stack(x) for x in zip(*(tensors(rng, (2, 7, 9, 4, 2), jnp.float32) for _ in range(3)))]
    lengths = jnp.asarray(rng.integers(1, 9, (3, 2)), jnp.int32)
    results = [
        jax.vmap(lambda q, k, v, n, f=f: f(q, k, v, key_value_seq_lengths=n, is_causal=True))(*arrays, lengths)
        for f in (gqa.jax.dot_product_attention, jax.nn.dot_product_attention)
    ]
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5)


def test_the_residual(rng):
    q, k, v = tensors(rng, (2, 7, 9, 4, 2), jnp.float32)
    out, residual = gqa.jax.dot_product_attention(
        q, k, v, is_causal=True, query_seq_lengths=LENGTHS, return_residual=True
    )
    scores = jnp.einsum("btnh,bsnh->btns", q, jnp.repeat(k, 2, axis=2)) / 4
    scores = jnp.where(jnp.arange(9) <= jnp.arange(7)[:, None, None], scores, -jnp.inf)
    expected = np.array(jax.nn.logsumexp(scores, axis=-1))
    expected[1, 4:] = -np.inf
    np.testing.assert_allclose(residual, expected, rtol=1e-5, atol=1e-5)
    assert out.shape == q.shape


def test_rows_without_keys_are_0(rng):
    arrays = tensors(rng, (2, 7, 9, 4, 2), jnp.float32)
    mask = np.arange(7)[:, None] != np.full(9, 3)
    out = gqa.jax.dot_product_attention(*arrays, mask=mask)
    assert not out[:, 3].any()
    assert out[:, :3].all()


def test_refused(rng):
    q, k, v = tensors(rng, (2, 7, 9, 4, 2), jnp.float32)
    for options, kind, message in (
        ({"implementation": "triton"}, ValueError, "implementation is 'triton', expected None, 'xla' or 'cudnn'"),
        ({"mask": np.zeros((7, 9), np.float32)}, TypeError, "mask has dtype float32, expected bool"),
        ({"bias": np.zeros((7, 9), bool)}, TypeError, "bias has dtype bool, expected floats"),
        ({"query_seq_lengths": np.ones(2, np.float32)}, TypeError, "query_seq_lengths has dtype float32"),
        ({"query_seq_lengths": np.ones(3, np.int32)}, ValueError, r"query_seq_lengths has shape \(3,\)"),
        ({"key_value_seq_lengths": np.ones(3, np.int32)}, ValueError, r"kv_lengths has shape \(3,\)"),
    ):
        with pytest.raises(kind, match=message):
            gqa.jax.dot_product_attention(q, k, v, **options)
