"""Score functions under gqa.jax: eagerly, and within jit, vmap and grad."""

import numpy as np
import pytest

import gqa
from compare import assert_same_bits

jax = pytest.importorskip("jax", reason="JAX is not installed")
pytest.importorskip("jax.experimental.buffer_callback", reason="this JAX hands Python no buffers")

import jax.numpy as jnp  # noqa: E402

import gqa.jax  # noqa: E402


def tensors(rng, *sizes):
    return [rng.standard_normal((*sizes, heads, tokens, 16), np.float32) for heads, tokens in ((4, 5), (2, 9), (2, 9))]


def functions(slopes):
    """That use b, and an array."""
    return {
        "score_mod": lambda score, b, h, i, j: 2 * np.tanh(score / 2) - slopes[h] * (i - j) * (1 + b),
        "mask_mod": lambda b, h, i, j: (j <= i) & (i - j < 4 + b),
    }


def test_captured_arrays_may_be_traced(rng):
    arrays, slopes = tensors(rng, 2), rng.standard_normal(4).astype(np.float32)
    expected, lse = gqa.attention(*arrays, **functions(slopes), return_lse=True)

    def attend(q, k, v, slopes):
        return gqa.jax.attention(q, k, v, **functions(slopes))

    operands = [jnp.asarray(x) for x in arrays]
    assert_same_bits(np.asarray(attend(*operands, slopes)), expected)
    assert_same_bits(np.asarray(attend(*operands, jnp.asarray(slopes))), expected)
    assert_same_bits(np.asarray(jax.jit(attend)(*operands, slopes)), expected)
    assert_same_bits(np.asarray(jax.jit(lambda *x: attend(*x, slopes))(*operands)), expected)
    program = gqa.trace(**functions(slopes))
    out = jax.jit(lambda *x: gqa.jax.attention(*x, score_mod=program, return_lse=True))(*operands)
    assert_same_bits(np.asarray(out[0]), expected)
    assert_same_bits(np.asarray(out[1]), lse)


@pytest.mark.parametrize("sizes", [(), (2,)], ids=str)
@pytest.mark.parametrize("axis", [0, None])
def test_b_is_the_entry_of_a_calls_own_batch(rng, sizes, axis):
    arrays = tensors(rng, 3, *sizes)
    slopes = rng.standard_normal((3, 4) if axis == 0 else (4,)).astype(np.float32)
    mapped = jax.vmap(lambda q, k, v, slopes: gqa.jax.attention(q, k, v, **functions(slopes)), (0, 0, 0, axis))
    result = jax.jit(mapped)(*arrays, slopes)
    for i in range(3):
        expected = gqa.attention(*(x[i] for x in arrays), **functions(slopes[i] if axis == 0 else slopes))
        assert_same_bits(np.asarray(result[i]), expected)


@pytest.mark.parametrize("mapped", [False, True], ids=["one call", "vmap"])
def test_gradients(rng, mapped):
    arrays = [jnp.asarray(x) for x in tensors(rng, 3, 2)]
    slopes = jnp.asarray(rng.standard_normal(4), jnp.float32)
    weights = jnp.asarray(rng.standard_normal((2, 4, 5, 16)), jnp.float32)

    def mine(q, k, v, slopes):
        return (gqa.jax.attention(q, k, v, **functions(slopes)) * weights).sum()

    def theirs(q, k, v, slopes):
        b, h, i, j = jnp.meshgrid(*(jnp.arange(n) for n in (2, 4, 5, 9)), indexing="ij")
        i, k, v = i + 4, jnp.repeat(k, 2, 1), jnp.repeat(v, 2, 1)
        scores = 2 * jnp.tanh(jnp.einsum("bhid,bhjd->bhij", q, k) / 4 / 2) - slopes[h] * (i - j) * (1 + b)
        scores = jnp.where((j <= i) & (i - j < 4 + b), scores, -jnp.inf)
        return (jnp.einsum("bhij,bhjd->bhid", jax.nn.softmax(scores), v) * weights).sum()

    given = (*arrays, slopes) if mapped else (*(x[0] for x in arrays), slopes)
    results = []
    for function in (mine, theirs):
        gradient = jax.grad(function, (0, 1, 2))
        results.append(jax.jit(jax.vmap(gradient, (0, 0, 0, None)) if mapped else gradient)(*given))
    for x, y in zip(*results, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)
    by_slopes = jax.grad(mine, 3)(*(x[0] for x in arrays), slopes)
    assert not by_slopes.any()
