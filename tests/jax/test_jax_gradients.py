"""Gradients of gqa.jax against those of jax.nn.dot_product_attention, and of attention written out."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402

import gqa.jax  # noqa: E402

pytestmark = pytest.mark.usefixtures("door")
TOLERANCES = {jnp.float32: 2e-5, jnp.float16: 1e-2, jnp.bfloat16: 8e-2}
CALLS = {
    "plain": {},
    "causal": {"is_causal": True, "scale": 0.3},
    "window": {"local_window_size": (2, 0), "is_causal": True},
    "lengths": {"key_value_seq_lengths": np.array([7, 4], np.int32), "is_causal": True},
}


def normal(rng, *shape, dtype=jnp.float32):
    return jnp.asarray(rng.standard_normal(shape), dtype)


def tensors(rng, dtype=jnp.float32, batch=2):
    return [normal(rng, batch, 7, heads, 16, dtype=dtype) for heads in (4, 2, 2)]


def weighted(function, weights, **options):
    return lambda *x: (function(*x, **options).astype(jnp.float32) * weights).sum()


def assert_close(results, expected, tolerance=2e-5):
    assert len(results) == len(expected)
    for x, y in zip(results, expected):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda x: x.__name__)
def test_as_jax_eagerly_and_compiled(rng, dtype, call):
    arrays, weights = tensors(rng, dtype), normal(rng, 2, 7, 4, 16)
    expected = jax.grad(weighted(jax.nn.dot_product_attention, weights, **CALLS[call]), (0, 1, 2))(*arrays)
    mine = jax.grad(weighted(gqa.jax.dot_product_attention, weights, **CALLS[call]), (0, 1, 2))
    assert_close(mine(*arrays), expected, TOLERANCES[dtype])
    assert_close(jax.jit(mine)(*arrays), expected, TOLERANCES[dtype])


def test_of_what_is_compiled_itself(rng):
    arrays = tensors(rng)
    results = [
        jax.jit(jax.grad(lambda *x, f=f: jax.jit(lambda *y: f(*y, is_causal=True))(*x).sum(), (0, 1, 2)))(*arrays)
        for f in (gqa.jax.dot_product_attention, jax.nn.dot_product_attention)
    ]
    assert_close(*results)


@pytest.mark.parametrize("sizes", [(7, 7), (4, 7, 7), (2, 1, 7, 7), (2, 4, 1, 7)], ids=str)
def test_by_a_bias(rng, sizes):
    arrays, weights = [*tensors(rng), normal(rng, *sizes)], normal(rng, 2, 7, 4, 16)
    mask = rng.random((7, 7)) < 0.7
    mask[:, 0] = True
    results = [
        jax.grad(weighted(f, weights, mask=mask), (0, 1, 2, 3))(*arrays)
        for f in (gqa.jax.dot_product_attention, jax.nn.dot_product_attention)
    ]
    assert_close(*results)


@pytest.mark.parametrize("axes", [(0, 0, 0), (0, None, None), (None, 0, None)], ids=str)
def test_vmap_of_gradients_and_gradients_of_vmap(rng, axes):
    arrays = [jnp.stack([x, 2 * x, x + 1]) if axis == 0 else x for x, axis in zip(tensors(rng, batch=1), axes)]
    weights = normal(rng, 1, 7, 4, 16)
    each, whole = [], []
    for function in (gqa.jax.dot_product_attention, jax.nn.dot_product_attention):
        loss = weighted(function, weights, is_causal=True)
        each.append(jax.vmap(jax.grad(loss, (0, 1, 2)), axes)(*arrays))
        whole.append(jax.grad(lambda *x, loss=loss: jax.vmap(loss, axes)(*x).sum(), (0, 1, 2))(*arrays))
    assert_close(*each)
    assert_close(*whole)


def written_out(q, k, v, mask, sinks, softcap):
    """Attention with a sink and a soft cap: (out, lse)."""
    k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = softcap * jnp.tanh(jnp.einsum("bhid,bhjd->bhij", q, k) / 4 / softcap) + mask
    sink = jnp.broadcast_to(sinks[:, None, None], (*scores.shape[:-1], 1))
    lse = jax.nn.logsumexp(jnp.concatenate([scores, sink], -1), axis=-1)
    return jnp.einsum("bhij,bhjd->bhid", jnp.exp(scores - lse[..., None]), v), lse


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_all_that_has_a_gradient(rng, layout):
    """The past, a mask of numbers, sinks, through the output and the log-sum-exp."""
    sizes = ((4, 5), (2, 5), (2, 5), (2, 6), (2, 6))  # heads and tokens of q, k, v, past_key, past_value
    arrays = [normal(rng, 2, *size, 16) for size in sizes]
    arrays += [normal(rng, 2, 1, 5, 11), normal(rng, 4)]
    by_out, by_lse = normal(rng, 2, 4, 5, 16), normal(rng, 2, 4, 5)

    def swapped(x):
        return x.swapaxes(1, 2) if layout == "bshd" else x

    def mine(q, k, v, past_key, past_value, mask, sinks):
        q, k, v, past_key, past_value = map(swapped, (q, k, v, past_key, past_value))
        out, lse = gqa.jax.attention(
            q, k, v, past_key=past_key, past_value=past_value, mask=mask, sinks=sinks, softcap=3.0, layout=layout,
            return_lse=True,
        )  # fmt: skip
        return (swapped(out) * by_out).sum() + (swapped(lse) * by_lse).sum()

    def theirs(q, k, v, past_key, past_value, mask, sinks):
        k, v = (jnp.concatenate(x, axis=2) for x in ((past_key, k), (past_value, v)))
        out, lse = written_out(q, k, v, mask, sinks, 3.0)
        return (out * by_out).sum() + (lse * by_lse).sum()

    every = tuple(range(7))
    expected = jax.grad(theirs, every)(*arrays)
    assert_close(jax.grad(mine, every)(*arrays), expected)
    assert_close(jax.jit(jax.grad(mine, every))(*arrays), expected)
    assert_close([jax.grad(mine, 6)(*arrays)], [expected[6]])


def test_a_past_alone(rng):
    q, k, v = (x.swapaxes(1, 2) for x in tensors(rng))
    results = [
        jax.grad(lambda k, v, f=f: (f(k, v) ** 2).sum(), (0, 1))(k, v)
        for f in (
            lambda k, v: gqa.jax.attention(q, past_key=k, past_value=v),
            lambda k, v: gqa.jax.attention(q, k, v),
        )
    ]
    assert_close(*results)


def test_rows_without_keys_have_no_gradient(rng):
    arrays = tensors(rng)
    mask = np.arange(7)[:, None] != np.full(7, 3)
    dq, dk, dv = jax.grad(lambda *x: gqa.jax.dot_product_attention(*x, mask=mask).sum(), (0, 1, 2))(*arrays)
    assert not dq[:, 3].any()
    assert np.isfinite([x.sum() for x in (dq, dk, dv)]).all()


def test_integers_have_none(rng):
    q, k, v = (x.swapaxes(1, 2) for x in tensors(rng))
    lengths = jnp.array([7, 3])
    step = jax.jit(jax.grad(lambda k, n: gqa.jax.attention(q, k, v, kv_lengths=n).sum()))
    assert not step(k, lengths)[1, :, 3:].any()


@pytest.mark.parametrize("sizes", [(), (2,)], ids=str)
def test_vmap_with_a_mask_and_sinks(rng, sizes):
    """Whose gradients are sums over the batch, asked for or not; and positions for each entry."""
    q, k, v = (normal(rng, 3, *sizes, heads, 7, 16) for heads in (4, 2, 2))
    mask, sinks, offsets = normal(rng, 7, 7), normal(rng, 3, 4), jnp.array([0, 2, -1])

    def loss(q, k, v, mask, sinks, offset):
        out = gqa.jax.attention(q, k, v, mask=mask, sinks=sinks, query_offset=offset, causal=True)
        return (out**2).sum()

    axes = (0, 0, 0, None, 0, 0)
    for wanted in ((0, 1, 2), (0, 3, 4)):
        gradient = jax.grad(loss, wanted)
        found = jax.jit(jax.vmap(gradient, axes))(q, k, v, mask, sinks, offsets)
        expected = [gradient(q[i], k[i], v[i], mask, sinks[i], offsets[i]) for i in range(3)]
        assert_close(found, [jnp.stack(x) for x in zip(*expected)])


def test_xla_makes_no_copies(rng, door):
    if door == "XLA calls Python":
        pytest.skip("of the core's own calls")
    q, k, v = (normal(rng, 1, heads, 512, 64) for heads in (4, 2, 2))
    _, vjp = jax.vjp(lambda *x: gqa.jax.attention(*x, causal=True), q, k, v)
    assert jax.jit(vjp).lower(q).compile().memory_analysis().temp_size_in_bytes < k.nbytes
