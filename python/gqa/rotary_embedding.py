"""Rotary position embedding, and its tables of cosines and sines for long-context models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gqa import _core
from gqa.arguments import AnyArray, Array, as_array, contiguous_channels, dtype_name, int_array
from gqa.dtypes import FLOATS, dtype_named, name_of, require_float
from gqa.shapes import check_flag, check_float, check_int, check_shape, layout_axes


def rotary(
    x: AnyArray,
    cos: AnyArray,
    sin: AnyArray,
    *,
    positions: Any = None,
    interleaved: bool = False,
    layout: str = "bhsd",
    num_threads: int | None = None,
) -> Array:
    """Rotary position embedding: turn pairs of channels by angles that grow with the position.

    A pair (a, b) at position p becomes (a cos[p] - b sin[p], a sin[p] + b cos[p]). The pairs lie in the first
    rotary_dim channels; the channels after them are copied.

    Parameters
    ----------
    x : ndarray, shape (B, H, S, D), or (H, S, D) without a batch
        Queries or keys: float32, float64, float16 or bfloat16, any strides. A last axis that is not contiguous is
        copied first.
    cos, sin : ndarray, shape (max_position, rotary_dim / 2)
        Of any of these dtypes; rotary_dim is at most D. See :func:`rotary_tables`.
    positions : int or array of int, shape (S,) or (B, S), optional
        Rows of cos and sin for the tokens of x. An int is the position of the first token, the others follow;
        default 0.
    interleaved : bool
        Pair channels (2i, 2i + 1) as GPT-J does; otherwise (i, i + rotary_dim / 2) as GPT-NeoX and Llama in Hugging
        Face's layout do.
    layout : {"bhsd", "bshd"}
        "bshd" swaps heads and tokens in x and in the result.
    num_threads : int, optional
        At most so many threads; default :func:`get_num_threads`. The result does not depend on it.

    Returns
    -------
    ndarray
        A new array of x's shape and dtype.

    Raises
    ------
    TypeError
        For an argument of a wrong type or dtype.
    ValueError
        For shapes that do not fit, or a position outside of cos and sin.

    Notes
    -----
    Computes in float64 for a float64 x, else in float32 with one rounding at the end; cos and sin are converted to
    that type. From Su et al. 2021, arXiv:2104.09864.

    Examples
    --------
    >>> import gqa, numpy as np
    >>> cos, sin = gqa.rotary_tables(16, 4)
    >>> x = np.ones((1, 1, 2, 4), np.float32)
    >>> gqa.rotary(x, cos, sin, positions=7).shape
    (1, 1, 2, 4)
    >>> np.array_equal(gqa.rotary(x, cos, sin)[0, 0, 0], x[0, 0, 0])  # position 0 turns nothing
    True
    """
    x, cos, sin = as_array("x", x), as_array("cos", cos), as_array("sin", sin)
    for name, array in (("x", x), ("cos", cos), ("sin", sin)):
        require_float(name, dtype_name(name, array))
    expected = ", ".join(layout_axes(layout))
    if x.ndim not in (3, 4):
        raise ValueError(f"x has shape {x.shape}, expected ({expected}), or three axes without the batch")
    if cos.ndim != 2:
        raise ValueError(f"cos has shape {cos.shape}, expected (max_position, rotary_dim / 2)")
    check_shape("sin", sin.shape, cos.shape)
    if 2 * cos.shape[1] > x.shape[-1]:
        raise ValueError(f"cos has {cos.shape[1]} columns for {2 * cos.shape[1]} channels, but x has {x.shape[-1]}")
    check_flag("interleaved", interleaved)
    if num_threads is not None:
        check_int("num_threads", num_threads, 1)

    batched = x.ndim == 4
    x, cos, sin = (contiguous_channels(array) for array in (x if batched else x[None], cos, sin))
    batch, tokens = x.shape[0], x.shape[2 if layout == "bhsd" else 1]
    places = _positions(positions, batch if batched else None, tokens, cos.shape[0])
    turned: Array = _core.rotary(x, cos, sin, places, bool(interleaved), layout, num_threads)
    return turned if batched else turned[0]


def _positions(positions: Any, batch: int | None, tokens: int, rows: int) -> int | Array:
    """The position of the first token, or an array (1 or batch, tokens); its values are checked by the extension."""
    if positions is None or np.ndim(positions) == 0:
        first = 0 if positions is None else check_int("positions", positions, 0)
        if first + tokens > rows:
            raise ValueError(
                f"positions {first} to {first + tokens - 1} of x are beyond the {rows} rows of cos and sin"
            )
        return first
    shape = (tokens,) if batch is None or np.ndim(positions) == 1 else (batch, tokens)
    return np.ascontiguousarray(np.atleast_2d(int_array("positions", positions, shape)))


def rotary_tables(
    max_position: int,
    rotary_dim: int,
    *,
    base: float = 10000.0,
    scaling: Mapping[str, Any] | None = None,
    dtype: Any = "float32",
) -> tuple[Array, Array]:
    """Cosines and sines of the angles by which :func:`rotary` turns each pair of channels at each position.

    Pair i turns by position * base ** (-2 i / rotary_dim), with frequencies changed by `scaling` as in models whose
    context was extended after training.

    Parameters
    ----------
    max_position : int
        Number of positions.
    rotary_dim : int
        Number of channels that are turned, even.
    base : float
        Called rope_theta in Hugging Face's configurations; more than 1.
    scaling : dict, optional
        rope_scaling (or rope_parameters) of a Hugging Face configuration. Its "rope_type" (or "type") is one of

        - "default": nothing else.
        - "linear": positions divided by "factor" (Chen et al. 2023, arXiv:2306.15595).
        - "llama3": pairs with wavelengths above original_max_position_embeddings / low_freq_factor divided by
          "factor", those below original_max_position_embeddings / high_freq_factor as they are, a blend between
          (Llama 3.1). All four keys are needed.
        - "yarn": a blend of divided and plain frequencies between the pairs that turn "beta_slow" (1) and "beta_fast"
          (32) times within "original_max_position_embeddings"; cos and sin are multiplied by "attention_factor", by
          default 0.1 ln(factor) + 1 or the ratio of two such from "mscale" and "mscale_all_dim"; "truncate" (True)
          rounds the blend's ends to whole pairs (Peng et al. 2023, arXiv:2309.00071).

        A "rope_theta" in it must be equal to `base`. Keys that the type does not use are ignored.
    dtype : dtype
        float32, float64, float16 or bfloat16.

    Returns
    -------
    cos, sin : ndarray, shape (max_position, rotary_dim / 2)
        Angles are computed in float64 and rounded once.

    Raises
    ------
    TypeError
        For an argument, or a value in `scaling`, of a wrong type.
    ValueError
        For a value out of range, an unknown rope_type, or a key of `scaling` that is missing.

    Examples
    --------
    >>> import gqa
    >>> llama = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    ...          "original_max_position_embeddings": 8192}
    >>> cos, sin = gqa.rotary_tables(1024, 128, base=500000.0, scaling=llama)
    >>> cos.shape, cos.dtype
    ((1024, 64), dtype('float32'))
    """
    max_position = check_int("max_position", max_position, 0)
    rotary_dim = check_int("rotary_dim", rotary_dim, 2)
    if rotary_dim % 2:
        raise ValueError(f"rotary_dim is {rotary_dim}, expected an even number")
    base = check_float("base", base)
    if base <= 1:
        raise ValueError(f"base is {base}, expected more than 1")
    if name_of(dtype) not in FLOATS:
        raise TypeError(f"dtype is {name_of(dtype)}, expected {', '.join(FLOATS)}")

    frequencies = base ** -(np.arange(0, rotary_dim, 2) / rotary_dim)
    magnitude = 1.0
    if scaling is not None:
        frequencies, magnitude = _scaling_named(scaling, base)(frequencies, base, scaling)
    angles = np.outer(np.arange(max_position, dtype=np.float64), frequencies)
    target = dtype_named(name_of(dtype))
    return (magnitude * np.cos(angles)).astype(target), (magnitude * np.sin(angles)).astype(target)


# From plain frequencies, the base and the parameters to other frequencies and what multiplies cos and sin.
Scaling = Callable[[Array, float, Mapping[str, Any]], tuple[Array, float]]


def _default(frequencies: Array, base: float, scaling: Mapping[str, Any]) -> tuple[Array, float]:
    return frequencies, 1.0


def _linear(frequencies: Array, base: float, scaling: Mapping[str, Any]) -> tuple[Array, float]:
    return frequencies / _number(scaling, "factor", 1.0), 1.0


def _llama3(frequencies: Array, base: float, scaling: Mapping[str, Any]) -> tuple[Array, float]:
    factor = _number(scaling, "factor", 1.0)
    context = _number(scaling, "original_max_position_embeddings", 1.0)
    low, high = (_number(scaling, key, 0.0) for key in ("low_freq_factor", "high_freq_factor"))
    if high <= low:
        raise ValueError(f"scaling has high_freq_factor {high}, expected more than its low_freq_factor {low}")
    turns = context * frequencies / (2 * math.pi)  # of each pair within the original context
    plain = np.clip((turns - low) / (high - low), 0, 1)
    return plain * frequencies + (1 - plain) * frequencies / factor, 1.0


def _yarn(frequencies: Array, base: float, scaling: Mapping[str, Any]) -> tuple[Array, float]:
    factor = _number(scaling, "factor", 1.0)
    context = _number(scaling, "original_max_position_embeddings", 1.0)
    fast, slow = (_number(scaling, key, 0.0, default) for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0)))
    if not 0 < slow <= fast:
        raise ValueError(f"scaling has beta_fast {fast} and beta_slow {slow}, expected 0 < beta_slow <= beta_fast")
    mscale, mscale_all_dim = (_number(scaling, key, 0.0, 0.0) for key in ("mscale", "mscale_all_dim"))

    def attention_factor(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1

    magnitude = attention_factor(1.0)
    if mscale and mscale_all_dim:
        magnitude = attention_factor(mscale) / attention_factor(mscale_all_dim)
    magnitude = _number(scaling, "attention_factor", 0.0, magnitude)

    def pair_turning(times: float) -> float:
        """The pair, as a real number, that turns so many times within the original context."""
        return len(frequencies) * math.log(context / (times * 2 * math.pi)) / math.log(base)

    first, last = pair_turning(fast), pair_turning(slow)
    truncate = scaling.get("truncate")
    if truncate is None or check_flag("scaling's truncate", truncate):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * len(frequencies) - 1)
    divided = np.clip((np.arange(len(frequencies)) - first) / ((last - first) or 0.001), 0, 1)
    return (1 - divided) * frequencies + divided * frequencies / factor, magnitude


SCALINGS: dict[str, Scaling] = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}


def _scaling_named(scaling: Any, base: float) -> Scaling:
    """The scaling that a rope_scaling dict asks for."""
    if not isinstance(scaling, Mapping):
        raise TypeError(f"scaling is a {type(scaling).__name__}, expected a dict or None")
    name = scaling.get("rope_type", scaling.get("type"))
    if not isinstance(name, str) or name not in SCALINGS:
        raise ValueError(f"scaling has rope_type {name!r}, expected one of {', '.join(map(repr, SCALINGS))}")
    if _number(scaling, "rope_theta", 0.0, base) != base:
        raise ValueError(f"scaling has rope_theta {scaling['rope_theta']}, but base is {base}")
    return SCALINGS[name]


def _number(scaling: Mapping[str, Any], key: str, least: float, default: float | None = None) -> float:
    """A number of `scaling`; where it has none (or None) the default, or a ValueError."""
    value = scaling.get(key)
    if value is None:
        if default is None:
            raise ValueError(f"scaling has no {key}, which its rope_type needs")
        return default
    return check_float(f"scaling's {key}", value, least)
