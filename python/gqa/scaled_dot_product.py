"""Scaled dot-product attention with grouped heads: the function everything else in gqa calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from gqa import _core
from gqa.arguments import AnyArray, Array
from gqa.scores.tracing import MaskMod, ScoreMod, bind
from gqa.signatures import AnyTensor, AttentionOptions, Flag, Real, Whole, Window

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def attention(
    q: AnyArray, k: AnyTensor | None = ..., v: AnyTensor | None = ..., *,
    return_lse: Literal[False] = ..., **options: Unpack[AttentionOptions],
) -> Array: ...  # fmt: skip
@overload
def attention(
    q: AnyArray, k: AnyTensor | None = ..., v: AnyTensor | None = ..., *,
    return_lse: Literal[True], **options: Unpack[AttentionOptions],
) -> tuple[Array, Array]: ...  # fmt: skip
@overload
def attention(
    q: AnyArray, k: AnyTensor | None = ..., v: AnyTensor | None = ..., *,
    return_lse: bool = ..., **options: Unpack[AttentionOptions],
) -> Array | tuple[Array, Array]: ...  # fmt: skip
def attention(
    q: AnyArray,
    k: AnyTensor | None = None,
    v: AnyTensor | None = None,
    *,
    past_key: AnyTensor | None = None,
    past_value: AnyTensor | None = None,
    mask: AnyArray | None = None,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
    causal: Flag = False,
    query_offset: Any = None,
    window: Window | None = None,
    kv_lengths: Any = None,
    scale: Real | None = None,
    softcap: Real = 0.0,
    sinks: AnyArray | None = None,
    layout: str = "bhsd",
    out: Array | None = None,
    out_dtype: Any = None,
    return_lse: bool = False,
    num_threads: Whole | None = None,
) -> Array | tuple[Array, Array]:
    """Attention: softmax(scale * q @ k.T + mask) @ v, with grouped key/value heads.

    Query head h attends with key/value head h // (Hq // Hkv); keys and values are never repeated, concatenated or
    copied. Sizes: B batch, Hq and Hkv heads of q and of k/v (Hq a multiple of Hkv), S queries, L new keys, P past
    keys, T = P + L, D channels of q and k, Dv channels of v.

    Parameters
    ----------
    q : ndarray, shape (B, Hq, S, D)
        float32, float64, float16 or bfloat16. This and every other array may also be a tensor of another library with
        ``__dlpack__`` in the CPU's memory (PyTorch, JAX, ...): it is read in place, and that library is not imported.
    k, v : ndarray or Quantized, shape (B, Hkv, L, D) and (B, Hkv, L, Dv), optional
        May have other float types than q. Any strides; a last axis that is not contiguous is copied first. May be
        left out when a past is given: a shared cache.
    past_key, past_value : ndarray or Quantized, shape (B, Hkv, P, D) and (B, Hkv, P, Dv), optional
        Attended before k and v, without being concatenated.
    mask : ndarray, optional
        bool (True: attend) or float (added to the scaled, soft-capped score), broadcast to (B, Hq, S, T) whatever the
        layout. Only False and -inf mask.
    score_mod : callable or Program, optional
        ``score_mod(score, b, h, q_idx, kv_idx)``: the score that takes the place of the scaled, soft-capped one, before
        the mask; -inf masks. b is the batch entry, h the query head, q_idx the position of the query (query_offset +
        row), kv_idx the key. Called once, with symbols: see :func:`gqa.trace`. Arrays that it captures are read in
        place.
    mask_mod : callable or Program, optional
        ``mask_mod(b, h, q_idx, kv_idx)``: whether the query attends the key, in addition to mask, causal, window and
        kv_lengths. Blocks of keys that it hides from a block of queries are not read.
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
        From -1e30 to 1e30; default 1 / sqrt(D).
    softcap : float
        If positive, scores become softcap * tanh(score / softcap) before the mask. Less than 1e-20 counts as 1e-20, and
        more than 1e30 as none, which gives the same scores to the last bit that float64 has.
    sinks : ndarray, shape (Hq,), optional
        A logit for each head that joins the denominator of the softmax. Of one beyond two thirds of the largest number
        of the lse's dtype, the lse shows those two thirds.
    layout : {"bhsd", "bshd"}
        "bshd" swaps heads and tokens in q, k, v, past_key, past_value, out and lse.
    out : ndarray, optional
        Where to put the output: its shape and dtype, any strides; must not overlap an input.
    out_dtype : dtype, optional
        "float32" gives what a q of half precision would round, so that parts merge with one rounding; default: the
        dtype of q.
    return_lse : bool
        Return the log-sum-exp of the scores as well.
    num_threads : int, optional
        Default: :func:`gqa.get_num_threads`.

    Returns
    -------
    out : ndarray, shape (B, Hq, S, Dv), of q's dtype, or of out_dtype
        `out` itself if that was given. A row with no key to attend is 0.
    lse : ndarray, shape (B, Hq, S)
        If return_lse: natural logarithm of the sum of exponentials of the scores, sinks included; -inf for a row
        without keys. float64 if any of q, k, v and the past is, else float32.

    Raises
    ------
    TypeError
        For an argument of a wrong type or dtype.
    ValueError
        For shapes that do not fit, values out of range, or memory that another library does not hand out.
    ModuleNotFoundError
        For a new array of bfloat16 without the package ml_dtypes.

    Notes
    -----
    Computes in float64 if any of q, k, v and the past is float64, else in float32 with one rounding at the end. Without
    the batch axis (all arrays with three axes) kv_lengths and query_offset are ints.

    The bits of a sequence's result follow from the sequence alone: not from the number of threads, the rest of the
    batch, padding, strides, or whether an array, a ring or pages hold its keys, for any number of keys. Nor do they
    follow from the chunks that a prompt comes in, if each has 64 rows (queries times Hq / Hkv) or more; fewer rows take
    another loop. Another instruction set, compiler or version of gqa may give other bits.

    The online softmax over blocks of keys is that of Dao et al. 2022, arXiv:2205.14135; grouped heads are from Ainslie
    et al. 2023, arXiv:2305.13245.

    Examples
    --------
    >>> import gqa, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> q = rng.standard_normal((1, 8, 5, 64), np.float32)
    >>> k, v = rng.standard_normal((2, 1, 2, 16, 64), np.float32)
    >>> gqa.attention(q, k, v, causal=True).shape
    (1, 8, 5, 64)
    """
    # What Options holds, in its order, without the quarter of a microsecond that making one takes.
    program = None if score_mod is None and mask_mod is None else bind(score_mod, mask_mod)
    options = (layout, causal, window, scale, softcap, out_dtype, return_lse, num_threads, program, mask, sinks, out)
    result: Array | tuple[Array, Array] = _core.attention(
        (q, k, v, past_key, past_value), query_offset, kv_lengths, options
    )
    return result
