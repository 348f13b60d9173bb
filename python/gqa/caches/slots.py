"""Slots: the storage of a batch of sequences, as rings; one that never fills up is an ordinary cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gqa.caches.storage import copy_tokens, zeros
from gqa.sequences import Store, Tensor, spans
from gqa.shapes import LAYOUTS, Shape

if TYPE_CHECKING:
    from typing_extensions import Self


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

    def truncate(self, lengths: list[int]) -> None:
        """Forget the tokens of each sequence from lengths[b] on; a ring must hold what the next token attends."""
        self.check_truncation(lengths)
        self.lengths = lengths
        self.oldest = list(map(min, self.oldest, lengths))

    def check_truncation(self, lengths: list[int]) -> None:
        """ValueError unless `truncate` can keep so many tokens."""
        for b, (n, length, oldest) in enumerate(zip(lengths, self.lengths, self.oldest)):
            if not 0 <= n <= length:
                raise ValueError(f"lengths[{b}] is {n}, expected 0 to {length}, the tokens of the sequence")
            first = max(n + 1 - (self.window or n + 1), 0)
            if first < min(n, oldest):
                raise ValueError(
                    f"lengths[{b}] is {n}, but the next token attends those from {first} on, of which the ring has "
                    f"dropped those before {oldest}"
                )

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
