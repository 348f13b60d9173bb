"""The operator Attention of ai.onnx, opsets 23, 24 and 25."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gqa.arguments import AnyArray, Array, as_array, dtype_name, lengths_array, listed
from gqa.dtypes import compute_dtype
from gqa.onnx.attention_schema import AttentionAttributes, attention_sizes, output_shape
from gqa.onnx.schema import AttentionShapes, check_precision, split_heads
from gqa.onnx.scores import allowed_keys, masked, scores, soft_capped, softmax
from gqa.rules import default_scale
from gqa.scaled_dot_product import attention as attend


class AttentionOutputs(NamedTuple):
    """The outputs of Attention; None where one was not asked for."""

    Y: Array
    present_key: Array | None
    present_value: Array | None
    qk_matmul_output: Array | None


def attention(
    Q: AnyArray,
    K: AnyArray,
    V: AnyArray,
    attn_mask: AnyArray | None = None,
    past_key: AnyArray | None = None,
    past_value: AnyArray | None = None,
    nonpad_kv_seqlen: Any = None,
    *,
    is_causal: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    q_num_heads: int | None = None,
    kv_num_heads: int | None = None,
    softmax_precision: int | None = None,
    qk_matmul_output_mode: int = 0,
    left_window_size: int = -1,
    right_window_size: int = -1,
    opset: int = 25,
    present: bool | None = None,
    qk_matmul_output: bool = False,
    num_threads: int | None = None,
) -> AttentionOutputs:
    """The operator Attention of ai.onnx.

    Sizes: B batch, Hq and Hkv heads of Q and of K and V (Hq a multiple of Hkv), S queries, L new keys, P past keys,
    T = P + L, D channels of Q and K, Dv channels of V. Keys and values are neither concatenated nor repeated to be
    attended.

    Parameters
    ----------
    Q : ndarray, shape (B, Hq, S, D) or (B, S, Hq * D)
        float32, float64, float16 or bfloat16.
    K, V : ndarray, shape (B, Hkv, L, D) and (B, Hkv, L, Dv), or (B, L, Hkv * D) and (B, L, Hkv * Dv)
        As many axes as Q. K has Q's dtype; V may have another.
    attn_mask : ndarray, optional
        bool (True: attend), or numbers added to the scores; broadcast to (B, Hq, S, T), so three axes are (Hq, S, T).
        From opset 24 on a mask narrower than T, of width 1 as well, masks the keys that it does not reach.
    past_key, past_value : ndarray, shape (B, Hkv, P, D) and (B, Hkv, P, Dv), optional
        Attended before K and V; of their dtypes.
    nonpad_kv_seqlen : array of int, shape (B,), optional
        Number of keys of each batch entry, 0 to T. From opset 24 on; not with a past.
    is_causal : int
        1: attend keys up to the position of the query. The first query has position P with a past,
        nonpad_kv_seqlen - S with that input, and else 0, whatever T is.
    scale : float, optional
        Default 1 / sqrt(D); may be negative.
    softcap : float
        If positive, scores become softcap * tanh(score / softcap) before the mask.
    q_num_heads, kv_num_heads : int, optional
        Needed for inputs of 3 axes. For inputs of 4 axes they must agree with them, and opset 25 forbids them.
    softmax_precision : {1, 10, 11, 16}, optional
        TensorProto code. 11 computes in float64; the others are met by float32, in which attention computes anyway.
    qk_matmul_output_mode : {0, 1, 2, 3}
        What qk_matmul_output holds: raw scores, soft-capped scores, masked scores (-inf where masked), probabilities.
    left_window_size, right_window_size : int
        Attend keys from position - left to position + right; -1: no bound. Opset 25.
    opset : int
        23 or more; above 25 the rules are those of 25.
    present : bool, optional
        Whether to return present_key and present_value. Default: if there is a past.
    qk_matmul_output : bool
        Whether to return qk_matmul_output, the only output that takes memory for S x T scores.
    num_threads : int, optional
        As in :func:`gqa.attention`.

    Returns
    -------
    AttentionOutputs
        Y of Q's dtype and number of axes; a row without keys is 0. present_key (B, Hkv, T, D) and present_value
        (B, Hkv, T, Dv), without a past views of K and V. qk_matmul_output (B, Hq, S, T) of Q's dtype.

    Raises
    ------
    TypeError
        For an argument of a wrong type or dtype.
    ValueError
        For shapes that do not fit, values out of range, or what the opset does not allow.

    Notes
    -----
    Follows the specification, https://onnx.ai/onnx/operators/onnx__Attention.html, and where the reference
    implementation of onnx 1.23 departs from the operator's function body, the latter: mode 0 is raw also with a
    soft cap, and the causal frontier of a mask with one row moves with the query. Half precision is rounded once, at
    the end. What masked keys and values hold does not matter.

    Examples
    --------
    >>> import gqa.onnx, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> Q, K, V = (rng.standard_normal((1, heads, 4, 8), np.float32) for heads in (6, 2, 2))
    >>> Y, present_key, *_ = gqa.onnx.attention(Q, K, V, is_causal=1, present=True)
    >>> Y.shape, present_key.shape
    ((1, 6, 4, 8), (1, 2, 4, 8))
    """
    attributes = AttentionAttributes(
        is_causal, scale, softcap, q_num_heads, kv_num_heads, softmax_precision, qk_matmul_output_mode,
        left_window_size, right_window_size, opset, present, qk_matmul_output,
    )  # fmt: skip
    if nonpad_kv_seqlen is not None:
        nonpad_kv_seqlen = listed("nonpad_kv_seqlen", nonpad_kv_seqlen)
    given = {
        "Q": Q, "K": K, "V": V, "attn_mask": attn_mask, "past_key": past_key, "past_value": past_value,
        "nonpad_kv_seqlen": nonpad_kv_seqlen,
    }  # fmt: skip
    arrays = {name: as_array(name, x) for name, x in given.items() if x is not None or name in ("Q", "K", "V")}
    sizes = attention_sizes(
        {name: x.shape for name, x in arrays.items()},
        {name: dtype_name(name, x) for name, x in arrays.items()},
        attributes,
    )
    Q, K, V = (arrays[name] for name in ("Q", "K", "V"))
    past_key, past_value = arrays.get("past_key"), arrays.get("past_value")
    lengths = _lengths(nonpad_kv_seqlen, sizes)
    offset = np.full(sizes.batch, sizes.past_keys) if lengths is None else lengths - sizes.queries

    q, k, v = Q, K, V
    if Q.ndim == 3:
        q, k, v = split_heads(Q, sizes.query_heads), split_heads(K, sizes.kv_heads), split_heads(V, sizes.kv_heads)
    mask = arrays.get("attn_mask")
    if mask is not None and mask.dtype.kind in "iu":
        mask = mask.astype(compute_dtype(Q.dtype.name, V.dtype.name))

    Y = np.empty(output_shape(sizes, Q.ndim), Q.dtype)
    _attend(Y, q, k, v, mask, past_key, past_value, lengths, offset, attributes, sizes, num_threads)
    keys = [k] if past_key is None else [past_key, k]
    qk = _qk_matmul_output(q, keys, mask, lengths, offset, attributes, sizes) if qk_matmul_output else None
    if present is None:
        present = past_key is not None
    if not present:
        return AttentionOutputs(Y, None, None, qk)
    if past_key is None or past_value is None:
        return AttentionOutputs(Y, k, v, qk)
    return AttentionOutputs(Y, np.concatenate((past_key, k), axis=2), np.concatenate((past_value, v), axis=2), qk)


def _lengths(nonpad_kv_seqlen: Any, sizes: AttentionShapes) -> Array | None:
    """nonpad_kv_seqlen as int64 (B,), each from 0 to the number of keys."""
    if nonpad_kv_seqlen is None:
        return None
    return lengths_array("nonpad_kv_seqlen", nonpad_kv_seqlen, (sizes.batch,), sizes.keys)


def _mask_width(mask: Array | None, attributes: AttentionAttributes, sizes: AttentionShapes) -> int:
    """How many keys the mask lets through at most: from opset 24 on those past its end are masked."""
    return sizes.keys if mask is None or attributes.opset < 24 else int(mask.shape[-1])


def _attend(
    Y: Array, q: Array, k: Array, v: Array, mask: Array | None, past_key: Array | None, past_value: Array | None,
    lengths: Array | None, offset: Array, attributes: AttentionAttributes, sizes: AttentionShapes,
    num_threads: int | None,
) -> None:  # fmt: skip
    """Compute Y; keys past the end of the mask are left out of k, v and the past."""
    width = _mask_width(mask, attributes, sizes)
    if past_key is not None and past_value is not None:
        past_key, past_value = past_key[:, :, :width], past_value[:, :, :width]
    fresh = max(width - sizes.past_keys, 0)
    out = Y if Y.ndim == 4 else split_heads(Y, sizes.query_heads)
    in_double = check_precision(attributes.softmax_precision) == "float64" and q.dtype != np.float64
    result = attend(
        q.astype(np.float64) if in_double else q,
        k[:, :, :fresh],
        v[:, :, :fresh],
        past_key=past_key,
        past_value=past_value,
        mask=mask,
        causal=attributes.causal,
        query_offset=offset,
        window=attributes.window,
        kv_lengths=None if lengths is None else np.minimum(lengths, width),
        scale=attributes.scale,
        softcap=attributes.softcap,
        out=None if in_double else out,
        num_threads=num_threads,
    )
    if in_double:
        with np.errstate(over="ignore"):
            np.copyto(out, result, casting="same_kind")


def _qk_matmul_output(
    q: Array, keys: list[Array], mask: Array | None, lengths: Array | None, offset: Array,
    attributes: AttentionAttributes, sizes: AttentionShapes,
) -> Array:  # fmt: skip
    """The scores (B, Hq, S, T) at the stage that qk_matmul_output_mode names."""
    in_double = q.dtype == np.float64 or check_precision(attributes.softmax_precision) == "float64"
    scale = attributes.scale if attributes.scale is not None else default_scale(sizes.head_dim)
    mode = attributes.qk_matmul_output_mode
    with np.errstate(all="ignore"):
        x = scores(q.astype(np.float64 if in_double else np.float32), keys, scale)
        if mode >= 1:
            x = soft_capped(x, attributes.softcap)
        if mode >= 2:
            width = _mask_width(mask, attributes, sizes)
            left, right = attributes.window
            reach = np.full(sizes.batch, sizes.keys) if lengths is None else lengths
            allowed = allowed_keys(
                sizes.queries, sizes.keys, offset, np.minimum(reach, width), left, 0 if attributes.causal else right
            )
            if mask is not None and width < sizes.keys:
                mask = np.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, sizes.keys - width)])
            x = masked(x, mask, allowed)
        if mode == 3:
            x = softmax(x)
        return x.astype(q.dtype)
