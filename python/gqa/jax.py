"""Attention on JAX arrays on the CPU, read and written where they lie: eagerly, and within jit, vmap and grad."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from gqa import _core, gradients, scaled_dot_product, shape_inference
from gqa.arguments import Array
from gqa.quantization import Quantized

__all__ = ["attention", "dot_product_attention"]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])


_TENSORS = ("q", "k", "v", "past_key", "past_value")
_POSITIONS = ("query_offset", "kv_lengths")
_ARRAYS = (*_TENSORS, "mask", "sinks", *_POSITIONS)
_NUMBERS = ("layout", "causal", "window", "scale", "softcap", "out_dtype", "return_lse", "num_threads")
_UNBOUNDED, _MAX_THREADS = 2**62, 1024


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
    arrays = {"q": q, "k": k, "v": v, **{name: options.pop(name, None) for name in _ARRAYS[3:]}}
    for name, x in arrays.items():
        if isinstance(x, Quantized):
            raise TypeError(f"{name} is quantised, expected an array")
    operands = {name: x if isinstance(x, jax.Array) else jnp.asarray(x) for name, x in arrays.items() if x is not None}
    if not any(isinstance(x, jax.core.Tracer) for x in operands.values()):
        # Straight to NumPy: compiled, each new number of keys would take milliseconds.
        attended: Any = scaled_dot_product.attention(**{name: np.asarray(x) for name, x in operands.items()} | options)
        return tuple(map(jnp.asarray, attended)) if isinstance(attended, tuple) else jnp.asarray(attended)
    results = _attend(_call(operands, options), tuple(operands.values()))
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


# ---- within transformations ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """One call of attention, its arrays left open; equal calls are compiled once."""

    axes: tuple[tuple[str, int], ...]  # of each array by name, without those that vmap puts in front
    out: tuple[tuple[int, ...], str]  # shape and dtype
    lse: tuple[tuple[int, ...], str]
    settings: tuple[tuple[str, Any], ...]

    @property
    def results(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        return (self.out, self.lse) if dict(self.settings).get("return_lse") else (self.out,)

    def with_lse(self) -> _Call:
        """The same call, which returns the log-sum-exp as well."""
        return replace(self, settings=tuple(sorted({**dict(self.settings), "return_lse": True}.items())))

    def has_attributes(self) -> bool:
        """Whether all that is said about the call can be said to the core without Python."""
        return all(name in _NUMBERS or x is None for name, x in self.settings)

    def attributes(self) -> dict[str, Any]:
        """The call as the attributes of the core's own function for XLA (csrc/xla/handler.cpp)."""
        own_axes, options = dict(self.axes), dict(self.settings)
        window, scale, threads = (options.get(name) for name in ("window", "scale", "num_threads"))
        bounds = [_UNBOUNDED if n is None else min(int(n), _UNBOUNDED) for n in window or (None, None)]
        return {
            "own_axes": np.array([own_axes.get(name, -1) for name in _ARRAYS], np.int64),
            "tokens_first": options.get("layout") == "bshd",
            "causal": bool(options.get("causal", False)),
            "window": np.array(bounds, np.int64),
            "scale": np.float64(math.nan if scale is None else scale),
            "softcap": np.float64(options.get("softcap", 0.0)),
            "num_threads": np.int64(0 if threads is None else min(int(threads), _MAX_THREADS)),
        }

    def __call__(self, context: Any, results: Sequence[Any], *operands: Any) -> None:
        """Called by XLA with its own memory."""
        self.attend([np.asarray(x) for x in operands], [np.asarray(x) for x in results])

    def attend(self, operands: list[Array], results: list[Array]) -> None:
        """Write the results; axes in front of them are of size 1 in an operand that does not have them."""
        shape = self.out[0]
        leading = results[0].shape[: results[0].ndim - len(shape)]
        batch = shape[0] if len(shape) == 4 else 1
        arrays: dict[str, Any] = {
            name: _folded(name, x, axes, leading, batch) for (name, axes), x in zip(self.axes, operands)
        }
        if any(x is None for x in arrays.values()):
            for i in range(leading[0]):
                self.attend([x[i if len(x) > 1 else 0] for x in operands], [x[i] for x in results])
            return
        rows = math.prod(leading) * batch
        out, *lse = (x.reshape(rows, *x.shape[x.ndim - axes :]) for x, axes in zip(results, (3, 2)))
        attended = scaled_dot_product.attention(**arrays, out=out, **dict(self.settings))
        for x in lse:
            x[...] = attended[1]


