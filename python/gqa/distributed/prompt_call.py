"""A call of gqa.distributed.attention: blocks of this rank's queries, and the pieces of keys that come by for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gqa.arguments import Array, as_array, dtype_name
from gqa.distributed.agreement import Communicator
from gqa.distributed.pieces import AT_ONCE, PIECE, Pieces
from gqa.dtypes import compute_dtype
from gqa.options import Options
from gqa.quantization import Quantized
from gqa.sequences import RUN_COLUMNS, Store, Table, Tensor, table
from gqa.subtrees import (
    MERGE_COLUMNS,
    STATE_SEQUENCE_COLUMNS,
    SUBTREE_COLUMNS,
    attend_states,
    joins,
    merge_subtrees,
    most_waiting,
    state_shape,
)

LEAST_BLOCK, LARGEST_BLOCK = 64, 4096  # queries
FEW_ROWS = 64  # of a KV head: from so many on, the bits of a row do not depend on which others are there


class PromptCall:
    """What this rank computes, and what all ranks pass on meanwhile.

    q, k, v: in options.layout; everyone: the positions of each rank's tokens; bounds: the window with causal in it.
    """

    def __init__(
        self, comm: Communicator, q: Array, k: Tensor, v: Tensor, everyone: list[Table],
        bounds: tuple[int | None, int | None], options: Options,
    ) -> None:  # fmt: skip
        self._q, self._everyone, self._bounds = q, everyone, bounds
        self._own = everyone[comm.Get_rank()]
        self._token_axis = 2 if options.layout == "bhsd" else 1
        self._batch, self._q_heads = q.shape[0], q.shape[3 - self._token_axis]
        self._kv_heads, v_head_dim = k.shape[3 - self._token_axis], v.shape[3]
        self._pieces = Pieces(comm, k, v, everyone, options.layout)
        dtypes = ["float32" if isinstance(x, Quantized) else dtype_name("k or v", x) for x in (k, v)]
        dtype = compute_dtype(dtype_name("q", q), *dtypes)
        # The core checks what is left to check, and makes the output, without a row of any sequence.
        self._mask_shape = (self._batch, len(self._own), self._pieces.tokens)
        none = table([], STATE_SEQUENCE_COLUMNS), table([], RUN_COLUMNS)
        made = attend_states(q, [(k, v)], *none, options, mask_shape=self._mask_shape)
        self._out, self._lse = made if isinstance(made, tuple) else (made, None)
        self._options = options._replace(window=bounds, out=None)

        levels = most_waiting(self._pieces.count)
        row = levels * self._batch * self._q_heads * (v_head_dim + 2) * np.dtype(dtype).itemsize
        rows = max(map(len, everyone), default=0)
        if self._pieces.count > AT_ONCE:
            rows = min(rows, LARGEST_BLOCK, max(LEAST_BLOCK, self._pieces.piece_bytes // max(row, 1)))
        self._block_rows = max(rows, 1)
        needs_states = any(last - first > AT_ONCE for first, last in self._needs())
        waiting = state_shape(
            levels * self._batch * needs_states, self._q_heads, min(self._block_rows, len(self._own)), v_head_dim
        )
        self._waiting = np.empty(waiting, dtype)

    def result(self) -> Any:
        """The output, or (output, lse)."""
        return self._out if self._lse is None else (self._out, self._lse)

    def run(self) -> Exception | None:
        """Attend; where this rank has an error, which is returned, it goes on passing pieces on."""
        error: Exception | None = None
        for i, (first, last) in enumerate(self._needs()):
            block = slice(i * self._block_rows, min((i + 1) * self._block_rows, len(self._own)))
            busy = block.start < block.stop
            numbers: list[int] = []
            if first < last:
                self._pieces.post(first)
            for piece in range(first, last):
                self._pieces.wait()
                if piece + 1 < last:
                    self._pieces.post(piece + 1)
                if busy and error is None and last - first > AT_ONCE:
                    error = _caught(self._attend_piece, block, piece, numbers)
            if busy and error is None:
                error = _caught(self._end, block, first, last, numbers)
        return error

    def _needs(self) -> list[tuple[int, int]]:
        """Pieces [first, last) that any rank needs for each block."""
        needs = []
        left, right = self._bounds
        for start in range(0, max(map(len, self._everyone), default=0), self._block_rows):
            some = np.concatenate([positions[start : start + self._block_rows] for positions in self._everyone])
            first = 0 if left is None else max(int(some.min()) - left, 0)
            last = self._pieces.tokens if right is None else min(int(some.max()) + right + 1, self._pieces.tokens)
            needs.append((first // PIECE, -(-last // PIECE)))
        return needs

    def _attend_piece(self, block: slice, piece: int, numbers: list[int]) -> None:
        """Add the states of a block's rows over a piece to those that wait, which are of pieces `numbers`."""
        for level in joins(numbers, piece):
            rows = [(b, 0, block.stop - block.start, 0, level * self._batch + b, 2) for b in range(self._batch)]
            names = numbers[level : level + 2]
            slots = [((names[i], (level + i) * self._batch + b)) for b in range(self._batch) for i in range(2)]
            self._merge(block, rows, slots, states=self._waiting[:, :, : block.stop - block.start])
        self._attend(block, piece, piece + 1, len(numbers), self._waiting[:, :, : block.stop - block.start])
        numbers.append(piece)

    def _end(self, block: slice, first: int, last: int, numbers: list[int]) -> None:
        """The rows of a block, in the output."""
        if numbers:
            rows = [(b, 0, block.stop - block.start, 0, 0, len(numbers)) for b in range(self._batch)]
            slots = [(n, level * self._batch + b) for b in range(self._batch) for level, n in enumerate(numbers)]
            made = self._merge(block, rows, slots, out=self._rows(self._out, block))
        elif self._pieces.tokens * self._q_heads < FEW_ROWS * self._kv_heads:
            made = self._attend_among_all()
        else:
            made = self._attend(block, first, last, 0, None)
        if self._lse is not None:
            here = (slice(None), slice(None), block) if self._token_axis == 2 else (slice(None), block)
            self._lse[here] = made[1]

    def _merge(
        self, block: slice, rows: Sequence[tuple[int, ...]], slots: Sequence[tuple[int, ...]], *,
        out: Array | None = None, states: Array | None = None,
    ) -> Any:  # fmt: skip
        return merge_subtrees(
            self._rows(self._q, block), self._kv_heads, self._waiting[:, :, : block.stop - block.start],
            table(rows, MERGE_COLUMNS), table(slots, SUBTREE_COLUMNS),
            self._options._replace(mask=None, program=None, out=out), states=states, whole_queries=self._pieces.tokens,
        )  # fmt: skip

    def _attend(self, block: slice, first: int, last: int, level: int, states: Array | None) -> Any:
        """Attend pieces [first, last): into the states of a level, or into the output."""
        stores: list[Store] = []
        runs: list[tuple[int, int, int]] = []
        for piece in range(first, last):
            runs += [(len(stores) + rank, token, n) for rank, token, n in self._pieces.runs(piece)]
            stores += self._pieces.stores(piece)
        origin, end = first * PIECE, min(last * PIECE, self._pieces.tokens)
        sequences, all_runs = [], []
        for start, count in stretches(self._own[block]):
            row = block.start + start
            for b in range(self._batch):
                place = (b, start, count, 0, origin, int(self._own[row]) - origin, end - origin, b, origin, len(runs))
                sequences.append((*place, level * self._batch + b, self._pieces.tokens, row))
                all_runs += [(store, b, token, n) for store, token, n in runs]
        options = self._options if states is not None else self._options._replace(out=self._rows(self._out, block))
        return attend_states(
            self._rows(self._q, block), stores,
            table(sequences, STATE_SEQUENCE_COLUMNS), table(all_runs, RUN_COLUMNS), options, states,
            mask_shape=self._mask_shape, whole_queries=self._pieces.tokens,
        )  # fmt: skip

    def _attend_among_all(self) -> Any:
        """The output of a prompt of few rows: this rank's, in their places among all of the prompt, others 0."""
        tokens, axis = self._pieces.tokens, self._token_axis

        def among_all(x: Array, token_axis: int) -> Array:
            shape = list(x.shape)
            shape[token_axis] = tokens
            everything = np.zeros(shape, x.dtype)
            everything[(slice(None),) * token_axis + (self._own,)] = x
            return everything

        mask = self._options.mask
        if mask is not None:
            mask = as_array("mask", mask)
            mask = among_all(np.broadcast_to(mask, (self._batch, self._q_heads, len(self._own), tokens)), 2)
        runs = [(rank, b, token, n) for b in range(self._batch) for rank, token, n in self._pieces.runs(0)]
        sequences = [
            (b, 0, tokens, 0, 0, 0, tokens, b, 0, len(runs) // self._batch, 0, tokens, 0) for b in range(self._batch)
        ]
        made = attend_states(
            among_all(self._q, axis), self._pieces.stores(0), table(sequences, STATE_SEQUENCE_COLUMNS),
            table(runs, RUN_COLUMNS), self._options._replace(mask=mask),
            mask_shape=(self._batch, tokens, tokens),
        )  # fmt: skip
        out, lse = made if isinstance(made, tuple) else (made, None)
        self._out[...] = out.take(self._own, axis)
        return self._out, None if lse is None else lse.take(self._own, axis)

    def _rows(self, x: Array, block: slice) -> Array:
        return x[:, :, block] if self._token_axis == 2 else x[:, block]


def _caught(work: Any, *arguments: Any) -> Exception | None:
    try:
        work(*arguments)
    except Exception as error:
        return error
    return None


def stretches(positions: Table) -> list[tuple[int, int]]:
    """(start, count) of consecutive positions."""
    starts = np.flatnonzero(np.diff(positions, prepend=positions[:1] - 2) != 1)
    ends = np.append(starts[1:], len(positions))
    return [(int(start), int(end - start)) for start, end in zip(starts, ends)]
