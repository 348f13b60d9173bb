"""Slots: the storage of a batch of sequences, as rings; one that never fills up is an ordinary cache."""

from __future__ import annotations

from collections.abc import Sequence
from operator import add
from typing import Any

import numpy as np

from gqa.caches.storage import as_stored, copy_tokens, zeros
from gqa.quantization import Quantized
from gqa.sequences import RUN_COLUMNS, SEQUENCE_COLUMNS, Store, Table, Tensor, as_tensors, int_list, spans, table
from gqa.shapes import LAYOUTS, Shape, check_shape


class Slots:
    """Keys and values of a batch of sequences; token p of each is in slot p % capacity.

    Attributes
    ----------
    store : keys and values of shape (batch, kv_heads, capacity, head_dim or v_head_dim), in the layout
    lengths : how many tokens each sequence has been given
    oldest : the first token of each sequence that no later one has overwritten
    window : how many tokens a ring keeps at least; None: tokens past the capacity are refused
    """

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dims: tuple[int, int],
        dtype: str,
        layout: str,
        window: int | None,
    ) -> None:
        self.kv_heads, self.capacity, self.head_dims = kv_heads, capacity, head_dims
        self.dtype, self.layout, self.window = dtype, layout, window
        self.axes = LAYOUTS[layout]
        self.token_axis = self.axes.index("tokens")
        keys, values = (
            zeros("capacity", capacity, self._shape(batch, capacity, head_dim), dtype) for head_dim in head_dims
        )
        self.store: Store = (keys, values)
        self.lengths = [0] * batch
        self.oldest = [0] * batch

    def filled(self, x: Tensor) -> Tensor:
        """The slots of a tensor that any sequence has used."""
        stop = min(max(self.lengths, default=0), self.capacity)
        return x[:, :, :stop] if self.layout == "bhsd" else x[:, :stop]

    def accept(self, k: Any, v: Any, lengths: Any) -> tuple[Store, list[int]]:
        """Check new tokens; returns them in the form in which they are stored, and how many each sequence takes."""
        if not (self._holds(k) and self._holds(v)):
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
        return as_stored(k, v, self.store), counts

    def tables(self, queries: int, counts: list[int] | None, left: int | None) -> tuple[Table, Table]:
        """The core's tables of sequences and runs: `queries` rows each, the slots (store 0), new tokens (store 1).

        With new tokens, counts[b] of them, row i stands at the i-th; without, the rows stand at the end.
        """
        sequences, runs = [], []
        for b, length in enumerate(self.lengths):
            count, rows, position = 0, queries, length - queries
            if counts is not None:
                count, rows, position = counts[b], min(queries, counts[b]), length
            origin = self._origin(b, position, left)
            stored = [(0, b, p % self.capacity, n) for p, n in spans(origin, length, self.capacity)]
            runs += [*stored, (1, b, 0, count)]
            keys = length + count - origin
            sequences.append((b, 0, rows, queries - rows, origin, position - origin, keys, b, origin, len(stored) + 1))
        return table(sequences, SEQUENCE_COLUMNS), table(runs, RUN_COLUMNS)

    def _origin(self, b: int, position: int, left: int | None) -> int:
        """The token to list first for queries of sequence b from `position` on, which see `left` tokens before it."""
        if self.window is None or left is None:
            return 0
        first, oldest = max(position - left, 0), self.oldest[b]
        if first < oldest:
            raise ValueError(
                f"row 0 of sequence {b} sees tokens from {first} on, but the ring has dropped those before {oldest}"
            )
        return first

    def write(self, new: Store, counts: list[int]) -> None:
        """Append the first counts[b] tokens of `new` to sequence b; of more than the capacity, the last ones."""
        ends = list(map(add, self.lengths, counts))
        moves = [
            (b, p % self.capacity, b, p - before, n)
            for b, (before, end) in enumerate(zip(self.lengths, ends))
            for p, n in spans(max(before, end - self.capacity), end, self.capacity)
        ]
        # In this order a signal in between leaves no token that has a length but no data.
        self.oldest = [max(oldest, end - self.capacity) for oldest, end in zip(self.oldest, ends)]
        copy_tokens(self.store, new, moves, self.layout)
        self.lengths = ends

    def truncate(self, lengths: list[int]) -> None:
        """Forget the tokens of each sequence from lengths[b] on; a ring must hold what the next token attends."""
        for b, (n, length, oldest) in enumerate(zip(lengths, self.lengths, self.oldest)):
            if not 0 <= n <= length:
                raise ValueError(f"lengths[{b}] is {n}, expected 0 to {length}, the tokens of the sequence")
            first = max(n + 1 - (self.window or n + 1), 0)
            if first < min(n, oldest):
                raise ValueError(
                    f"lengths[{b}] is {n}, but the next token attends those from {first} on, of which the ring has "
                    f"dropped those before {oldest}"
                )
        self.lengths = lengths
        self.oldest = list(map(min, self.oldest, lengths))

    def copy(self, rows: Sequence[int], capacity: int) -> Slots:
        """The sequences `rows` in slots of their own, with another capacity."""
        other = Slots(len(rows), self.kv_heads, capacity, self.head_dims, self.dtype, self.layout, self.window)
        other.lengths = [self.lengths[b] for b in rows]
        other.oldest = [max(self.oldest[b], self.lengths[b] - capacity) for b in rows]
        moves = [
            (i, p % capacity, b, p % self.capacity, n)
            for i, b in enumerate(rows)
            for first, count in spans(other.oldest[i], other.lengths[i], capacity)
            for p, n in spans(first, first + count, self.capacity)
        ]
        copy_tokens(other.store, self.store, moves, self.layout)
        return other

    def _shape(self, batch: int, tokens: int, head_dim: int) -> Shape:
        """The shape of a tensor of so many tokens, in the layout."""
        rows = (self.kv_heads, tokens) if self.layout == "bhsd" else (tokens, self.kv_heads)
        return (batch, *rows, head_dim)

    def _holds(self, x: Any) -> bool:
        """Whether tokens are of the type of the store: neither checked nor converted."""
        to = self.store[0]
        return isinstance(x, Quantized) if isinstance(to, Quantized) else type(x) is np.ndarray and x.dtype is to.dtype

    def _without_padding(self, x: Tensor, counts: list[int]) -> Tensor:
        """`x` with 0 past the tokens that are taken, if it is going to be converted: anything may lie there."""
        if self._holds(x) or isinstance(x, Quantized):
            return x
        taken = np.arange(x.shape[self.token_axis]) < np.array(counts)[:, None]
        return np.where(np.expand_dims(taken, (1, 3) if self.token_axis == 2 else (2, 3)), x, x.dtype.type(0))
