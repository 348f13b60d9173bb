"""Slots: the storage of a batch of sequences, as rings; one that never fills up is an ordinary cache."""

from __future__ import annotations

from collections.abc import Sequence

from gqa.caches.storage import copy_tokens, zeros
from gqa.sequences import Store, Tensor, spans
from gqa.shapes import LAYOUTS, Shape


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