def _folded(name: str, x: Array, axes: int, leading: tuple[int, ...], batch: int) -> Array | None:
    """An operand with its leading axes as part of the batch, or None if that took a copy of it."""
    own, rest = x.shape[: len(leading)], x.shape[len(leading) :]
    same = math.prod(own) == 1
    if name in _POSITIONS:
        positions: Array = np.broadcast_to(x if axes else x[..., None], (*leading, batch)).reshape(-1)
        return positions
    if name == "sinks":
        return x.reshape(rest) if same else None
    rest = (1,) * (4 - axes) + rest
    if own == leading and rest[0] == batch:
        return x.reshape(-1 if x.size else math.prod(leading) * batch, *rest[1:])
    if not same or rest[0] != 1:
        return None
    x = x.reshape(rest)
    return np.broadcast_to(x, (math.prod(leading) * batch, *rest[1:])) if name != "mask" else x


def _call(operands: dict[str, Any], options: dict[str, Any]) -> _Call:
    """The call with these operands; TypeError or ValueError if attention would raise one."""
    shapes, dtypes = ({name: getattr(x, what) for name, x in operands.items()} for what in ("shape", "dtype"))
    inferred = shape_inference.infer_shapes(shapes, dtypes, **options)
    settings = dict(options)
    if settings.get("window") is not None:
        settings["window"] = tuple(settings["window"])
    if settings.get("scale") is not None:
        settings["scale"] = float(settings["scale"])
    return _Call(
        tuple((name, x.ndim) for name, x in operands.items()),
        inferred["out"],
        inferred["lse"],
        tuple(sorted(settings.items())),
    )


def _run(call: _Call, operands: tuple[Any, ...]) -> Any:
    results = _described(call.results)
    if call.has_attributes() and (target := _xla_target()) is not None:
        return jax.ffi.ffi_call(target, results, vmap_method="expand_dims")(*operands, **call.attributes())
    return _call_python(call, results, operands)


def _call_python(function: Any, results: Any, operands: Sequence[Any]) -> Any:
    from jax.experimental.buffer_callback import buffer_callback

    return buffer_callback(function, results, vmap_method="expand_dims")(*operands)


def _described(results: Sequence[tuple[tuple[int, ...], Any]]) -> tuple[Any, ...]:
    return tuple(jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape, dtype in results)


@functools.cache
def _xla_target() -> str | None:
    """The name by which XLA calls the core itself, or None: then it calls Python.

    None where gqa was built without jaxlib's headers, and where this jaxlib does not take what was built with those of
    another one. It is asked once it runs: what it refuses at its start would leave JAX without the CPU.
    """
    if _core.XLA_ATTENTION is None:
        return None
    try:
        jax.devices("cpu")
        jax.ffi.register_ffi_target("gqa_attention", _core.XLA_ATTENTION, platform="cpu")
    except Exception:
        return None
    return "gqa_attention"


