"""Where the tokens of a GroupQueryAttention call stand: how many came before, which of them the past holds."""

from __future__ import annotations

from typing import NamedTuple

from gqa.arguments import Array
from gqa.onnx.group_query.attributes import GroupQueryAttributes
from gqa.onnx.group_query.shapes import GroupQueryShapes


class Place(NamedTuple):
    """One batch entry, in numbers of tokens."""

    end: int  # all tokens, those of the query included
    before: int  # tokens before the query: the position of its first row
    stored: int  # of the tokens before the query, the last ones, which the past holds in its first rows
    dropped: int  # of the stored tokens and then those of the query, the first ones, which the present leaves out
    written: int  # tokens of the query, from its first on, that are stored or dropped; the others are padding


def places(seqlens_k: Array, total: int, sizes: GroupQueryShapes, attributes: GroupQueryAttributes) -> list[Place]:
    """Check seqlens_k, which holds the number of tokens less one, and place every batch entry.

    Where the query is as long as total_sequence_length the call is a first prompt: nothing came before, whatever the
    past holds, and queries past a sequence's end are padding, which only a full cache stores.
    """
    sizes.check_total(total)
    queries, prompt = sizes.queries, sizes.queries == total
    least = 0 if prompt else max(queries - 1, 0)
    found = []
    for b, last in enumerate(seqlens_k.ravel().tolist()):
        if not least <= last < total:
            raise ValueError(
                f"seqlens_k[{b}] is {last}, expected {least} to {total - 1}: the number of tokens less one, at "
                f"total_sequence_length {total} with {queries} tokens in query"
            )
        end, before = last + 1, 0 if prompt else last + 1 - queries
        if sizes.sliding:
            window = int(attributes.local_window_size)
            stored = resident(before, sizes.capacity, window)
            dropped = stored + end - before - resident(end, sizes.capacity, window)
            found.append(Place(end, before, stored, dropped, end - before))
        else:
            found.append(Place(end, before, before, 0, queries))
    return found


def resident(tokens: int, capacity: int, window: int) -> int:
    """How many of the last tokens a sliding cache holds: it drops capacity - window + 1 of them whenever it is full."""
    step = capacity - window + 1
    return tokens - step * max(-((capacity - tokens) // step), 0)
