"""Tensors dealt out by tokens are dealt out by heads for a while: each rank has all tokens of some heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gqa.arguments import Array
from gqa.distributed.agreement import Communicator
from gqa.sequences import Table


class Unit(NamedTuple):
    """A KV head of some batch entries, and the query heads that share it."""

    first: int
    last: int
    head: int

    def of(self, x: Array, kv_heads: int) -> Array:
        """Its part of a tensor (batch, heads, ...), a view."""
        group = x.shape[1] // kv_heads
        return x[self.first : self.last, self.head * group : (self.head + 1) * group]


NOTHING = Unit(0, 0, 0)


class Heads:
    """Passes all tokens of a unit to each rank, and what became of them back.

    units: one for each rank, or NOTHING; everyone: the positions of each rank's tokens. Tensors are of shape (batch,
    heads, tokens, channels).
    """

    def __init__(self, comm: Communicator, units: list[Unit], everyone: list[Table], kv_heads: int) -> None:
        self._comm, self._units, self._everyone, self._kv_heads = comm, units, everyone, kv_heads
        self._own = units[comm.Get_rank()]

    def gather(self, x: Array) -> Array:
        """All tokens of this rank's unit. x: this rank's tokens of all units."""
        batch, heads, _, channels = self._own.of(x, self._kv_heads).shape
        sizes = [(batch, heads, len(positions), channels) for positions in self._everyone]
        parts = self._exchange([unit.of(x, self._kv_heads) for unit in self._units], sizes)
        everything = np.empty((batch, heads, sum(map(len, self._everyone)), channels), x.dtype)
        for positions, part in zip(self._everyone, parts):
            everything[:, :, positions] = part
        return everything

    def scatter(self, everything: Array, x: Array) -> None:
        """Put this rank's tokens of all units into x. everything: all tokens of this rank's unit."""
        places = [unit.of(x, self._kv_heads) for unit in self._units]
        parts = self._exchange(
            [everything[:, :, positions] for positions in self._everyone], [place.shape for place in places]
        )
        for place, part in zip(places, parts):
            place[...] = part

    def _exchange(self, sent: list[Array], shapes: Sequence[tuple[int, ...]]) -> list[Array]:
        """What each rank has sent here, in these shapes, where each is sent one part.

        MPI counts what it sends by 32 bits: so rows travel as the largest words that they are made of.
        """
        dtype = sent[0].dtype
        row = sent[0].shape[3] * dtype.itemsize
        word = np.dtype(next(f"u{size}" for size in (8, 4, 2, 1) if row % size == 0))
        buffer = np.concatenate([np.ascontiguousarray(x).reshape(-1).view(word) for x in sent])
        counts = [int(np.prod(shape)) * dtype.itemsize // word.itemsize for shape in shapes]
        received = np.empty(sum(counts), word)
        message: Any = [buffer, [x.nbytes // word.itemsize for x in sent]]
        self._comm.Alltoallv(message, [received, counts])
        ends = np.cumsum(counts)
        return [received[end - n : end].view(dtype).reshape(shape) for end, n, shape in zip(ends, counts, shapes)]
