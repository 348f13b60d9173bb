"""ShardedKVCache: a KVCache whose tokens are dealt out to the ranks of a communicator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from gqa import _core
from gqa.arguments import AnyArray, Array, as_array
from gqa.caches.slots import SlotCache, slot_sizes
from gqa.distributed.agreement import Exchange, agreed, check_communicator, described, described_program
from gqa.distributed.deal import Deal
from gqa.distributed.shard import Shard
from gqa.scores.tracing import MaskMod, ScoreMod, bind
from gqa.sequences import as_tensors, int_list
from gqa.signatures import AnyTensor, Flag, Real, ScoredOptions, Whole, Window

if TYPE_CHECKING:
    from typing_extensions import Unpack

MOST_BYTES = 1 << 22  # of all ranks' messages: larger states travel by themselves, and nothing is kept for them


class ShardedKVCache(SlotCache):
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
        self._exchange = Exchange(check_communicator(comm))

        def shard() -> Shard:
            sizes = slot_sizes(batch, kv_heads, capacity, head_dim, v_head_dim, dtype, window, layout)
            return Shard(Deal(comm.Get_size(), comm.Get_rank(), sizes.window), sizes)

        arguments = {
            "batch": batch, "kv_heads": kv_heads, "capacity": capacity, "head_dim": head_dim, "v_head_dim": v_head_dim,
            "dtype": str(dtype), "window": window, "layout": layout,
        }  # fmt: skip
        self._slots: Shard = agreed(self._exchange, "ShardedKVCache", arguments, shard)

    def append(self, k: AnyTensor, v: AnyTensor, lengths: Any = None) -> ShardedKVCache:
        """Write new tokens behind those that are there: each rank those that it is dealt.

        Parameters, errors and what is returned are those of :meth:`gqa.KVCache.append`.
        """
        step, error = None, None
        try:
            step = _core.begin_append((k, v, lengths), self._slots.dealt, self.layout, self._exchange.message)
        except Exception as caught:
            error = caught
        self._exchange.agree("append", error, lambda: self._described_tokens(k, v, lengths))
        _core.end_append(step)
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
        slots, exchange, tokens = self._slots, self._exchange, (k, v, lengths)
        numbers = (slots.layout, causal, window, scale, softcap, out_dtype, return_lse, num_threads)
        tensors = (mask, sinks, out)  # with the program between them what Options holds, in its order
        if exchange.ranks == 1:
            program = None if score_mod is None and mask_mod is None else bind(score_mod, mask_mod)
            alone: Array | tuple[Array, Array] = _core.attend_slots(
                q, tokens, slots.native, (*numbers, program, *tensors)
            )
            return alone

        error, program = None, None
        try:
            program = None if score_mod is None and mask_mod is None else bind(score_mod, mask_mod)
            step, (states, sizes, most) = _core.begin_attend(
                q, tokens, slots.dealt, (*numbers, program, *tensors), exchange.message
            )
        except Exception as caught:
            error = caught

        def arguments() -> dict[str, Any]:
            said = {
                "causal": causal, "window": window, "scale": scale, "softcap": softcap, "out_dtype": str(out_dtype),
                "return_lse": return_lse, "score_mod and mask_mod": described_program(program),
            }  # fmt: skip
            queries = as_array("q", q)
            counted = self._described_tokens(k, v, lengths)
            padded = any(n < queries.shape[slots.token_axis] for n in counted.get("lengths", []))
            others = {
                name: None if x is None else described(as_array(name, x)) for name, x in zip(("mask", "sinks"), tensors)
            }
            return said | counted | {"q": described(queries, not padded)} | others

        exchange.agree("attend", error, arguments)
        gathered = exchange.messages
        if states is not None:
            gathered = np.empty(sum(sizes), np.uint8)
            exchange.comm.Allgatherv(states, [gathered, sizes])
        result: Array | tuple[Array, Array] = _core.end_attend(step, gathered, states is None)
        if exchange.room != (room := most if most * exchange.ranks <= MOST_BYTES else 0):
            exchange.make_room(room)  # what the next step is likely to need
        return result

    def truncate(self, lengths: Any) -> ShardedKVCache:
        """Drop the last tokens, as :meth:`gqa.KVCache.truncate`."""
        arguments: dict[str, Any] = {}

        def kept() -> list[int]:
            arguments["lengths"] = kept = self._slots.kept(lengths)
            return kept

        self._slots.truncate(agreed(self._exchange, "truncate", arguments, kept))
        return self

    def select(self, rows: Any) -> ShardedKVCache:
        """Keep these sequences in this order, as :meth:`gqa.KVCache.select`: no token changes its rank."""
        arguments: dict[str, Any] = {}

        def selected() -> Shard:
            arguments["rows"] = indices = self._slots.selected(rows)
            return self._slots.copy(indices, self.capacity)

        self._slots = agreed(self._exchange, "select", arguments, selected)
        return self

    def grow(self, capacity: int) -> ShardedKVCache:
        """Change the capacity and keep the tokens, as :meth:`gqa.KVCache.grow`."""
        self._slots = agreed(self._exchange, "grow", {"capacity": capacity}, lambda: self._slots.grown(capacity))
        return self

    def reset(self) -> ShardedKVCache:
        """Drop all tokens; the storage stays. Returns itself."""
        return self.truncate(0)

    def copy(self) -> ShardedKVCache:
        """An independent copy, on the same communicator."""
        everything, slots = range(len(self._slots.lengths)), self._slots
        other = object.__new__(type(self))
        other._slots = agreed(self._exchange, "copy", {}, lambda: slots.copy(everything, slots.capacity))
        other._exchange = Exchange(self._exchange.comm)
        return other

    __copy__ = copy

    def _described_tokens(self, k: Any, v: Any, lengths: Any) -> dict[str, Any]:
        """New tokens that have been accepted."""
        if k is None:
            return {"k": None, "v": None}
        k, v = as_tensors(k, v)
        batch, tokens = len(self._slots.lengths), k.shape[self._slots.token_axis]
        counts = [tokens] * batch if lengths is None else int_list("lengths", lengths, batch)
        whole = all(n == tokens for n in counts)
        return {"lengths": counts, "k": described(k, whole), "v": described(v, whole)}
