"""Pieces of keys and values on their way: each is gathered from the ranks that have tokens of it."""

from __future__ import annotations

import numpy as np

from gqa import _core
from gqa.arguments import Array
from gqa.distributed.agreement import Communicator, Request
from gqa.quantization import Quantized
from gqa.sequences import Store, Table, Tensor

PIECE: int = _core.SPLIT_KEYS
AT_ONCE = 2  # that there is room for
ALIGNMENT = 64  # bytes


class Field:
    """Where an array has its part of what travels of a token."""

    def __init__(self, x: Array, layout: str, offset: int) -> None:
        axes = {"bhsd": (2, 0, 1, 3), "bshd": (1, 0, 2, 3)}[layout][: x.ndim]
        self.tokens = x.transpose(axes)  # (tokens, batch, heads, ...)
        self.back = tuple(int(i) for i in np.argsort(axes))
        self.first, self.last = offset, offset + self.tokens[:1].nbytes if len(self.tokens) else offset
        self.shape = self.tokens.shape[1:]
        self.last = offset + int(np.prod(self.shape)) * x.itemsize
        self.dtype = x.dtype

    def view(self, records: Array) -> Array:
        """The array that records hold, its tokens first."""
        columns = records[:, self.first : self.last].view(self.dtype)
        return columns.reshape(len(records), *self.shape)

    def array(self, records: Array) -> Array:
        """The array that records hold, in the layout."""
        return self.view(records).transpose(self.back)


class Pieces:
    """The pieces of one sequence (of a batch), in the order of their numbers, of which two may be there at a time.

    everyone: the positions of the tokens of each rank.
    """

    def __init__(self, comm: Communicator, k: Tensor, v: Tensor, everyone: list[Table], layout: str) -> None:
        self._comm = comm
        self.tokens = sum(map(len, everyone))
        self.count = -(-self.tokens // PIECE)
        bounds = np.arange(self.count + 1) * PIECE
        self._sorted = [np.sort(positions) for positions in everyone]
        # [rank][piece]: of its tokens, sorted, the first that belongs to the piece or to a later one.
        self._firsts = np.array([np.searchsorted(positions, bounds) for positions in self._sorted])
        self._order = np.argsort(everyone[comm.Get_rank()], kind="stable")

        offset = 0
        self._fields: list[list[Field]] = []
        for x in (k, v):
            self._fields.append([])
            for part in (x.data, x.scale) if isinstance(x, Quantized) else (x,):
                self._fields[-1].append(Field(part, layout, offset))
                offset = -(-self._fields[-1][-1].last // ALIGNMENT) * ALIGNMENT
        room = min(PIECE, self.tokens)
        own = int(np.diff(self._firsts[comm.Get_rank()]).max(initial=0))
        self._buffers = np.empty((min(AT_ONCE, self.count), room, offset), np.uint8)
        self._sent = np.zeros((min(AT_ONCE, self.count), own, offset), np.uint8)
        self._requests: dict[int, Request] = {}

    @property
    def piece_bytes(self) -> int:
        """The size of a whole piece."""
        return PIECE * int(self._buffers.shape[2])

    def post(self, piece: int) -> None:
        """Send for a piece; the one AT_ONCE before it is not needed any more."""
        first, last = self._firsts[self._comm.Get_rank(), piece : piece + 2]
        records = self._sent[piece % AT_ONCE, : last - first]
        own = self._order[first:last]
        for field in (field for fields in self._fields for field in fields):
            field.view(records)[...] = field.tokens[own]
        counts = (self._counts(piece) * records.shape[1]).tolist()
        self._requests[piece] = self._comm.Iallgatherv(records, [self._records(piece), counts])

    def wait(self, piece: int) -> None:
        """Return when a piece is there."""
        self._requests.pop(piece).Wait()

    def store(self, piece: int) -> Store:
        """Keys and values of a piece, tokens in the order of `runs`."""
        records = self._records(piece)
        tensors = [[field.array(records) for field in fields] for fields in self._fields]
        k, v = (Quantized(*parts) if len(parts) == 2 else parts[0] for parts in tensors)
        return k, v

    def runs(self, piece: int) -> list[tuple[int, int]]:
        """(first, count) of tokens of `store`, such that their positions ascend: rank by rank they lie there."""
        counts = self._counts(piece)
        places = np.empty(counts.sum(), np.int64)
        before = 0
        for positions, firsts, count in zip(self._sorted, self._firsts, counts):
            places[positions[firsts[piece] : firsts[piece + 1]] - piece * PIECE] = np.arange(before, before + count)
            before += count
        starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
        ends = np.append(starts[1:], len(places))
        return [(int(places[start]), int(end - start)) for start, end in zip(starts, ends)]

    def _counts(self, piece: int) -> Table:
        counts: Table = self._firsts[:, piece + 1] - self._firsts[:, piece]
        return counts

    def _records(self, piece: int) -> Array:
        records: Array = self._buffers[piece % AT_ONCE, : self._counts(piece).sum()]
        return records
