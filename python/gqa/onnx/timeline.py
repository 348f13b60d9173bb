"""Where the tokens of a GroupQueryAttention call stand: how many came before, which of them the past holds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gqa.arguments import Array
from gqa.onnx.group_query_shapes import GroupQueryAttributes, GroupQueryShapes
from gqa.sequences import Table


class Place(NamedTuple):
    """One batch entry, in numbers of tokens."""

    end: int  # all tokens, those of the query included
    before: int  # tokens before the query: the position of its first row
    stored: int  # of the tokens before the query, the last ones, which the past holds in its first rows

    @property
    def first(self) -> int:
        """The position of the token in row 0 of the past."""
        return self.before - self.stored


def places(seqlens_k: Array, total: int, sizes: GroupQueryShapes, attributes: GroupQueryAttributes) -> list[Place]:
    """Check seqlens_k, which holds the number of tokens less one, and place every batch entry.

    Where the query is as long as total_sequence_length the call is a first prompt: nothing came before, whatever the
    past holds, and queries past a sequence's end are padding.
    """
    prompt = sizes.queries == total
    least = 0 if prompt else max(sizes.queries - 1, 0)
    found = []
    for b, last in enumerate(seqlens_k.ravel().tolist()):
        if not least <= last < total:
            raise ValueError(
                f"seqlens_k[{b}] is {last}, expected {least} to {total - 1}: the number of tokens less one, at "
                f"total_sequence_length {total} with {sizes.queries} tokens in query"
            )
        before = 0 if prompt else last + 1 - sizes.queries
        stored = resident(before, sizes.capacity or 0, attributes) if attributes.sliding_window_cache else before
        found.append(Place(last + 1, before, stored))
    return found


def resident(tokens: int, capacity: int, attributes: GroupQueryAttributes) -> int:
    """How many of the last tokens a sliding_window_cache holds: it drops capacity - window + 1 whenever it is full."""
    step = capacity - int(attributes.local_window_size) + 1
    return tokens - step * max(-((capacity - tokens) // step), 0)


def sequences_and_runs(
    found: list[Place], sizes: GroupQueryShapes, attributes: GroupQueryAttributes
) -> tuple[Table, Table]:
    """Tables for the core: the keys of a batch entry are rows of store 0, the past, then of store 1, the new ones.

    A shared past holds the query's own tokens as well. A window of 0 leaves no key to attend.
    """
    sequences, runs = [], []
    for b, (end, before, stored) in enumerate(found):
        first = before - stored
        keys = 0 if attributes.local_window_size == 0 else end - first
        sequences.append((b, 0, sizes.queries, 0, stored, keys, b, first, 2))
        runs += [(0, b, 0, end), (1, b, 0, 0)] if sizes.shared else [(0, b, 0, stored), (1, b, 0, sizes.queries)]
    return np.array(sequences, np.int64).reshape(-1, 9), np.array(runs, np.int64).reshape(-1, 4)
