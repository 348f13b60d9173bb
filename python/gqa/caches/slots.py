"""Slots: the storage of a batch of sequences, as rings; one that never fills up is an ordinary cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gqa.caches.storage import copy_tokens, storage_dtype, storage_sizes, zeros
from gqa.dtypes import dtype_named
from gqa.sequences import Store, Table, Tensor, int_list, spans
from gqa.shapes import LAYOUTS, Shape, check_int, layout_axes

if TYPE_CHECKING:
    from typing_extensions import Self


class SlotSizes(NamedTuple):
    """What Slots are made from."""

    batch: int
    kv_heads: int
    capacity: int
    head_dims: tuple[int, int]
    dtype: str
    layout: str
    window: int | None


def slot_sizes(
    batch: Any, kv_heads: Any, capacity: Any, head_dim: Any, v_head_dim: Any, dtype: Any, window: Any, layout: Any
) -> SlotSizes:
    """The arguments of a cache, checked."""
    layout_axes(layout)
    kv_heads, head_dims = storage_sizes(kv_heads, head_dim, v_head_dim)
    batch, capacity = check_int("batch", batch, 0), check_int("capacity", capacity, 0)
    if window is not None and capacity < (window := check_int("window", window, 1)):
        raise ValueError(f"capacity is {capacity}, expected at least the window of {window}")
    return SlotSizes(batch, kv_heads, capacity, head_dims, storage_dtype(dtype), layout, window)


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
            zeros("capacity", capacity, self._shape(batch, self._room(), head_dim), dtype) for head_dim in head_dims
        )
        self.store: Store = (keys, values)
        self.lengths = [0] * batch
        self.oldest = [0] * batch

    @property
    def native(self) -> tuple[Tensor, Tensor, list[int], list[int], int, int | None]:
        """What the core is given of it; the lists are changed in place when tokens are appended."""
        return (*self.store, self.lengths, self.oldest, self.capacity, self.window)

    def filled(self, x: Tensor) -> Tensor:
        """The slots of a tensor that any sequence has used."""
        stop = min(max(self.lengths, default=0), self.capacity)
        return x[:, :, :stop] if self.layout == "bhsd" else x[:, :stop]

    def kept(self, lengths: Any) -> list[int]:
        """How many tokens of each sequence `truncate` is to keep, as a user says; a ring must hold what the next token
        attends.
        """
        batch = len(self.lengths)
        kept = [check_int("lengths", lengths)] * batch if np.ndim(lengths) == 0 else int_list("lengths", lengths, batch)
        for b, (n, length, oldest) in enumerate(zip(kept, self.lengths, self.oldest)):
            if not 0 <= n <= length:
                raise ValueError(f"lengths[{b}] is {n}, expected 0 to {length}, the tokens of the sequence")
            first = max(n + 1 - (self.window or n + 1), 0)
            if first < min(n, oldest):
                raise ValueError(
                    f"lengths[{b}] is {n}, but the next token attends those from {first} on, of which the ring has "
                    f"dropped those before {oldest}"
                )
        return kept

    def truncate(self, kept: list[int]) -> None:
        """Forget the tokens of each sequence from kept[b] on."""
        self.lengths = kept
        self.oldest = list(map(min, self.oldest, kept))

    def selected(self, rows: Any) -> list[int]:
        """The sequences that `copy` is to take, as a user says."""
        indices = int_list("rows", rows)
        for i, b in enumerate(indices):
            if not 0 <= b < len(self.lengths):
                raise ValueError(f"rows[{i}] is {b}, expected 0 to {len(self.lengths) - 1}")
        return indices

    def grown(self, capacity: Any) -> Self:
        """All sequences, in slots of another capacity, as a user says."""
        least = self.window or max(self.lengths, default=0)
        if check_int("capacity", capacity, 0) < least:
            raise ValueError(f"capacity is {capacity}, expected at least {least}, the tokens to keep")
        return self.copy(range(len(self.lengths)), int(capacity))

    def places(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Where tokens [first, last) of any sequence are: (token, slot, count) of consecutive ones."""
        for token, count in spans(first, last, self.capacity):
            yield token, token % self.capacity, count

    def copy(self, rows: Sequence[int], capacity: int) -> Self:
        """The sequences `rows` in slots of their own, with another capacity."""
        other = self._empty(len(rows), capacity)
        other.lengths = [self.lengths[b] for b in rows]
        other.oldest = [max(self.oldest[b], self.lengths[b] - capacity) for b in rows]
        moves = [
            (i, slot + p - first, b, other_slot, n)
            for i, b in enumerate(rows)
            for first, slot, count in other.places(other.oldest[i], other.lengths[i])
            for p, other_slot, n in self.places(first, first + count)
        ]
        copy_tokens(other.store, self.store, moves, self.layout)
        return other

    def _room(self) -> int:
        """Slots of each sequence."""
        return self.capacity

    def _empty(self, batch: int, capacity: int) -> Self:
        """Others of the same kind, without tokens."""
        return type(self)(batch, self.kv_heads, capacity, self.head_dims, self.dtype, self.layout, self.window)

    def _shape(self, batch: int, tokens: int, head_dim: int) -> Shape:
        """The shape of a tensor of so many tokens, in the layout."""
        rows = (self.kv_heads, tokens) if self.layout == "bhsd" else (tokens, self.kv_heads)
        return (batch, *rows, head_dim)


class SlotCache:
    """What caches of slots tell of themselves."""

    _slots: Slots

    @property
    def capacity(self) -> int:
        """Tokens that fit into each sequence."""
        return self._slots.capacity

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the stored keys and values."""
        return dtype_named(self._slots.dtype)

    @property
    def layout(self) -> str:
        """The layout of k, v, q, out, lse and the stored arrays: "bhsd" or "bshd"."""
        return self._slots.layout

    @property
    def lengths(self) -> Table:
        """How many tokens each sequence has been given, those that a ring has dropped included: shape (B,), a copy."""
        return np.array(self._slots.lengths, np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of storage; of a sharded cache, those of this rank."""
        return sum(x.nbytes for x in self._slots.store)
