"""ShardedKVCache: a KVCache whose tokens are dealt out to the ranks of a communicator."""

from __future__ import annotations

from operator import add
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np

from gqa.arguments import AnyArray, Array, as_array, dtype_name
from gqa.caches.storage import storage_dtype, storage_sizes
from gqa.distributed.agreement import Communicator, agreed, check_communicator, described, described_program
from gqa.distributed.deal import Deal
from gqa.distributed.shard import Shard
from gqa.dtypes import compute_dtype, dtype_named
from gqa.options import Options
from gqa.rules import check_group
from gqa.scores.tracing import MaskMod, ScoreMod, bind
from gqa.sequences import Store, Table, int_list
from gqa.shapes import check_int, check_window, layout_axes
from gqa.signatures import AnyTensor, Flag, Real, ScoredOptions, Whole, Window
from gqa.subtrees import attend_states, merge_subtrees, state_shape

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Step(NamedTuple):
    """What one rank has computed of a call of attend."""

    q: Array
    options: Options
    merges: Table
    subtrees: Table
    states: Array  # of this rank's blocks
    gathered: Array  # room for those of all ranks
    sizes: list[int]  # of each rank's
    new: Store | None
    counts: list[int]


class ShardedKVCache:
    """Keys and values of a batch of sequences, each of whose tokens are dealt out to the ranks of a communicator.

    Every rank makes the same calls with the same arguments, and gets the same results: those of a :class:`gqa.KVCache`
    with all the tokens, to the last bit. Tokens are dealt in pieces of `gqa.SPLIT_KEYS` (or larger blocks of those, in
    long sequences); a rank stores and attends its own, and what travels are states of the rows, (o, m, l) for each
    block that a rank holds: 130 numbers for a head of 128 channels. So a step takes as long as reading the longest
    share of the tokens, and what one rank keeps is a share of the memory.

    Parameters
    ----------
    comm : Comm
        An intracommunicator of mpi4py, or an object with the methods of it that :mod:`gqa.distributed` names.
    batch, kv_heads, capacity, head_dim, v_head_dim, dtype, window, layout
        As for :class:`gqa.KVCache`; capacity and window are those of whole sequences.

    Raises
    ------
    TypeError, ValueError
        As KVCache, on all ranks if on any; RuntimeError if ranks make different calls. Nothing is written then.

    Examples
    --------
    On one rank; ``mpiexec -n 4 python -m mpi4py program.py`` runs the same program on four.

    >>> import gqa, gqa.distributed, numpy as np
    >>> from mpi4py import MPI
    >>> rng = np.random.default_rng(0)  # the same on every rank
    >>> q = rng.standard_normal((1, 8, 5, 16), np.float32)
    >>> k, v = rng.standard_normal((2, 1, 2, 5, 16), np.float32)
    >>> cache = gqa.distributed.ShardedKVCache(MPI.COMM_WORLD, batch=1, kv_heads=2, capacity=64, head_dim=16)
    >>> out = cache.attend(q, k, v)
    >>> bool((out == gqa.attention(q, k, v, causal=True)).all())
    True
    """

    def __init__(
        self,
        comm: Any,
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
        self._comm: Communicator = check_communicator(comm)

        def shard() -> Shard:
            layout_axes(layout)
            heads, head_dims = storage_sizes(kv_heads, head_dim, v_head_dim)
            sequences, tokens = check_int("batch", batch, 0), check_int("capacity", capacity, 0)
            last = None if window is None else check_int("window", window, 1)
            if last is not None and tokens < last:
                raise ValueError(f"capacity is {tokens}, expected at least the window of {last}")
            deal = Deal(comm.Get_size(), comm.Get_rank(), last)
            return Shard(deal, sequences, heads, tokens, head_dims, storage_dtype(dtype), layout, last)

        arguments = {
            "batch": batch, "kv_heads": kv_heads, "capacity": capacity, "head_dim": head_dim, "v_head_dim": v_head_dim,
            "dtype": str(dtype), "window": window, "layout": layout,
        }  # fmt: skip
        self._shard = agreed(self._comm, "ShardedKVCache", arguments, shard)

    @property
    def capacity(self) -> int:
        """Tokens that fit into each sequence, on all ranks together."""
        return self._shard.capacity

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the stored keys and values."""
        return dtype_named(self._shard.dtype)

    @property
    def layout(self) -> str:
        """The layout of k, v, q, out and lse: "bhsd" or "bshd"."""
        return self._shard.layout

    @property
    def lengths(self) -> Table:
        """How many tokens each sequence has been given, on whichever ranks they are: shape (B,), a copy."""
        return np.array(self._shard.lengths, np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of storage of this rank."""
        return sum(x.nbytes for x in self._shard.store)

    def append(self, k: AnyTensor, v: AnyTensor, lengths: Any = None) -> ShardedKVCache:
        """Write new tokens behind those that are there: each rank those that it is dealt.

        Parameters, errors and what is returned are those of :meth:`gqa.KVCache.append`.
        """
        arguments: dict[str, Any] = {}

        def accept() -> tuple[Store, list[int]]:
            new, counts = self._shard.accept(k, v, lengths)
            arguments.update(self._described_tokens(new, counts))
            return new, counts

        self._shard.write(*agreed(self._comm, "append", arguments, accept))
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
        causal: Flag = True,
        window: Window | None = None,
        scale: Real | None = None,
        softcap: Real = 0.0,
        sinks: AnyArray | None = None,
        score_mod: ScoreMod | None = None,
        mask_mod: MaskMod | None = None,
        out: Array | None = None,
        out_dtype: Any = None,
        return_lse: bool = False,
        num_threads: Whole | None = None,
    ) -> Array | tuple[Array, Array]:
        """Append k and v, if given, and attend to everything that any rank has.

        Parameters, errors and results are those of :meth:`gqa.KVCache.attend`; only `out` and `num_threads` may differ
        between ranks.
        """
        arguments: dict[str, Any] = {
            "causal": causal, "window": window, "scale": scale, "softcap": softcap, "out_dtype": str(out_dtype),
            "return_lse": return_lse,
        }  # fmt: skip
        options = Options(
            layout=self.layout, causal=causal, scale=scale, softcap=softcap, out_dtype=out_dtype,
            return_lse=return_lse, num_threads=num_threads, mask=mask, sinks=sinks, out=out,
        )  # fmt: skip

        def local() -> Step:
            program = None if score_mod is None and mask_mod is None else bind(score_mod, mask_mod)
            arguments["score_mod and mask_mod"] = described_program(program)
            return self._attend_own(q, k, v, lengths, window, options._replace(program=program), arguments)

        step = agreed(self._comm, "attend", arguments, local)
        self._comm.Allgatherv(step.states, [step.gathered, step.sizes])
        result: Array | tuple[Array, Array] = merge_subtrees(
            step.q, self._shard.kv_heads, step.gathered, step.merges, step.subtrees, step.options
        )
        if step.new is not None:
            self._shard.write(step.new, step.counts)
        return result

    def _attend_own(
        self, q: Any, k: Any, v: Any, lengths: Any, window: Any, options: Options, arguments: dict[str, Any]
    ) -> Step:
        """The states of this rank's blocks; what all ranks must agree on is added to `arguments`."""
        shard = self._shard
        q = as_array("q", q)
        if q.ndim != 4:
            raise ValueError(f"q has shape {q.shape}, expected ({', '.join(shard.axes)})")
        heads = q.shape[shard.axes.index("heads")]
        check_group("the cache", shard.kv_heads, "q", heads)
        batch, queries = len(q), q.shape[shard.token_axis]
        if batch != len(shard.lengths):
            raise ValueError(f"q has batch {batch}, expected {len(shard.lengths)} as the cache")
        left, right = check_window(window) or (None, None)
        if shard.window is not None:
            left = shard.window - 1 if left is None else min(left, shard.window - 1)
        stores, counts, ends, new = [shard.store], None, shard.lengths, None
        if k is not None or v is not None:
            new, counts = shard.accept(k, v, lengths)
            stores.append(new)
            ends = list(map(add, ends, counts))
        elif lengths is not None:
            raise ValueError("lengths is given without k and v, whose tokens it counts")
        padded = counts is not None and min(counts, default=queries) < queries
        arguments |= self._described_tokens(new, counts) | {"q": described(q, not padded)}
        for name, x in (("mask", options.mask), ("sinks", options.sinks)):
            arguments[name] = None if x is None else described(as_array(name, x))

        needed = shard.needed(queries, counts, left)
        merges, subtrees, blocks = shard.merge_tables(needed, queries)
        dtype = compute_dtype(dtype_name("q", q), shard.dtype)
        states = np.empty(state_shape(blocks[shard.deal.rank], heads, queries, shard.head_dims[1]), dtype)
        gathered = np.empty(state_shape(len(subtrees), *states.shape[1:3], shard.head_dims[1]), dtype)
        attend_states(
            q, stores, *shard.state_tables(needed), options._replace(window=(left, right)), states,
            mask_shape=(batch, queries, max(ends, default=0)),
        )  # fmt: skip
        row = heads * queries * states.shape[3]
        ended = options._replace(mask=None, program=None)
        return Step(q, ended, merges, subtrees, states, gathered, [n * row for n in blocks], new, counts or [])

    def truncate(self, lengths: Any) -> ShardedKVCache:
        """Drop the last tokens, as :meth:`gqa.KVCache.truncate`."""

        arguments: dict[str, Any] = {}

        def kept() -> list[int]:
            batch = len(self._shard.lengths)
            one = np.ndim(lengths) == 0
            keep = [check_int("lengths", lengths)] * batch if one else int_list("lengths", lengths, batch)
            self._shard.check_truncation(keep)
            arguments["lengths"] = keep
            return keep

        self._shard.truncate(agreed(self._comm, "truncate", arguments, kept))
        return self

    def select(self, rows: Any) -> ShardedKVCache:
        """Keep these sequences in this order, as :meth:`gqa.KVCache.select`: no token changes its rank."""
        arguments: dict[str, Any] = {}

        def selected() -> Shard:
            arguments["rows"] = indices = int_list("rows", rows)
            for i, b in enumerate(indices):
                if not 0 <= b < len(self._shard.lengths):
                    raise ValueError(f"rows[{i}] is {b}, expected 0 to {len(self._shard.lengths) - 1}")
            return self._shard.copy(indices, self.capacity)

        self._shard = agreed(self._comm, "select", arguments, selected)
        return self

    def grow(self, capacity: int) -> ShardedKVCache:
        """Change the capacity and keep the tokens, as :meth:`gqa.KVCache.grow`."""

        def grown() -> Shard:
            least = self._shard.window or max(self._shard.lengths, default=0)
            if check_int("capacity", capacity, 0) < least:
                raise ValueError(f"capacity is {capacity}, expected at least {least}, the tokens to keep")
            return self._shard.copy(range(len(self._shard.lengths)), int(capacity))

        self._shard = agreed(self._comm, "grow", {"capacity": capacity}, grown)
        return self

    def reset(self) -> ShardedKVCache:
        """Drop all tokens; the storage stays. Returns itself."""
        return self.truncate(0)

    def copy(self) -> ShardedKVCache:
        """An independent copy, on the same communicator."""
        other = object.__new__(type(self))
        other._comm = self._comm
        everything = range(len(self._shard.lengths))
        other._shard = agreed(self._comm, "copy", {}, lambda: self._shard.copy(everything, self.capacity))
        return other

    __copy__ = copy

    def _described_tokens(self, new: Store | None, counts: list[int] | None) -> dict[str, Any]:
        if new is None or counts is None:
            return {"k": None, "v": None}
        whole = min(counts, default=0) == max(counts, default=0) == new[0].shape[self._shard.token_axis]
        return {"lengths": counts, "k": described(new[0], whole), "v": described(new[1], whole)}
