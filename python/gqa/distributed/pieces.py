"""Pieces of keys and values on their way: each is gathered from the ranks that have tokens of it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gqa import _core
from gqa.arguments import Array
from gqa.distributed.agreement import Communicator, Request
from gqa.quantization import Quantized
from gqa.sequences import Store, Table, Tensor, arrays

PIECE: int = _core.SPLIT_KEYS
AT_ONCE = 2  # that there is room for: one that is attended, and one on its way
ALIGNMENT = 64  # bytes


class Pieces:
    """The pieces of one sequence (of a batch), in the order of their numbers, of which two may be there at a time.

    What a rank has of a piece travels as one segment of bytes: its keys, their scales if they are quantised, its values
    and theirs, each as an array (batch, heads, tokens, ...), so that the rows of a head lie one after another.

    everyone: the positions of the tokens of each rank.
    """

    def __init__(self, comm: Communicator, k: Tensor, v: Tensor, everyone: list[Table], layout: str) -> None:
        self._comm, self._rank = comm, comm.Get_rank()
        self._token_axis = 2 if layout == "bhsd" else 1
        self._tensors = (k, v)
        self.tokens = sum(map(len, everyone))
        self.count = -(-self.tokens // PIECE)
        bounds = np.arange(self.count + 1) * PIECE
        self._sorted = [np.sort(positions) for positions in everyone]
        # [rank][piece]: of its tokens, sorted, the first that belongs to the piece or to a later one.
        self._firsts = np.array([np.searchsorted(positions, bounds) for positions in self._sorted])
        self._order = np.argsort(everyone[self._rank], kind="stable")

        room = max((sum(self._sizes(piece)) for piece in range(self.count)), default=0)
        own = max((self._sizes(piece)[self._rank] for piece in range(self.count)), default=0)
        self._buffers = np.empty((min(AT_ONCE, self.count), room), np.uint8)
        self._sent = np.zeros(own, np.uint8)
        self._request: Request | None = None

    @property
    def piece_bytes(self) -> int:
        """The size of a whole piece."""
        return self._segment_bytes(PIECE)

    def post(self, piece: int) -> None:
        """Send for a piece, once the one before it is there; the one AT_ONCE before it is not needed any more."""
        sizes = self._sizes(piece)
        segment = self._sent[: sizes[self._rank]]
        first, last = self._firsts[self._rank, piece : piece + 2]
        own = self._order[first:last]
        some: Array | slice = own
        if len(own) and own[-1] - own[0] == len(own) - 1 and (np.diff(own) == 1).all():
            some = slice(int(own[0]), int(own[-1]) + 1)
        for x, part in zip(arrays(*self._tensors), self._parts(segment, len(own))):
            part[...] = x[:, :, some] if self._token_axis == 2 else x[:, some].swapaxes(1, 2)
        buffer = self._buffers[piece % AT_ONCE, : sum(sizes)]
        self._request = self._comm.Iallgatherv(segment, [buffer, sizes])

    def wait(self) -> None:
        """Return when the piece that was sent for last is there."""
        if self._request is not None:
            self._request.Wait()
        self._request = None

    def stores(self, piece: int) -> list[Store]:
        """Keys and values of a piece, those of each rank, tokens in the order of their positions."""
        stores, end = [], 0
        for tokens, size in zip(self._counts(piece), self._sizes(piece)):
            segment = self._buffers[piece % AT_ONCE, end : end + size]
            end += size
            parts = iter([x if self._token_axis == 2 else x.swapaxes(1, 2) for x in self._parts(segment, tokens)])
            k, v = (
                Quantized(next(parts), next(parts)) if isinstance(x, Quantized) else next(parts) for x in self._tensors
            )
            stores.append((k, v))
        return stores

    def runs(self, piece: int) -> list[tuple[int, int, int]]:
        """(rank, first, count) of tokens of its store, such that their positions ascend."""
        firsts, counts = self._firsts[:, piece], self._counts(piece)
        owners, places = np.empty((2, sum(counts)), np.int64)
        for rank, (positions, first, count) in enumerate(zip(self._sorted, firsts, counts)):
            here = positions[first : first + count] - piece * PIECE
            owners[here], places[here] = rank, np.arange(count)
        cuts = (np.diff(owners, prepend=-1) != 0) | (np.diff(places, prepend=-2) != 1)
        starts = np.flatnonzero(cuts)
        ends = np.append(starts[1:], len(places))
        return [(int(owners[i]), int(places[i]), int(end - i)) for i, end in zip(starts, ends)]

    def _parts(self, segment: Array, tokens: int) -> Iterator[Array]:
        """The arrays that a segment is made of."""
        offset = 0
        for x in arrays(*self._tensors):
            shape = self._part_shape(x, tokens)
            size = math.prod(shape) * x.itemsize
            yield segment[offset : offset + size].view(x.dtype).reshape(shape)
            offset += _aligned(size)

    def _segment_bytes(self, tokens: int) -> int:
        return sum(_aligned(math.prod(self._part_shape(x, tokens)) * x.itemsize) for x in arrays(*self._tensors))

    def _part_shape(self, x: Array, tokens: int) -> tuple[int, ...]:
        return (x.shape[0], x.shape[3 - self._token_axis], tokens, *x.shape[3:])

    def _counts(self, piece: int) -> list[int]:
        """Tokens of each rank."""
        counts: list[int] = (self._firsts[:, piece + 1] - self._firsts[:, piece]).tolist()
        return counts

    def _sizes(self, piece: int) -> list[int]:
        """Bytes of each rank."""
        return [self._segment_bytes(tokens) for tokens in self._counts(piece)]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
