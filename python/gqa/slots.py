"""Slots: the storage of a batch of sequences, as rings; one that never fills up is an ordinary cache."""

from __future__ import annotations

from collections.abc import Sequence

from gqa.arguments import Array
from gqa.sequences import Store, Tensor, arrays, spans, zeros
from gqa.shapes import LAYOUTS, Shape


class Slots:
    """Keys and values of a batch of sequences; token p of each is in slot p % capacity.

    Attributes
    ----------
    store : keys and values of shape (batch, kv_heads, capacity, head_dim or v_head_dim), in the layout
    lengths : how many tokens each sequence has been given
    oldest : the first token of each sequence that no later one has overwritten
    """

    def __init__(
        self, batch: int, kv_heads: int, capacity: int, head_dims: tuple[int, int], dtype: str, layout: str
    ) -> None:
        self.kv_heads, self.capacity, self.head_dims, self.dtype, self.layout = (
            kv_heads,
            capacity,
            head_dims,
            dtype,
            layout,
        )
        self.token_axis = LAYOUTS[layout].index("tokens")
        self.store: Store = (
            zeros(self.shape(batch, capacity, head_dims[0]), dtype),
            zeros(self.shape(batch, capacity, head_dims[1]), dtype),
        )
        self.lengths = [0] * batch
        self.oldest = [0] * batch

    def shape(self, batch: int, tokens: int, head_dim: int) -> Shape:
        """The shape of a tensor of so many tokens, in the layout."""
        rows = (self.kv_heads, tokens) if self.layout == "bhsd" else (tokens, self.kv_heads)
        return (batch, *rows, head_dim)

    def filled(self, x: Tensor) -> Tensor:
        """The slots of a tensor that any sequence has used."""
        stop = min(max(self.lengths, default=0), self.capacity)
        return x[:, :, :stop] if self.layout == "bhsd" else x[:, :stop]

    def runs(self, b: int, origin: int) -> list[tuple[int, int, int, int]]:
        """Where the tokens of sequence b from `origin` on are: runs of store 0."""
        return [(0, b, p % self.capacity, n) for p, n in spans(origin, self.lengths[b], self.capacity)]

    def write(self, new: Store, counts: list[int]) -> None:
        """Append the first counts[b] tokens of `new` to sequence b; of more than the capacity, the last ones."""
        pairs = list(zip(self._by_token(self.store), self._by_token(new)))
        for b, (before, count) in enumerate(zip(self.lengths, counts)):
            after = before + count
            for p, n in spans(max(before, after - self.capacity), after, self.capacity):
                slot = p % self.capacity
                for to, x in pairs:
                    to[b, slot : slot + n] = x[b, p - before : p - before + n]
            self.lengths[b] = after
            self.oldest[b] = max(self.oldest[b], after - self.capacity)

    def truncate(self, lengths: list[int]) -> None:
        """Forget the tokens of each sequence from lengths[b] on."""
        self.lengths = lengths
        self.oldest = [min(oldest, length) for oldest, length in zip(self.oldest, lengths)]

    def copy(self, rows: Sequence[int], capacity: int) -> Slots:
        """The sequences `rows` in slots of their own, with another capacity."""
        other = Slots(len(rows), self.kv_heads, capacity, self.head_dims, self.dtype, self.layout)
        other.lengths = [self.lengths[b] for b in rows]
        other.oldest = [max(self.oldest[b], self.lengths[b] - capacity) for b in rows]
        for to, x in zip(self._by_token(other.store), self._by_token(self.store)):
            for i, b in enumerate(rows):
                for p, n in spans(other.oldest[i], other.lengths[i], self.capacity, capacity):
                    slot, source = p % capacity, p % self.capacity
                    to[i, slot : slot + n] = x[b, source : source + n]
        return other

    def _by_token(self, store: Store) -> list[Array]:
        """Views of a store's arrays: (batch, tokens, heads, ...)."""
        return [x.swapaxes(1, 2) if self.layout == "bhsd" else x for x in arrays(*store)]
