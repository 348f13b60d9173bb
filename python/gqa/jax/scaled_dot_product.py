"""gqa.attention on JAX arrays, and jax.nn's signature for it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gqa import scaled_dot_product
from gqa.jax.calls import ARRAYS, call_of
from gqa.jax.gradients import differentiable
from gqa.quantization import Quantized
from gqa.scores.tracing import trace

_NO_FUNCTIONS = {"score_mod": None, "mask_mod": None}


def attention(q: Any, k: Any = None, v: Any = None, **options: Any) -> Any:
    """:func:`gqa.attention` on JAX arrays, also within ``jax.jit``, ``jax.vmap`` and ``jax.grad``.

    Parameters
    ----------
    q, k, v : jax.Array
        As for :func:`gqa.attention`; k and v may be left out when a past is given. On the CPU; never copied.
    **options
        Those of :func:`gqa.attention` but ``out``. Arrays (past_key, past_value, mask, sinks, query_offset and
        kv_lengths) may be traced; causal, window, scale, softcap, layout, out_dtype, return_lse and num_threads are
        Python values.

    Returns
    -------
    out, or (out, lse) with return_lse : jax.Array

    Raises
    ------
    TypeError, ValueError
        What :func:`gqa.attention` raises. Within jit, shapes, dtypes and Python values are checked while tracing; a
        length out of range is an error of the computation (``jax.errors.JaxRuntimeError``).

    Notes
    -----
    The results have the bits of :func:`gqa.attention`. ``jax.vmap`` makes one call with a larger batch of it, unless
    keys and values of several batch entries, a mask that differs, or sinks stand against that; then one call each.

    Score functions may capture JAX arrays, traced ones as well, which get no gradient. XLA calls them through Python.

    ``jax.grad`` gives the gradients of :func:`gqa.attention_vjp`, by all arrays of floats; those by mask and sinks are
    computed only where they are asked for. A past is joined to k and v for them.

    Examples
    --------
    >>> import gqa.jax, jax
    >>> q = jax.random.normal(jax.random.key(0), (2, 8, 5, 64))
    >>> k, v = jax.random.normal(jax.random.key(1), (2, 2, 2, 16, 64))
    >>> step = jax.jit(lambda q, k, v, lengths: gqa.jax.attention(q, k, v, kv_lengths=lengths, causal=True))
    >>> step(q, k, v, jax.numpy.array([16, 9])).shape
    (2, 8, 5, 64)
    """
    if options.pop("out", None) is not None:
        raise TypeError("out is given, but JAX arrays cannot be written to")
    arrays = {"q": q, "k": k, "v": v, **{name: options.pop(name, None) for name in ARRAYS[3:]}}
    for name, x in arrays.items():
        if isinstance(x, Quantized):
            raise TypeError(f"{name} is quantised, expected an array")
    operands = {name: x if isinstance(x, jax.Array) else jnp.asarray(x) for name, x in arrays.items() if x is not None}
    functions = {name: options.pop(name, None) for name in ("score_mod", "mask_mod")}
    program = None if functions == _NO_FUNCTIONS else trace(**functions)
    captured = () if program is None else program.arrays
    if not any(isinstance(x, jax.core.Tracer) for x in (*operands.values(), *captured)):
        # Straight to NumPy: compiled, each new number of keys would take milliseconds.
        given = {name: np.asarray(x) for name, x in operands.items()} | options
        attended: Any = scaled_dot_product.attention(**given, score_mod=program)
        return tuple(map(jnp.asarray, attended)) if isinstance(attended, tuple) else jnp.asarray(attended)
    call = call_of(operands, options, program)
    results = differentiable(call, (*operands.values(), *map(jnp.asarray, captured)))
    return results if len(results) > 1 else results[0]


def dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Any = None,
    key_value_seq_lengths: Any = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | None = None,
    return_residual: bool = False,
) -> Any:
    """``jax.nn.dot_product_attention`` by :func:`gqa.jax.attention`: the same arguments, without an S x T array.

    Parameters
    ----------
    query : jax.Array, shape (B, T, N, H) or (T, N, H)
    key, value : jax.Array, shape (B, S, K, H) or (S, K, H)
        N is a multiple of K.
    bias : jax.Array, optional
        Added to the scaled scores; broadcast to (B, N, T, S).
    mask : jax.Array of bool, optional
        True: attend; broadcast to (B, N, T, S).
    scale : float, optional
        Default 1 / sqrt(H).
    is_causal : bool
        Query i attends keys 0 to i.
    query_seq_lengths, key_value_seq_lengths : jax.Array of int, shape (B,), optional
        Queries and keys of each batch entry; the output of further queries is 0.
    local_window_size : int or (left, right), optional
        Query i attends keys i - left to i + right.
    implementation : {None, "xla", "cudnn"}
        Accepted, and without effect.
    return_residual : bool
        Return the log-sum-exp of the scores as well, shape (B, T, N), of key's dtype.

    Returns
    -------
    jax.Array, of query's shape and dtype, or that and the residual

    Raises
    ------
    TypeError, ValueError
        For arguments of a wrong type or dtype, or shapes that do not fit.

    Notes
    -----
    A query without a key to attend gives 0, and a residual of -inf; jax.nn gives it the mean of the values.

    Examples
    --------
    >>> import gqa.jax, jax
    >>> q = jax.random.normal(jax.random.key(0), (2, 5, 8, 64))
    >>> k, v = jax.random.normal(jax.random.key(1), (2, 2, 5, 2, 64))
    >>> out = gqa.jax.dot_product_attention(q, k, v, is_causal=True)
    >>> expected = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    >>> bool(abs(out - expected).max() < 1e-5)
    True
    """
    if implementation not in (None, "xla", "cudnn"):
        raise ValueError(f"implementation is {implementation!r}, expected None, 'xla' or 'cudnn'")
    query, key, value = jnp.asarray(query), jnp.asarray(key), jnp.asarray(value)
    shape = query.shape
    if len(shape) == 3:
        query, key, value = (x[None] if x.ndim == 3 else x for x in (query, key, value))
    window = (local_window_size, local_window_size) if isinstance(local_window_size, int) else local_window_size
    options: dict[str, Any] = {"causal": is_causal, "query_offset": 0, "window": window, "scale": scale}
    if key_value_seq_lengths is not None and key.ndim == 4:
        options["kv_lengths"] = jnp.clip(_integers("key_value_seq_lengths", key_value_seq_lengths), 0, key.shape[1])
    result = attention(
        query, key, value, mask=_scores_mask(bias, mask), layout="bshd", return_lse=return_residual, **options
    )
    out, residual = result if return_residual else (result, None)
    if query_seq_lengths is not None:
        lengths = _integers("query_seq_lengths", query_seq_lengths)
        if lengths.shape != out.shape[:1]:
            raise ValueError(f"query_seq_lengths has shape {lengths.shape}, expected {out.shape[:1]}")
        within = jnp.arange(out.shape[1])[:, None] < lengths[:, None, None]
        out = jnp.where(within[..., None], out, 0)
        residual = None if residual is None else jnp.where(within, residual, -jnp.inf)
    out = out.reshape(*shape[:-1], out.shape[-1])
    return out if residual is None else (out, residual.astype(key.dtype).reshape(shape[:-1]))


def _scores_mask(bias: Any, mask: Any) -> Any:
    """A bias and a mask as the one mask that attention takes."""
    if bias is not None:
        bias = jnp.asarray(bias)
        if not jnp.issubdtype(bias.dtype, jnp.floating):
            raise TypeError(f"bias has dtype {bias.dtype}, expected floats, which are added to the scores")
    if mask is None:
        return bias
    mask = jnp.asarray(mask)
    if mask.dtype.kind != "b":
        raise TypeError(f"mask has dtype {mask.dtype}, expected bool; what is added to the scores is given as bias")
    return mask if bias is None else jnp.where(mask, bias, -jnp.inf)


def _integers(name: str, x: Any) -> Any:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {x.dtype}, expected integers")
    return x
