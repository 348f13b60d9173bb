"""Tensors dealt out by tokens are dealt out by heads for a while: each rank has all tokens of some heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gqa.arguments import Array
from gqa.distributed.agreement import Communicator
from gqa.distributed.prompt_call import stretches
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
        self._places = [_places(positions) for positions in everyone]

    def gather(self, x: Array) -> Array:
        """All tokens of this rank's unit. x: this rank's tokens of all units."""
        batch, heads, _, channels = self._own.of(x, self._kv_heads).shape
        sizes = [(batch, heads, len(positions), channels) for positions in self._everyone]
        parts = self._exchange([[unit.of(x, self._kv_heads)] for unit in self._units], sizes)
        everything = np.empty((batch, heads, sum(map(len, self._everyone)), channels), x.dtype)
        for places, part in zip(self._places, parts):
            for tokens, some in places:
                everything[:, :, tokens] = part[:, :, some]
        return everything

    def scatter(self, everything: Array, x: Array) -> None:
        """Put this rank's tokens of all units into x. everything: all tokens of this rank's unit."""
        shares = [unit.of(x, self._kv_heads) for unit in self._units]
        sent = [[everything[:, :, tokens] for tokens, _ in places] for places in self._places]
        for share, part in zip(shares, self._exchange(sent, [share.shape for share in shares])):
            share[...] = part

    def _exchange(self, sent: list[list[Array]], shapes: Sequence[tuple[int, ...]]) -> list[Array]:
        """What each rank has sent here, in these shapes, where each is sent one part: arrays, at least one, that
        are joined along the tokens.

        MPI counts what it sends by 32 bits: so rows travel as the largest words that they are made of.
        """
        first = sent[0][0]
        row = first.shape[3] * first.itemsize
        word = np.dtype(next(f"u{size}" for size in (8, 4, 2, 1) if row % size == 0))
        sizes = [sum(x.nbytes for x in part) // word.itemsize for part in sent]
        buffer = np.empty(sum(sizes), word)
        end = 0
        for part, size in zip(sent, sizes):
            begin, end = end, end + size
            shape = (*part[0].shape[:2], sum(x.shape[2] for x in part), part[0].shape[3])
            joined = buffer[begin:end].view(first.dtype).reshape(shape)
            token = 0
            for x in part:
                joined[:, :, token : token + x.shape[2]] = x
                token += x.shape[2]
        counts = [math.prod(shape) * first.itemsize // word.itemsize for shape in shapes]
        received = np.empty(sum(counts), word)
        message: Any = [buffer, sizes]
        self._comm.Alltoallv(message, [received, counts])
        ends = np.cumsum(counts)
        return [received[end - n : end].view(first.dtype).reshape(shape) for end, n, shape in zip(ends, counts, shapes)]


def _places(positions: Table) -> list[tuple[Any, Any]]:
    """(tokens, which of the positions they are): slices of consecutive ones, or all at once where those are short."""
    runs = stretches(positions)
    if not runs or len(runs) * 16 > len(positions):
        return [(positions, slice(None))]
    return [(slice(int(positions[i]), int(positions[i]) + n), slice(i, i + n)) for i, n in runs]
