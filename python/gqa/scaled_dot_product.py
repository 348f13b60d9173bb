"""Scaled dot-product attention with grouped heads: the function everything else in gqa calls."""

from __future__ import annotations

from typing import Any

import numpy as np

from gqa import _core
from gqa.arguments import Array, as_array, contiguous_channels, dtype_name, int_array, lengths_array, output_target
from gqa.dtypes import name_of, require_float
from gqa.quantization import Quantized
from gqa.shapes import (
    AttentionShapes,
    Shape,
    attention_dtypes,
    attention_shapes,
    check_broadcast,
    check_flag,
    check_float,
    check_int,
    check_shape,
    check_window,
)


def attention(
    q: Array,
    k: Array | Quantized | None = None,
    v: Array | Quantized | None = None,
    *,
    past_key: Array | Quantized | None = None,
    past_value: Array | Quantized | None = None,
    mask: Array | None = None,
    causal: bool = False,
    query_offset: Any = None,
    window: tuple[int | None, int | None] | None = None,
    kv_lengths: Any = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: Array | None = None,
    layout: str = "bhsd",
    out: Array | None = None,
    return_lse: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Attention: softmax(scale * q @ k.T + mask) @ v, with grouped key/value heads.

    Query head h attends with key/value head h // (Hq // Hkv); keys and values are never repeated, concatenated or
    copied. Sizes: B batch, Hq and Hkv heads of q and of k/v (Hq a multiple of Hkv), S queries, L new keys, P past
    keys, T = P + L, D channels of q and k, Dv channels of v.

    Parameters
    ----------
    q : ndarray, shape (B, Hq, S, D)
        float32, float64, float16 or bfloat16.
    k, v : ndarray or Quantized, shape (B, Hkv, L, D) and (B, Hkv, L, Dv), optional
        May have other float types than q. Any strides; a last axis that is not contiguous is copied first. May be
        left out when a past is given: a shared cache.
    past_key, past_value : ndarray or Quantized, shape (B, Hkv, P, D) and (B, Hkv, P, Dv), optional
        Attended before k and v, without being concatenated.
    mask : ndarray, optional
        bool (True: attend) or float (added to the scaled, soft-capped score), broadcast to (B, Hq, S, T) whatever the
        layout. Only False and -inf mask.
    causal : bool
        Attend keys up to the position of the query.
    query_offset : int or array of int, shape (B,), optional
        Position of the first query among the keys; may be negative. Default: the queries stand at the end of the
        keys (T - S, or kv_lengths - S).
    window : (left, right), optional
        Attend keys from position - left to position + right; None: no bound on that side.
    kv_lengths : array of int, shape (B,), optional
        Number of keys of each batch entry, 0 to T; keys past it are never read.
    scale : float, optional
        Default 1 / sqrt(D).
    softcap : float
        If positive, scores become softcap * tanh(score / softcap) before the mask.
    sinks : ndarray, shape (Hq,), optional
        A logit for each head that joins the denominator of the softmax.
    layout : {"bhsd", "bshd"}
        "bshd" swaps heads and tokens in q, k, v, past_key, past_value, out and lse.
    out : ndarray, optional
        Where to put the output: its shape, the dtype of q, any strides; must not overlap an input.
    return_lse : bool
        Return the log-sum-exp of the scores as well.
    num_threads : int, optional
        Default: :func:`gqa.get_num_threads`.

    Returns
    -------
    out : ndarray, shape (B, Hq, S, Dv), of q's dtype
        A row with no key to attend is 0.
    lse : ndarray, shape (B, Hq, S)
        If return_lse: natural logarithm of the sum of exponentials of the scores, sinks included; -inf for a row
        without keys. float64 if any of q, k, v and the past is, else float32.

    Raises
    ------
    TypeError
        For an argument of a wrong type or dtype.
    ValueError
        For shapes that do not fit or values out of range.

    Notes
    -----
    Computes in float64 if any of q, k, v and the past is float64, else in float32 with one rounding at the end. The
    result is the same to the last bit for any number of threads and any other sequences in the batch. Without the
    batch axis (all arrays with three axes) kv_lengths and query_offset are ints. The online softmax over blocks of
    keys is that of Dao et al. 2022, arXiv:2205.14135; grouped heads are from Ainslie et al. 2023, arXiv:2305.13245.

    Examples
    --------
    >>> import gqa, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> q = rng.standard_normal((1, 8, 5, 64), np.float32)
    >>> k, v = rng.standard_normal((2, 1, 2, 16, 64), np.float32)
    >>> gqa.attention(q, k, v, causal=True).shape
    (1, 8, 5, 64)
    """
    # Plain arguments need no more than the extension's own checks; what it refuses is explained, or prepared, below.
    try:
        return _core.attention(
            q, k, v, past_key, past_value, mask, causal, query_offset, window, kv_lengths, scale, softcap, sinks,
            layout, out, return_lse, num_threads,
        )  # fmt: skip
    except (TypeError, ValueError):
        pass

    given = {"q": q, "k": k, "v": v, "past_key": past_key, "past_value": past_value}
    tensors = {name: x for name, x in given.items() if x is not None or name == "q"}
    arrays = {name: as_array(name, x.data if isinstance(x, Quantized) else x) for name, x in tensors.items()}
    arrays |= {name: as_array(name, x) for name, x in (("mask", mask), ("sinks", sinks)) if x is not None}
    dtypes = {name: dtype_name(name, x) for name, x in arrays.items()}
    quantized = {name: x for name, x in tensors.items() if isinstance(x, Quantized)}
    sizes, out_dtype, _ = _check(
        {name: x.shape for name, x in arrays.items()}, dtypes | dict.fromkeys(quantized, "quantized"),
        layout=layout, causal=causal, window=window, scale=scale, softcap=softcap, num_threads=num_threads,
        return_lse=return_lse,
    )  # fmt: skip

    target = out
    if out is not None:
        inputs = arrays | {f"the scale of {name}": x.scale for name, x in quantized.items()}
        target = output_target(out, sizes.out, out_dtype, inputs.items())
    output, lse = _core.attention(
        _batched(q, sizes), _batched(k, sizes), _batched(v, sizes),
        _batched(past_key, sizes), _batched(past_value, sizes),
        mask if mask is None or sizes.batched or mask.ndim < 3 else mask[None],
        check_flag("causal", causal),
        query_offset if query_offset is None else _offsets(query_offset, sizes),
        check_window(window),
        kv_lengths if kv_lengths is None else _lengths(kv_lengths, sizes),
        scale if scale is None else check_float("scale", scale),
        check_float("softcap", softcap, 0.0),
        sinks if sinks is None else sinks.astype(np.float64),
        layout,
        target if target is None or sizes.batched else target[None],
        True,
        num_threads,
    )  # fmt: skip
    if not sizes.batched:
        output, lse = output[0], lse[0]
    if out is not None:
        if target is None:
            np.copyto(out, output)
        output = out
    return (output, lse) if check_flag("return_lse", return_lse) else output


def infer_shapes(shapes: dict[str, Shape], dtypes: dict[str, Any], **options: Any) -> dict[str, tuple[Shape, str]]:
    """The shapes and dtypes that :func:`attention` returns, from shapes and dtypes alone.

    Parameters
    ----------
    shapes : dict of str to tuple of int
        By argument name: q, and k and v, past_key and past_value, or all four; mask, sinks, kv_lengths and
        query_offset if they are arrays.
    dtypes : dict of str to dtype
        By argument name; :class:`gqa.Quantized` for a quantised argument.
    **options
        As those of :func:`attention`: layout, causal, window, scale, softcap, ...

    Returns
    -------
    dict
        ``{"out": (shape, dtype name), "lse": (shape, dtype name)}``

    Raises
    ------
    TypeError, ValueError
        What attention would raise.

    Examples
    --------
    >>> import gqa
    >>> shapes = {"q": (2, 8, 1, 64), "k": (2, 2, 128, 64), "v": (2, 2, 128, 32)}
    >>> gqa.infer_shapes(shapes, {"q": "float16", "k": "float32", "v": "float32"})
    {'out': ((2, 8, 1, 32), 'float16'), 'lse': ((2, 8, 1), 'float32')}
    """
    shapes = {name: tuple(check_int(f"the shape of {name}", n, 0) for n in shape) for name, shape in shapes.items()}
    names = {name: "quantized" if dtype is Quantized else name_of(dtype, name) for name, dtype in dtypes.items()}
    for name in ("mask", "sinks"):
        if (x := options.pop(name, None)) is not None:
            shapes[name], names[name] = as_array(name, x).shape, dtype_name(name, x)
    lengths, offset = options.pop("kv_lengths", None), options.pop("query_offset", None)
    options.pop("out", None)
    sizes, out_dtype, lse_dtype = _check(shapes, names, **options)
    if lengths is not None:
        _lengths(lengths, sizes)
    if offset is not None:
        _offsets(offset, sizes)
    return {"out": (sizes.out, out_dtype), "lse": (sizes.lse, lse_dtype)}


_TENSORS = ("q", "k", "v", "past_key", "past_value")
_INTEGERS = ("kv_lengths", "query_offset")


def _check(
    shapes: dict[str, Shape], dtypes: dict[str, str], *, layout: str = "bhsd", causal: Any = False, window: Any = None,
    scale: Any = None, softcap: Any = 0.0, num_threads: Any = None, return_lse: Any = False,
) -> tuple[AttentionShapes, str, str]:  # fmt: skip
    """Check everything that needs no data; returns the sizes and the dtypes of out and lse."""
    unknown = [name for name in shapes if name not in (*_TENSORS, *_INTEGERS, "mask", "sinks")]
    if unknown or "q" not in shapes:
        raise TypeError(f"unknown argument {unknown[0]!r}" if unknown else "q is missing")
    if missing := [name for name in shapes if name not in dtypes]:
        raise TypeError(f"{missing[0]} has a shape but no dtype")
    tensors = [name for name in _TENSORS if name in shapes]
    out_dtype, lse_dtype = attention_dtypes({name: dtypes[name] for name in tensors})
    sizes = attention_shapes({name: shapes[name] for name in tensors}, layout=layout)
    if "mask" in shapes:
        if dtypes["mask"] != "bool":
            require_float("mask", dtypes["mask"])
        check_broadcast("mask", shapes["mask"], sizes.mask)
    if "sinks" in shapes:
        require_float("sinks", dtypes["sinks"])
        check_shape("sinks", shapes["sinks"], (sizes.query_heads,))
    for name in _INTEGERS:
        if name in shapes:
            if np.dtype(dtypes[name]).kind not in "iu":
                raise TypeError(f"{name} has dtype {dtypes[name]}, expected integers")
            if not (name == "query_offset" and shapes[name] == ()):
                check_shape(name, shapes[name], (sizes.batch,) if sizes.batched else ())
    check_flag("causal", causal)
    check_flag("return_lse", return_lse)
    check_window(window)
    if scale is not None:
        check_float("scale", scale)
    check_float("softcap", softcap, 0.0)
    if num_threads is not None:
        check_int("num_threads", num_threads, 1)
    return sizes, out_dtype, lse_dtype


def _batched(x: Array | Quantized | None, sizes: AttentionShapes) -> Array | Quantized | None:
    """`x` with a batch axis and a contiguous last axis, as the extension takes it."""
    if x is None:
        return None
    x = Quantized(contiguous_channels(x.data), x.scale) if isinstance(x, Quantized) else contiguous_channels(x)
    return x if sizes.batched else x[None]


def _offsets(query_offset: Any, sizes: AttentionShapes) -> int | Array:
    """One position for all, or one for each batch entry."""
    if np.ndim(query_offset) == 0:
        return check_int("query_offset", query_offset)
    return int_array("query_offset", query_offset, (sizes.batch,) if sizes.batched else ())


def _lengths(kv_lengths: Any, sizes: AttentionShapes) -> Array:
    """The number of keys of each batch entry."""
    shape = (sizes.batch,) if sizes.batched else ()
    return np.atleast_1d(lengths_array("kv_lengths", kv_lengths, shape, sizes.keys))
