"""Shard: one rank's slots of a cache whose tokens are dealt out."""

from __future__ import annotations

from collections.abc import Iterator
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np

from gqa.caches.slots import Slots
from gqa.caches.storage import copy_tokens
from gqa.distributed.deal import Block, Deal
from gqa.dtypes import dtype_named
from gqa.quantization import Quantized, quantize_tensor
from gqa.sequences import RUN_COLUMNS, Store, Table, Tensor, as_tensors, int_list, spans, table
from gqa.shapes import check_shape
from gqa.subtrees import MERGE_COLUMNS, STATE_SEQUENCE_COLUMNS, SUBTREE_COLUMNS

if TYPE_CHECKING:
    from typing_extensions import Self


class Shard(Slots):
    """Slots for the tokens that a deal gives to a rank, as many as `Deal.room` says; the n-th is in slot n % room.

    Lengths, capacity and window are those of whole sequences, the same on every rank.
    """

    def __init__(
        self,
        deal: Deal,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dims: tuple[int, int],
        dtype: str,
        layout: str,
        window: int | None,
    ) -> None:
        self.deal = deal
        self.room = deal.room(capacity)
        super().__init__(batch, kv_heads, capacity, head_dims, dtype, layout, window)

    def accept(self, k: Any, v: Any, lengths: Any) -> tuple[Store, list[int]]:
        """Check new tokens; returns them in the form in which they are stored, and how many each sequence takes."""
        k, v = as_tensors(k, v)
        if len(k.shape) != 4:
            raise ValueError(f"k has shape {k.shape}, expected ({', '.join(self.axes)})")
        batch, tokens = len(self.lengths), k.shape[self.token_axis]
        for name, x, head_dim in zip("kv", (k, v), self.head_dims):
            check_shape(name, x.shape, self._shape(batch, tokens, head_dim))
        counts = [tokens] * batch if lengths is None else int_list("lengths", lengths, batch)
        for b, (count, length) in enumerate(zip(counts, self.lengths)):
            if not 0 <= count <= tokens:
                raise ValueError(f"lengths[{b}] is {count}, expected 0 to {tokens}, the tokens of k")
            if self.window is None and length + count > self.capacity:
                raise ValueError(
                    f"sequence {b} has {length} tokens and takes {count} more, past the capacity of {self.capacity}"
                )
        if lengths is not None:
            k, v = self._without_padding(k, counts), self._without_padding(v, counts)
        return (self._stored("k", k), self._stored("v", v)), counts

    def _without_padding(self, x: Tensor, counts: list[int]) -> Tensor:
        """`x` with 0 past the tokens that are taken, if it is going to be converted: anything may lie there."""
        if isinstance(x, Quantized) or x.dtype == dtype_named(self.dtype):
            return x
        taken = np.arange(x.shape[self.token_axis]) < np.array(counts)[:, None]
        return np.where(np.expand_dims(taken, (1, 3) if self.token_axis == 2 else (2, 3)), x, x.dtype.type(0))

    def _stored(self, name: str, x: Tensor) -> Tensor:
        if self.dtype == "int8":
            return x if isinstance(x, Quantized) else quantize_tensor(name, x)
        if isinstance(x, Quantized):
            x = x.dequantize()
        return x.astype(dtype_named(self.dtype), copy=False)

    def write(self, new: Store, counts: list[int]) -> None:
        """Append the first counts[b] tokens of `new` to sequence b, those of them that this rank is dealt."""
        ends = list(map(add, self.lengths, counts))
        moves = [
            (b, slot, b, p - before, n)
            for b, (before, end) in enumerate(zip(self.lengths, ends))
            for p, slot, n in self.places(max(before, end - self.capacity), end)
        ]
        # In this order a signal in between leaves no token that has a length but no data.
        self.oldest = [max(oldest, end - self.capacity) for oldest, end in zip(self.oldest, ends)]
        copy_tokens(self.store, new, moves, self.layout)
        self.lengths = ends

    def places(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        for block in self.deal.blocks(first, last):
            if block.owner == self.deal.rank:
                yield from self._places_of(block)

    def _places_of(self, block: Block) -> Iterator[tuple[int, int, int]]:
        before = self.deal.held(block.first)
        for held, count in spans(before, before + block.last - block.first, self.room):
            yield block.first + held - before, held % self.room, count

    def _room(self) -> int:
        return self.room

    def _empty(self, batch: int, capacity: int) -> Self:
        sizes = (batch, self.kv_heads, capacity, self.head_dims)
        return type(self)(self.deal, *sizes, self.dtype, self.layout, self.window)

    def needed(self, queries: int, counts: list[int] | None, left: int | None) -> list[Needed]:
        """What each sequence's queries need, as the core lists it for a cache of one machine (csrc/slots.cpp)."""
        needed = []
        for b, length in enumerate(self.lengths):
            count, rows, position = 0, queries, length - queries
            if counts is not None:
                count, rows, position = counts[b], min(queries, counts[b]), length
            first = 0 if left is None else min(max(position - left, 0), length + count)
            if self.window is not None and first < self.oldest[b]:
                raise ValueError(
                    f"row 0 of sequence {b} sees tokens from {first} on, but the ring has dropped those before "
                    f"{self.oldest[b]}"
                )
            blocks = list(self.deal.blocks(first, length + count)) if rows else []
            needed.append(Needed(rows, position, length + count, blocks))
        return needed

    def state_tables(self, needed: list[Needed]) -> tuple[Table, Table]:
        """The core's tables of a sequence for each block that this rank holds, and its runs.

        Slots (store 0), new tokens (store 1); states go to slots in the order of sequences and blocks.
        """
        sequences: list[tuple[int, ...]] = []
        runs: list[tuple[int, ...]] = []
        for b, (length, need) in enumerate(zip(self.lengths, needed)):
            for block in need.blocks:
                if block.owner != self.deal.rank:
                    continue
                before = len(runs)
                if block.first < length:
                    stored = Block(block.piece, block.first, min(block.last, length), block.owner)
                    runs += [(0, b, slot, n) for _, slot, n in self._places_of(stored)]
                if block.last > length:
                    new = max(block.first, length)
                    runs.append((1, b, new - length, block.last - new))
                first, keys = block.first, block.last - block.first
                row = (b, 0, need.rows, 0, first, need.position - first, keys, b, first, len(runs) - before)
                sequences.append((*row, len(sequences), need.keys, 0))
        return table(sequences, STATE_SEQUENCE_COLUMNS), table(runs, RUN_COLUMNS)

    def merge_tables(self, needed: list[Needed], queries: int) -> tuple[Table, Table, list[int]]:
        """The core's tables of merges and subtrees, whose states lie rank by rank; and how many there are of each."""
        counts = [0] * self.deal.ranks
        for need in needed:
            for block in need.blocks:
                counts[block.owner] += 1
        next_slots = [sum(counts[:rank]) for rank in range(self.deal.ranks)]
        merges, subtrees = [], []
        for b, need in enumerate(needed):
            merges.append((b, 0, need.rows, queries - need.rows, 0, len(need.blocks)))
            for block in need.blocks:
                subtrees.append((block.piece, next_slots[block.owner]))
                next_slots[block.owner] += 1
        return table(merges, MERGE_COLUMNS), table(subtrees, SUBTREE_COLUMNS), counts


class Needed:
    """What the queries of a sequence need: `rows` of them, from `position` on, of its `keys` those of `blocks`."""

    __slots__ = ("blocks", "keys", "position", "rows")

    def __init__(self, rows: int, position: int, keys: int, blocks: list[Block]) -> None:
        self.rows, self.position, self.keys, self.blocks = rows, position, keys, blocks
