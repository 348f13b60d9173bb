"""The operator GroupQueryAttention of com.microsoft."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gqa.arguments import AnyArray, Array, as_array, int_array, listed
from gqa.onnx.group_query.cached_attention import over_cache, over_sliding_cache
from gqa.onnx.group_query.presents import check_presents, write_present
from gqa.onnx.group_query.quantized_cache import quantization
from gqa.onnx.group_query.shapes import GroupQueryShapes, as_arrays, check_call
from gqa.onnx.group_query.timeline import Place, places
from gqa.onnx.rotary_operators import rms_norm
from gqa.rotary_embedding import rotary
from gqa.shapes import check_int


class GroupQueryAttentionOutputs(NamedTuple):
    """The outputs of GroupQueryAttention; output_qk is None where qk_output is 0."""

    output: Array
    present_key: Array
    present_value: Array
    output_qk: Array | None


def group_query_attention(
    query: AnyArray,
    key: AnyArray | None = None,
    value: AnyArray | None = None,
    past_key: AnyArray | None = None,
    past_value: AnyArray | None = None,
    seqlens_k: Any = None,
    total_sequence_length: Any = None,
    cos_cache: AnyArray | None = None,
    sin_cache: AnyArray | None = None,
    position_ids: Any = None,
    attention_bias: AnyArray | None = None,
    head_sink: AnyArray | None = None,
    k_scale: AnyArray | None = None,
    v_scale: AnyArray | None = None,
    q_norm_weight: AnyArray | None = None,
    k_norm_weight: AnyArray | None = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    scale: float | None = None,
    softcap: float = 0.0,
    local_window_size: int = -1,
    causal: int = 1,
    do_rotary: int = 0,
    rotary_interleaved: int = 0,
    smooth_softmax: int = -1,
    qk_output: int = 0,
    k_quant_type: str = "NONE",
    v_quant_type: str = "NONE",
    kv_cache_bit_width: int = 0,
    sliding_window_cache: int = 0,
    qk_norm_epsilon: float = 1e-6,
    present_key: AnyArray | None = None,
    present_value: AnyArray | None = None,
    num_threads: int | None = None,
) -> GroupQueryAttentionOutputs:
    """The operator GroupQueryAttention of com.microsoft: attention, rotary embedding and a KV cache in one.

    Sizes: B batch, Hq = num_heads, Hkv = kv_num_heads, S new tokens, C tokens that the past has room for, T =
    total_sequence_length, D channels of a head (any number).

    Parameters
    ----------
    query : ndarray, shape (B, S, Hq * D), or packed (B, S, (Hq + 2 * Hkv) * D)
        float32, float64, float16 or bfloat16. Packed: query, key and value after one another.
    key, value : ndarray, shape (B, S, Hkv * D), optional
        Without them, or with none of their tokens, (B, 0, Hkv * D), query attends the past alone, which holds its
        tokens already: a cache shared with another layer. When they are left out, the width of query tells
        this form from the packed one.
    past_key, past_value : ndarray, shape (B, Hkv, C, D), optional
        The cache: rows from 0 on hold the tokens before the query. Of query's dtype; or int8; or uint8 with two 4-bit
        values in each byte, (B, Hkv, C, D / 2), each plus 8, the even channel in the low half.
    seqlens_k : array of int, shape (B,)
        Tokens of each batch entry, those of the query included, less one.
    total_sequence_length : int or array of one int
        The largest number of tokens in the batch: at most C, or else C + S exactly. Where it is S, the call is a first
        prompt: the past's content is ignored, every sequence starts at position 0, and rows past its end are padding.
    cos_cache, sin_cache : ndarray, shape (positions, rotary_dim / 2), optional
        For do_rotary; rotary_dim is at most D. Keys are stored rotated. A shared past is used as it is.
    position_ids : array of int, shape (B, S), optional
        Positions to rotate by instead of those that follow from seqlens_k; in a first prompt only the first of all is
        used, as the position of the first row of every sequence.
    attention_bias : ndarray, shape (1 or B, 1 or Hq, S, T), optional
        Added to the scaled, soft-capped scores. Only -inf masks.
    head_sink : ndarray, shape (Hq,), optional
        A logit for each head that joins the denominator of the softmax.
    k_scale, v_scale : ndarray of float32, optional
        What one step of the quantised cache stands for: one value, or (Hkv, D) values for PER_CHANNEL.
    q_norm_weight, k_norm_weight : ndarray, shape (D,), optional
        Weights of an RMS normalisation of each head of query and key before the rotation.
    scale : float, optional
        Default, also for 0: 1 / sqrt(D).
    softcap : float
        If positive, scores become softcap * tanh(score / softcap) before the bias.
    local_window_size : int
        Attend the last so many keys, that of the query's own position included; -1: all.
    causal : {1, 0}
        0: every query attends all keys of its sequence.
    do_rotary, rotary_interleaved : {0, 1}
        Whether to rotate query and key, and whether the pairs of channels are neighbours.
    smooth_softmax : {-1, 0, 1}
        1: a head_sink of 0, unless head_sink is given.
    qk_output : {0, 1, 2}
        1: return the scores with soft cap and bias; 2: the probabilities.
    k_quant_type, v_quant_type : {"NONE", "PER_TENSOR", "PER_CHANNEL"}
        NONE for both or for neither.
    kv_cache_bit_width : {0, 8, 4}
        Of a quantised cache. New tokens are quantised before they are attended.
    sliding_window_cache : {0, 1}
        The past holds the last tokens only: at least local_window_size of its C, in order, in its first rows.
    qk_norm_epsilon : float
        Added to the mean square.
    present_key, present_value : ndarray, optional
        Where to write the cache with the new tokens. The past itself: only the new rows are written. Any other memory,
        with room for max(C, T) tokens or more: the past's tokens too, and 0 after the last. Default: new arrays.
    num_threads : int, optional
        As in :func:`gqa.attention`.

    Returns
    -------
    GroupQueryAttentionOutputs
        output (B, S, Hq * D) of query's dtype, 0 in padding and in a row without keys. present_key and present_value
        (B, Hkv, max(C, T), D); the past itself, not copied, where query attends it alone. output_qk (B, Hq, S, T) of
        query's dtype, 0 in padding and where a key's position keeps it from being attended; scores hold -inf where the
        bias does. It is the only output that takes memory for S x T scores.

    Raises
    ------
    TypeError
        For an argument of a wrong type or dtype.
    ValueError
        For shapes that do not fit or values out of range. Nothing is written then.

    Notes
    -----
    Follows the schema, https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md, without the
    limits of onnxruntime's kernels: several new tokens over a past may have any batch, and any of the types serves.
    Half precision is rounded once, at the end; normalised or rotated queries and keys are rounded before.

    Examples
    --------
    A step of one token over a cache of room for 16, of which 5 are taken:

    >>> import gqa.onnx, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> past_key, past_value = rng.standard_normal((2, 1, 2, 16, 8), np.float32)
    >>> query, key, value = (rng.standard_normal((1, 1, heads * 8), np.float32) for heads in (4, 2, 2))
    >>> result = gqa.onnx.group_query_attention(
    ...     query, key, value, past_key, past_value, seqlens_k=[5], total_sequence_length=6,
    ...     num_heads=4, kv_num_heads=2, present_key=past_key, present_value=past_value,
    ... )
    >>> result.output.shape, result.present_key is past_key
    ((1, 1, 32), True)

    A layer that attends the cache of another one:

    >>> shared = gqa.onnx.group_query_attention(
    ...     query, None, None, past_key, past_value, seqlens_k=[5], total_sequence_length=6, num_heads=4, kv_num_heads=2
    ... )
    >>> bool(np.all(shared.output == result.output))
    True
    """
    seqlens_k = None if seqlens_k is None else listed("seqlens_k", seqlens_k)
    if total_sequence_length is not None:
        total_sequence_length = listed("total_sequence_length", total_sequence_length)
    position_ids = None if position_ids is None else listed("position_ids", position_ids)
    inputs = as_arrays((
        query, key, value, past_key, past_value, seqlens_k, total_sequence_length, cos_cache, sin_cache, position_ids,
        attention_bias, head_sink, k_scale, v_scale, q_norm_weight, k_norm_weight,
    ))  # fmt: skip
    (
        _, key, value, past_key, past_value, seqlens_k, total_sequence_length, cos_cache, sin_cache, position_ids,
        attention_bias, head_sink, k_scale, v_scale, q_norm_weight, k_norm_weight,
    ) = inputs  # fmt: skip
    attributes, sizes = check_call(inputs, (
        num_heads, kv_num_heads, scale, softcap, local_window_size, causal, do_rotary, rotary_interleaved,
        smooth_softmax, qk_output, k_quant_type, v_quant_type, kv_cache_bit_width, sliding_window_cache,
        qk_norm_epsilon,
    ))  # fmt: skip
    query = as_array("query", inputs[0])
    if num_threads is not None:
        num_threads = check_int("num_threads", num_threads, 1)
    total = int(total_sequence_length.item())
    found = places(seqlens_k, total, sizes, attributes)
    positions = None
    if cos_cache is not None and attributes.do_rotary:
        positions = _rotary_positions(position_ids, found, sizes, total, len(cos_cache))
    formats = quantization(k_scale, v_scale, attributes, sizes.kv_heads)
    buffers = {"present_key": present_key, "present_value": present_value}
    given = {name: as_array(name, x) for name, x in buffers.items() if x is not None}
    if given:
        check_presents(given, inputs, sizes, attributes, total)

    q, k, v = _heads(query, key, value, sizes)
    if q_norm_weight is not None and k_norm_weight is not None:
        q, k = rms_norm(q, q_norm_weight, qk_norm_epsilon), rms_norm(k, k_norm_weight, qk_norm_epsilon)
    if positions is not None and cos_cache is not None and sin_cache is not None:
        turned = partial(
            rotary, cos=cos_cache, sin=sin_cache, positions=positions, interleaved=rotary_interleaved == 1,
            layout="bshd", num_threads=num_threads,
        )  # fmt: skip
        q = turned(q)
        if not sizes.shared:
            k = turned(k)
    if formats is not None:
        k, v = formats[0].quantize("key", k), formats[1].quantize("value", v)
    sinks = np.zeros(sizes.query_heads) if smooth_softmax == 1 else None
    if head_sink is not None:
        sinks = head_sink.astype(np.float64)
    options = attention_bias, sinks, formats, found, total, attributes, num_threads

    past = None if past_key is None or past_value is None else (past_key, past_value)
    if given:
        present = given["present_key"], given["present_value"]
    elif past is not None and sizes.shared:
        present = past
    else:
        shape, dtype = sizes.present(total), query.dtype if formats is None else formats[0].dtype
        present = np.empty(shape, dtype), np.empty(shape, dtype)
    results = None
    if past is not None and sizes.sliding:  # attended now: it is about to drop tokens
        results = over_sliding_cache(q, (past[0], k), (past[1], v), *options)
    if not sizes.shared:
        write_present(present[0], past_key, k if formats is None else formats[0].pack(k), found)
        write_present(present[1], past_value, v if formats is None else formats[1].pack(v), found)
    output, output_qk = results or over_cache(q, present[0], present[1], *options)
    output = output.reshape(sizes.output).astype(query.dtype, copy=False)
    return GroupQueryAttentionOutputs(output, *present, output_qk)


def _heads(query: Array, key: Array | None, value: Array | None, sizes: GroupQueryShapes) -> tuple[Array, Array, Array]:
    """query, key and value as views (B, tokens, heads, D); without new keys, of no tokens."""
    tokens, width, kv_width = sizes.queries, sizes.query_heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    if sizes.shared:
        tokens = 0
        key = value = np.empty((sizes.batch, 0, kv_width), query.dtype)
    elif key is None or value is None:
        query, key, value = query[..., :width], query[..., width : width + kv_width], query[..., width + kv_width :]
    q_rows = sizes.batch, sizes.queries, sizes.query_heads, sizes.head_dim
    rows = sizes.batch, tokens, sizes.kv_heads, sizes.head_dim
    return query.reshape(q_rows), key.reshape(rows), value.reshape(rows)


def _rotary_positions(position_ids: Any, found: list[Place], sizes: GroupQueryShapes, total: int, rows: int) -> Array:
    """The position (B, S) by which each query is rotated, within the rows of the tables."""
    before = np.array([place.before for place in found], np.int64)
    positions, source = before[:, None] + np.arange(sizes.queries), "the tokens reach"
    if position_ids is not None and positions.size:
        source = "position_ids reach"
        given = int_array("position_ids", position_ids, positions.shape)
        positions = positions + given[0, 0] if sizes.queries == total else given
    if positions.size and (positions.min() < 0 or positions.max() >= rows):
        raise ValueError(
            f"cos_cache has {rows} rows, but {source} from position {positions.min()} to {positions.max()}"
        )
    return positions
