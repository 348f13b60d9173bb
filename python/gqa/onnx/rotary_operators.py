"""The operators RotaryEmbedding of ai.onnx and of com.microsoft, and the normalisation of heads before a rotation."""

from __future__ import annotations

from typing import Any

import numpy as np

from gqa.arguments import Array, as_array, dtype_name, int_array
from gqa.onnx.schema import check_choice, check_type_variable, split_heads, split_shape
from gqa.rotary_embedding import rotary
from gqa.shapes import check_float, check_int, check_shape


def rotary_embedding(
    X: Array,
    cos_cache: Array,
    sin_cache: Array,
    position_ids: Any = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
    num_threads: int | None = None,
) -> Array:
    """RotaryEmbedding of ai.onnx: X (B, H, S, D), or (B, S, H * D) with num_heads.

    The tables are (positions, rotary_embedding_dim / 2) with position_ids (B, S), or else (B, S, rotary_embedding_dim
    / 2), rows already selected. rotary_embedding_dim 0 is D.
    """
    X, cos_cache, sin_cache = _of_one_type(X=X, cos_cache=cos_cache, sin_cache=sin_cache)
    x = _by_heads("X", X, num_heads)
    batch, _, tokens, channels = x.shape
    half = _check_tables(cos_cache, sin_cache, rotary_embedding_dim or channels)
    if position_ids is None:
        check_shape("cos_cache", cos_cache.shape, (batch, tokens, half))
        cos_cache, sin_cache = (table.reshape(batch * tokens, half) for table in (cos_cache, sin_cache))
        position_ids = np.arange(batch * tokens).reshape(batch, tokens)
    return _rotated(X, x, cos_cache, sin_cache, position_ids, interleaved, num_threads)


def microsoft_rotary_embedding(
    input: Array,
    position_ids: Any,
    cos_cache: Array,
    sin_cache: Array,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    is_packed_batching: int = 0,
    scale: float = 1.0,
    num_threads: int | None = None,
) -> Array:
    """RotaryEmbedding of com.microsoft: position_ids is (B, S), or (1,) or () with the position of the first tokens.

    Without num_heads, the heads of an input (B, S, H * D) are as wide as the tables turn. As in ONNX Runtime, scale has
    no effect, and is_packed_batching says no more than positions do: there may be more tokens than rows of the tables.
    """
    input, cos_cache, sin_cache = _of_one_type(input=input, cos_cache=cos_cache, sin_cache=sin_cache)
    check_choice("is_packed_batching", is_packed_batching, (0, 1))
    check_float("scale", scale)
    if input.ndim == 3 and num_heads == 0 and cos_cache.ndim == 2 and cos_cache.shape[1]:
        num_heads = max(input.shape[2] // (2 * cos_cache.shape[1]), 1)
    x = _by_heads("input", input, num_heads)
    _check_tables(cos_cache, sin_cache, rotary_embedding_dim or 2 * cos_cache.shape[-1])
    batch, _, tokens, _ = x.shape
    positions = int_array("position_ids", position_ids)
    if positions.shape in ((), (1,)):
        positions = np.broadcast_to(positions + np.arange(tokens), (batch, tokens))
    elif positions.shape != (batch, tokens):
        raise ValueError(f"position_ids has shape {positions.shape}, expected {(batch, tokens)}, (1,) or ()")
    return _rotated(input, x, cos_cache, sin_cache, positions, interleaved, num_threads)


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    """x / rms(x) * weight over the channels of each head of x (B, H, S, D); rounded to x's dtype at the end.

    A head of zeros stays 0, with an epsilon of 0 too.
    """
    # Its own memory in C order: the order in which a mean adds up follows the strides, and the bits the order.
    wide: Array = np.array(x, np.float64 if x.dtype == np.float64 else np.float32, order="C")
    rms = np.sqrt(np.mean(np.square(wide), axis=-1, keepdims=True) + epsilon)
    wide /= np.where(rms == 0, 1, rms)
    wide *= weight.astype(wide.dtype)
    return wide.astype(x.dtype, copy=False)


def _of_one_type(**tensors: Any) -> list[Array]:
    """Tensors as arrays of floats; raises unless they are of the same type."""
    arrays = {name: as_array(name, x) for name, x in tensors.items()}
    check_type_variable({name: dtype_name(name, x) for name, x in arrays.items()}, *arrays)
    return list(arrays.values())


def _by_heads(name: str, x: Array, num_heads: Any) -> Array:
    if x.ndim not in (3, 4):
        raise ValueError(f"{name} has shape {x.shape}, expected 3 or 4 axes")
    if x.ndim == 4:
        return x
    if not num_heads:
        raise ValueError(f"num_heads is missing: {name} has 3 axes")
    heads = check_int("num_heads", num_heads, 1)
    split_shape(name, x.shape, heads, "num_heads")
    return split_heads(x, heads)


def _check_tables(cos_cache: Array, sin_cache: Array, rotary_dim: Any) -> int:
    """The tables must be as wide as half the channels that turn; returns that."""
    half = check_int("rotary_embedding_dim", rotary_dim, 0) // 2
    if cos_cache.ndim < 2 or cos_cache.shape[-1] != half or 2 * half != rotary_dim:
        raise ValueError(
            f"cos_cache has shape {cos_cache.shape}, expected rows of half the {rotary_dim} channels that turn"
        )
    check_shape("sin_cache", sin_cache.shape, cos_cache.shape)
    return half


def _rotated(
    X: Array, x: Array, cos: Array, sin: Array, position_ids: Array, interleaved: Any, num_threads: int | None
) -> Array:
    """X rotated, in its own shape; x is X by heads."""
    options: dict[str, Any] = {
        "positions": int_array("position_ids", position_ids, (x.shape[0], x.shape[2])),
        "interleaved": bool(check_choice("interleaved", interleaved, (0, 1))),
        "num_threads": num_threads,
    }
    if X.ndim == 4:
        return rotary(x, cos, sin, **options)
    return rotary(x.swapaxes(1, 2), cos, sin, layout="bshd", **options).reshape(X.shape)
