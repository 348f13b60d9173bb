"""Attention as the layers of flax nnx call it."""

from __future__ import annotations

import math
from typing import Any


def attention_fn(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    broadcast_dropout: bool = True,
    dropout_rng: Any = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: Any = None,
    promote_dtype: Any = None,
    is_causal: bool = False,
) -> Any:
    """``flax.nnx.dot_product_attention`` by gqa, for ``flax.nnx.MultiHeadAttention(attention_fn=...)``. Needs JAX.

    Parameters
    ----------
    query : jax.Array, shape (..., Q, num_heads, head_dim)
    key, value : jax.Array, shape (..., K, num_kv_heads, head_dim)
    bias : jax.Array, optional
        Added to the scaled scores; broadcast to (..., num_heads, Q, K).
    mask : jax.Array, optional
        True or nonzero: attend; broadcast to (..., num_heads, Q, K).
    dropout_rate : float
        Must be 0 unless deterministic.
    deterministic : bool
        Leave dropout out.
    dtype : dtype, optional
        What query, key and value are converted to; default what they promote to together.
    module : optional
        Must be None: there are no attention weights to sow.
    promote_dtype : function, optional
        As flax's, called with (query, key, value) and dtype instead.
    is_causal : bool
        Query i attends keys 0 to i.
    broadcast_dropout, dropout_rng, precision
        Accepted, and without effect.

    Returns
    -------
    jax.Array, shape (..., Q, num_heads, head_dim)

    Raises
    ------
    TypeError, ValueError
        For dropout, a module, arguments of a wrong type or dtype, or shapes that do not fit.

    Notes
    -----
    A query that may attend no key gives 0, where flax gives the mean of the values.

    Examples
    --------
    >>> import gqa.nn, jax
    >>> q = jax.random.normal(jax.random.key(0), (2, 5, 8, 64))
    >>> k, v = jax.random.normal(jax.random.key(1), (2, 2, 5, 2, 64))
    >>> gqa.nn.attention_fn(q, k, v, is_causal=True).shape
    (2, 5, 8, 64)

    In a model, it is ``nnx.MultiHeadAttention(8, 256, attention_fn=gqa.nn.attention_fn, rngs=nnx.Rngs(0))``.
    """
    import jax.numpy as jnp

    from gqa.jax import dot_product_attention

    if dropout_rate and not deterministic:
        raise ValueError(f"dropout_rate is {dropout_rate}, expected 0, or deterministic=True")
    if module is not None:
        raise ValueError("module is given, expected None: gqa makes no attention weights that could be sown")
    query, key, value = map(jnp.asarray, (query, key, value))
    if promote_dtype is None:
        dtype = jnp.result_type(query, key, value) if dtype is None else dtype
        query, key, value = (x.astype(dtype) for x in (query, key, value))
    else:
        query, key, value = promote_dtype((query, key, value), dtype=dtype)
    if mask is not None:
        mask = jnp.asarray(mask).astype(bool)
    leading = query.shape[:-3]
    if len(leading) > 1:
        query, key, value = (x.reshape(math.prod(leading), *x.shape[-3:]) for x in (query, key, value))
        bias, mask = (None if x is None else _four_axes(jnp, jnp.asarray(x), leading) for x in (bias, mask))
    out = dot_product_attention(query, key, value, bias, mask, is_causal=is_causal)
    return out.reshape(*leading, *out.shape[-3:])


def _four_axes(jnp: Any, x: Any, leading: tuple[int, ...]) -> Any:
    """Something that broadcasts to scores (*leading, heads, queries, keys) with all leading axes as one."""
    if x.ndim <= 3 or math.prod(x.shape[:-3]) == 1:
        return x.reshape(x.shape[-3:])
    return jnp.broadcast_to(x, (*leading, *x.shape[-3:])).reshape(math.prod(leading), *x.shape[-3:])
