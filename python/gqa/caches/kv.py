"""KVCache: the keys and values of a batch of sequences, appended and attended in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from gqa import _core
from gqa.arguments import AnyArray, Array
from gqa.caches.slots import SlotCache, Slots, slot_sizes
from gqa.scores.tracing import MaskMod, ScoreMod, bind
from gqa.sequences import Tensor
from gqa.signatures import AnyTensor, Flag, Real, ScoredOptions, Whole, Window

if TYPE_CHECKING:
    from typing_extensions import Unpack


class KVCache(SlotCache):
    """Keys and values of a batch of sequences, in storage of a fixed capacity.

    New tokens are written in place and attended in place: a step costs what its own tokens cost, and no past is copied.
    Sequences may have different lengths. Sizes: B batch, Hkv heads of k and v, Hq heads of q (a multiple of Hkv),
    L new tokens, S queries, D channels of q and k, Dv channels of v.

    Parameters
    ----------
    batch, kv_heads : int
    capacity : int
        Tokens that fit into each sequence.
    head_dim : int
        Channels of keys.
    v_head_dim : int, optional
        Channels of values; default head_dim.
    dtype : dtype
        float32, float64, float16, bfloat16 or int8. Tokens of other float types are cast, as by NumPy's assignment.
        int8 stores what :func:`gqa.quantize` makes of them, and the kernel reads that as it is.
    window : int, optional
        Keep only the last `window` tokens, the current one counted, in a ring of `capacity` slots: token p is in slot
        p % capacity. The capacity must be at least the window; any number of tokens can be appended. Attention is that
        of a full cache with the window (window - 1, None), whatever chunks the tokens come in.
    layout : {"bhsd", "bshd"}
        Of k, v, q, out, lse and the stored arrays; "bshd" swaps heads and tokens.

    Notes
    -----
    Any number of threads may attend a cache at once without new keys. Whatever changes it needs it alone: threads that
    share one take turns, by a lock of their own.

    Examples
    --------
    A prompt, then one token:

    >>> import gqa, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> cache = gqa.KVCache(batch=1, kv_heads=2, capacity=64, head_dim=16)
    >>> for tokens in (5, 1):
    ...     q = rng.standard_normal((1, 8, tokens, 16), np.float32)
    ...     k, v = rng.standard_normal((2, 1, 2, tokens, 16), np.float32)
    ...     out = cache.attend(q, k, v)
    >>> cache.lengths, out.shape
    (array([6]), (1, 8, 1, 16))
    >>> bool((out == gqa.attention(q, cache.keys, cache.values)).all())
    True
    """

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        v_head_dim: int | None = None,
        dtype: Any = "float32",
        window: int | None = None,
        layout: str = "bhsd",
    ) -> None:
        sizes = slot_sizes(batch, kv_heads, capacity, head_dim, v_head_dim, dtype, window, layout)
        self._slots = Slots(*sizes)

    @property
    def keys(self) -> Tensor:
        """The stored keys, shape (B, Hkv, n, D): a view without a copy, :class:`gqa.Quantized` for int8.

        n is the length of the longest sequence, at most the capacity; what lies past the length of a shorter one has no
        meaning. In a ring the axis counts slots. The view does not follow `grow` and `select`, which change storage.
        """
        return self._slots.filled(self._slots.store[0])

    @property
    def values(self) -> Tensor:
        """The stored values, shape (B, Hkv, n, Dv), as `keys`."""
        return self._slots.filled(self._slots.store[1])

    def append(self, k: AnyTensor, v: AnyTensor, lengths: Any = None) -> KVCache:
        """Write new tokens behind those that are there.

        Parameters
        ----------
        k, v : ndarray or Quantized, shape (B, Hkv, L, D) and (B, Hkv, L, Dv)
            May not share memory with the cache.
        lengths : array of int, shape (B,), optional
            Sequence b takes its first lengths[b] tokens, default all L; what lies past them has no effect.

        Returns
        -------
        KVCache
            Itself, so that calls can be chained.

        Raises
        ------
        TypeError
            For an argument of a wrong type or dtype.
        ValueError
            For shapes that do not fit, values that int8 cannot represent, or tokens past the capacity. Nothing is
            written then.
        """
        slots = self._slots
        _core.append_slots((k, v, lengths), slots.native, slots.layout)
        return self

    @overload
    def attend(
        self, q: AnyArray, k: AnyTensor | None = ..., v: AnyTensor | None = ..., *, lengths: Any = ...,
        return_lse: Literal[False] = ..., **options: Unpack[ScoredOptions],
    ) -> Array: ...  # fmt: skip
    @overload
    def attend(
        self, q: AnyArray, k: AnyTensor | None = ..., v: AnyTensor | None = ..., *, lengths: Any = ...,
        return_lse: Literal[True], **options: Unpack[ScoredOptions],
    ) -> tuple[Array, Array]: ...  # fmt: skip
    @overload
    def attend(
        self, q: AnyArray, k: AnyTensor | None = ..., v: AnyTensor | None = ..., *, lengths: Any = ...,
        return_lse: bool = ..., **options: Unpack[ScoredOptions],
    ) -> Array | tuple[Array, Array]: ...  # fmt: skip
    def attend(
        self,
        q: AnyArray,
        k: AnyTensor | None = None,
        v: AnyTensor | None = None,
        *,
        lengths: Any = None,
        mask: AnyArray | None = None,
        score_mod: ScoreMod | None = None,
        mask_mod: MaskMod | None = None,
        causal: Flag = True,
        window: Window | None = None,
        scale: Real | None = None,
        softcap: Real = 0.0,
        sinks: AnyArray | None = None,
        out: Array | None = None,
        out_dtype: Any = None,
        return_lse: bool = False,
        num_threads: Whole | None = None,
    ) -> Array | tuple[Array, Array]:
        """Append k and v, if given, and attend to everything there is.

        Parameters
        ----------
        q : ndarray, shape (B, Hq, S, D)
            float32, float64, float16 or bfloat16. With new tokens, row i of sequence b stands at the position of new
            token i, so that S may be less than L, and rows at or past lengths[b] or L are padding; without, the rows
            stand at the end of the sequence.
        k, v, lengths
            As in :meth:`append`.
        mask : ndarray, optional
            bool (True: attend) or float, broadcast to (B, Hq, S, T), where T is the longest length after appending; a
            column is a token, for a ring as well.
        score_mod, mask_mod : callable or Program, optional
            As in :func:`gqa.attention`: q_idx and kv_idx count all tokens of the sequence, also those that a ring has
            dropped.
        window : (left, right), optional
            Attend tokens from position - left to position + right; None: no bound on that side. A ring's own window
            holds besides.
        causal, scale, softcap, sinks, out, out_dtype, return_lse, num_threads
            As in :func:`gqa.attention`, but causal by default.

        Returns
        -------
        out : ndarray, shape (B, Hq, S, Dv), of q's dtype, or of out_dtype
            0 in rows without keys and in padding.
        lse : ndarray, shape (B, Hq, S)
            If return_lse. A row without keys has the logit of its sink, or -inf; padding has -inf in any case.

        Raises
        ------
        TypeError, ValueError
            As append and attention; ValueError as well if rows without new tokens reach back to tokens that a ring has
            dropped. Nothing is written then.
        """
        slots = self._slots
        program = None if score_mod is None and mask_mod is None else bind(score_mod, mask_mod)
        options = (  # what Options holds, in its order
            slots.layout, causal, window, scale, softcap, out_dtype, return_lse, num_threads, program, mask, sinks, out,
        )  # fmt: skip
        result: Array | tuple[Array, Array] = _core.attend_slots(q, (k, v, lengths), slots.native, options)
        return result

    def truncate(self, lengths: Any) -> KVCache:
        """Drop the last tokens, as speculative decoding does with those it rejects.

        Parameters
        ----------
        lengths : int or array of int, shape (B,)
            How many tokens to keep, at most as many as there are. A ring must still hold the window - 1 tokens before
            that, which the next token attends: capacity - window + 1 tokens can always be dropped, and then new ones.

        Returns
        -------
        KVCache
            Itself, so that calls can be chained.
        """
        self._slots.truncate(self._slots.kept(lengths))
        return self

    def select(self, rows: Any) -> KVCache:
        """Keep these sequences in this order, as beam search does: tokens are copied, and repeated where a row is.

        Parameters
        ----------
        rows : array of int, shape (N,)
            Indices of sequences, 0 to B - 1. The batch becomes N.

        Returns
        -------
        KVCache
            Itself, so that calls can be chained: ``cache.copy().select([0, 0])``.
        """
        self._slots = self._slots.copy(self._slots.selected(rows), self.capacity)
        return self

    def grow(self, capacity: int) -> KVCache:
        """Change the capacity and keep the tokens.

        Parameters
        ----------
        capacity : int
            At least the longest length, or the window of a ring.

        Returns
        -------
        KVCache
            Itself, so that calls can be chained.
        """
        self._slots = self._slots.grown(capacity)
        return self

    def reset(self) -> KVCache:
        """Drop all tokens; the storage stays. Returns itself."""
        return self.truncate(0)

    def copy(self) -> KVCache:
        """An independent copy."""
        other = object.__new__(type(self))
        other._slots = self._slots.copy(range(len(self._slots.lengths)), self.capacity)
        return other

    __copy__ = copy
