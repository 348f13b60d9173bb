"""PagedKVCache: keys and values of many sequences in one pool of pages, which sequences may share."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from gqa import _core
from gqa.arguments import AnyArray, Array
from gqa.caches.pages import PagedSequence, PagePool
from gqa.caches.storage import storage_dtype, storage_sizes
from gqa.scores.tracing import MaskMod, ScoreMod, bind
from gqa.sequences import (
    Table,
    Tensor,
    arrays,
    int_list,
)
from gqa.shapes import check_int
from gqa.signatures import AnyTensor, Flag, Real, ScoredOptions, Whole, Window

if TYPE_CHECKING:
    from typing_extensions import Unpack


class PagedKVCache:
    """Keys and values of many sequences in a pool of pages of a fixed size.

    A sequence takes pages as it grows, from anywhere in the pool, and the kernel walks them in place. Forks share pages
    until one of them writes to a page, which is copied then. One call appends and attends any mix of prompts and single
    tokens, packed one after another without padding. Sizes: Hkv heads of k and v, Hq heads of q (a multiple of Hkv), D
    channels of q and k, Dv channels of v; Tk new tokens and Tq queries of all sequences of a call.

    Parameters
    ----------
    num_pages, page_size : int
        Pages in the pool, and tokens in a page.
    kv_heads, head_dim : int
    v_head_dim : int, optional
        Channels of values; default head_dim.
    dtype : dtype
        float32, float64, float16, bfloat16 or int8, as for :class:`gqa.KVCache`.
    storage : (keys, values), optional
        The caller's arrays for the pool, such as np.memmap, shape (num_pages, Hkv, page_size, D) and (num_pages, Hkv,
        page_size, Dv), of that dtype. Scales of int8 are the cache's own.

    Notes
    -----
    Pages and block tables are those of vLLM (Kwon et al. 2023, arXiv:2309.06180). Any number of threads may attend a
    cache at once without new keys. Whatever changes it needs it alone: threads that share one take turns, by a lock of
    their own.

    Examples
    --------
    A prompt and a fork of it, which then go their own ways:

    >>> import gqa, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> cache = gqa.PagedKVCache(num_pages=8, page_size=16, kv_heads=2, head_dim=32)
    >>> one = cache.add()
    >>> k, v = rng.standard_normal((2, 20, 2, 32), np.float32)
    >>> _ = cache.append([one], k, v, [20])
    >>> two = cache.fork(one)
    >>> q = rng.standard_normal((2, 8, 32), np.float32)
    >>> k, v = rng.standard_normal((2, 2, 2, 32), np.float32)
    >>> cache.attend([one, two], q, [1, 1], k, v).shape
    (2, 8, 32)
    >>> cache.lengths, cache.free_pages
    ({0: 21, 1: 21}, 5)
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        *,
        v_head_dim: int | None = None,
        dtype: Any = "float32",
        storage: tuple[Array, Array] | None = None,
    ) -> None:
        self._kv_heads, self._head_dims = storage_sizes(kv_heads, head_dim, v_head_dim)
        num_pages, page_size = check_int("num_pages", num_pages, 0), check_int("page_size", page_size, 1)
        self._pool = PagePool(num_pages, page_size, self._kv_heads, self._head_dims, storage_dtype(dtype), storage)
        self._sequences: dict[int, PagedSequence] = {}
        self._next_id = 0

    @property
    def keys(self) -> Tensor:
        """The pool of keys, shape (num_pages, Hkv, page_size, D), without a copy; :class:`gqa.Quantized` for int8."""
        return self._pool.keys

    @property
    def values(self) -> Tensor:
        """The pool of values, shape (num_pages, Hkv, page_size, Dv), as `keys`."""
        return self._pool.values

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the stored keys and values."""
        return arrays(self._pool.keys)[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of storage."""
        return self._pool.keys.nbytes + self._pool.values.nbytes

    @property
    def lengths(self) -> dict[int, int]:
        """How many tokens each sequence has, by id."""
        return {id_: sequence.length for id_, sequence in self._sequences.items()}

    @property
    def block_tables(self) -> dict[int, Table]:
        """The pages of each sequence, by id: token p is in slot p % page_size of the page at p // page_size."""
        return {id_: np.array(self._pool.used(sequence), np.int64) for id_, sequence in self._sequences.items()}

    @property
    def free_pages(self) -> int:
        """How many pages no sequence has."""
        return len(self._pool.free)

    def add(self) -> int:
        """A new sequence without tokens; returns its id, which no later sequence gets."""
        return self._insert(PagedSequence())

    def fork(self, id: int) -> int:
        """A new sequence with the tokens of another, in the same pages; returns its id."""
        return self._insert(self._pool.share(self._sequences[self._known(id)]))

    def truncate(self, id: int, length: int) -> PagedKVCache:
        """Keep the first `length` tokens of a sequence, and give up the pages of the others; returns the cache."""
        sequence = self._sequences[self._known(id)]
        kept = check_int("length", length, 0)
        if kept > sequence.length:
            raise ValueError(f"length is {length}, expected at most {sequence.length}, the tokens of the sequence")
        self._pool.truncate(sequence, kept)
        return self

    def free(self, id: int) -> PagedKVCache:
        """Forget a sequence, and give up its pages; returns the cache."""
        self._pool.truncate(self._sequences.pop(self._known(id)), 0)
        return self

    def copy(self) -> PagedKVCache:
        """An independent copy, also of storage that is the caller's."""
        return copy.deepcopy(self)

    def __copy__(self) -> PagedKVCache:
        return self.copy()

    def append(self, ids: Any, k: AnyTensor, v: AnyTensor, lengths: Any) -> PagedKVCache:
        """Write new tokens behind those that are there.

        Parameters
        ----------
        ids : array of int, shape (N,)
            Different sequences.
        k, v : ndarray or Quantized, shape (Tk, Hkv, D) and (Tk, Hkv, Dv)
            The new tokens, those of the first sequence first. They may not share memory with the pool.
        lengths : array of int, shape (N,)
            How many of them each sequence takes; Tk together.

        Returns
        -------
        PagedKVCache
            Itself, so that calls can be chained.

        Raises
        ------
        TypeError
            For an argument of a wrong type or dtype.
        ValueError
            For ids that are not there, shapes that do not fit, values that int8 cannot represent, or too few free
            pages. Nothing is written then.
        """
        sequences = self._find(ids)
        counts = _counts("lengths", lengths, sequences)
        _core.append_pages((k, v, counts), sequences, self._pool.native)
        return self

    @overload
    def attend(
        self, ids: Any, q: AnyArray, q_lengths: Any, k: AnyTensor | None = ..., v: AnyTensor | None = ..., *,
        return_lse: Literal[False] = ..., **options: Unpack[ScoredOptions],
    ) -> Array: ...  # fmt: skip
    @overload
    def attend(
        self, ids: Any, q: AnyArray, q_lengths: Any, k: AnyTensor | None = ..., v: AnyTensor | None = ..., *,
        return_lse: Literal[True], **options: Unpack[ScoredOptions],
    ) -> tuple[Array, Array]: ...  # fmt: skip
    @overload
    def attend(
        self, ids: Any, q: AnyArray, q_lengths: Any, k: AnyTensor | None = ..., v: AnyTensor | None = ..., *,
        return_lse: bool = ..., **options: Unpack[ScoredOptions],
    ) -> Array | tuple[Array, Array]: ...  # fmt: skip
    def attend(
        self,
        ids: Any,
        q: AnyArray,
        q_lengths: Any,
        k: AnyTensor | None = None,
        v: AnyTensor | None = None,
        *,
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
        """Append k and v, if given, and let each sequence's queries attend its tokens.

        Parameters
        ----------
        ids : array of int, shape (N,)
            Different sequences.
        q : ndarray, shape (Tq, Hq, D)
            Queries, those of the first sequence first; they stand at the end of their sequence, so that with new tokens
            query i is at new token i.
        q_lengths : array of int, shape (N,)
            How many queries each sequence has; Tq together.
        k, v : ndarray or Quantized, shape (Tq, Hkv, D) and (Tq, Hkv, Dv), optional
            New tokens, as many as queries.
        mask : ndarray, optional
            bool (True: attend) or float, broadcast to (N, Hq, most queries of a sequence, most tokens of a sequence
            after appending); rows and columns count from each sequence's own first query and token.
        score_mod, mask_mod : callable or Program, optional
            As in :func:`gqa.attention`: b is the index in ids, q_idx and kv_idx count the tokens of the sequence.
        causal, window, scale, softcap, sinks, out, out_dtype, return_lse, num_threads
            As in :func:`gqa.varlen_attention`, but causal by default.

        Returns
        -------
        out : ndarray, shape (Tq, Hq, Dv), of q's dtype, or of out_dtype
        lse : ndarray, shape (Hq, Tq)
            If return_lse.

        Raises
        ------
        TypeError, ValueError
            As append and varlen_attention. Nothing is written then.
        """
        sequences = self._find(ids)
        queries = _counts("q_lengths", q_lengths, sequences)
        program = None if score_mod is None and mask_mod is None else bind(score_mod, mask_mod)
        options = (  # what Options holds, in its order
            "bshd", causal, window, scale, softcap, out_dtype, return_lse, num_threads, program, mask, sinks, out,
        )  # fmt: skip
        result = _core.attend_pages(q, (k, v, queries), sequences, self._pool.native, options)
        return (result[0], result[1].T) if isinstance(result, tuple) else result

    def _insert(self, sequence: PagedSequence) -> int:
        self._next_id += 1
        self._sequences[self._next_id - 1] = sequence
        return self._next_id - 1

    def _known(self, id: Any) -> int:
        number = check_int("id", id)
        if number not in self._sequences:
            raise ValueError(f"id is {number}, which is no sequence of this cache")
        return number

    def _find(self, ids: Any) -> list[PagedSequence]:
        numbers = int_list("ids", ids)
        for i, id_ in enumerate(numbers):
            if id_ not in self._sequences:
                raise ValueError(f"ids[{i}] is {id_}, which is no sequence of this cache")
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"ids are {numbers}, expected different ones")
        return [self._sequences[id_] for id_ in numbers]


def _counts(name: str, value: Any, sequences: list[PagedSequence]) -> list[int]:
    counts = int_list(name, value, len(sequences))
    if min(counts, default=0) < 0:
        raise ValueError(f"{name} are {counts}, expected at least 0")
    return counts