# ---- gradients -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Gradient:
    """The gradients of one call of attention, which XLA lets Python compute."""

    call: _Call
    given: tuple[str, ...]  # what comes before the call's operands: out, lse, dout and perhaps dlse
    wanted: tuple[str, ...]  # arrays of the call

    def __call__(self, context: Any, results: Sequence[Any], *operands: Any) -> None:
        """Called by XLA with its own memory."""
        self.differentiate([np.asarray(x) for x in operands], [np.asarray(x) for x in results])

    def differentiate(self, operands: list[Array], results: list[Array]) -> None:
        """Write the results; axes in front of them are of size 1 in an operand that does not have them."""
        axes = dict(self.call.axes)
        leading = results[0].shape[: results[0].ndim - axes[self.wanted[0]]]
        if leading:  # gradients of masks and sinks are sums over the batch, which must not grow
            for i in range(leading[0]):
                self.differentiate([x[i if len(x) > 1 else 0] for x in operands], [x[i] for x in results])
            return
        arrays: dict[str, Any] = dict(zip((*self.given, *axes), operands))
        settings = {
            name: x for name, x in self.call.settings if name not in ("out_dtype", "return_lse") and x is not None
        }
        found = gradients.attention_vjp(**arrays, **settings, mask_grad="mask" in self.wanted)
        for name, x in zip(self.wanted, results):
            x[...] = getattr(found, f"d{name}")


def _forward(call: _Call, operands: Any) -> Any:
    names = [name for name, _ in call.axes]
    values = tuple(x.value for x in operands)
    out, lse = _run(call.with_lse(), values)
    # Which gradients are wanted is known now, and must not become an array.
    wanted = {name: None for name, x in zip(names, operands) if x.perturbed and name not in _POSITIONS}
    return ((out, lse) if len(call.results) > 1 else (out,)), (values, out, lse, wanted)


def _backward(call: _Call, residuals: Any, cotangents: Any) -> Any:
    values, out, lse, wanted = residuals
    operands = {name: jnp.asarray(x) for (name, _), x in zip(call.axes, values)}  # a constant may have become a number
    joined = _joined(call, operands)
    given = {"dout": _array(cotangents[0]), "out": out, "lse": lse}
    if len(cotangents) > 1 and not isinstance(cotangents[1], SymbolicZero):
        given["dlse"] = _array(cotangents[1])
    names = [name for name in joined if name in ("q", "k", "v") or name in wanted]
    function = _Gradient(
        replace(call, axes=tuple((name, x.ndim) for name, x in joined.items())), tuple(given), tuple(names)
    )
    results = _described([(joined[name].shape, joined[name].dtype) for name in names])
    found = dict(zip(names, _call_python(function, results, (*given.values(), *joined.values()))))
    return (tuple(_part(call, name, operands, found) for name in operands),)


def _array(cotangent: Any) -> Any:
    return jnp.zeros(cotangent.shape, cotangent.dtype) if isinstance(cotangent, SymbolicZero) else cotangent


def _joined(call: _Call, operands: dict[str, Any]) -> dict[str, Any]:
    """The operands with a past as part of k and v."""
    if "past_key" not in operands:
        return operands
    parts = {name: [operands[x] for x in (past, name) if x in operands] for past, name in _PASTS.items()}
    joined = {"q": operands["q"]} | {name: jnp.concatenate(x, _token_axis(call)) for name, x in parts.items()}
    return joined | {name: x for name, x in operands.items() if name not in _TENSORS}


def _part(call: _Call, name: str, operands: dict[str, Any], found: dict[str, Any]) -> Any:
    """The gradient of an operand, of which a past, and what comes after it, has a part; None: there is none."""
    whole = _PASTS.get(name, name)
    if whole not in found or "past_key" not in operands or name not in ("k", "v", *_PASTS):
        return found.get(name)
    axis = _token_axis(call)
    past = operands[next(x for x in _PASTS if _PASTS[x] == whole)].shape[axis]
    first, last = (0, past) if name in _PASTS else (past, found[whole].shape[axis])
    return jax.lax.slice_in_dim(found[whole], first, last, axis=axis)


def _token_axis(call: _Call) -> int:
    return len(call.out[0]) - (3 if dict(call.settings).get("layout") == "bshd" else 2)


_PASTS = {"past_key": "k", "past_value": "v"}
_attend = jax.custom_vjp(_run, nondiff_argnums=(0,))
_attend.defvjp(_forward, _backward, symbolic_zeros=True)
