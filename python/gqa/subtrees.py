"""Raw states of parts of a sequence's keys, which put together have the bits of one call over all of them.

A call cuts keys at fixed multiples of their absolute numbers, and merges the states of what lies between in the order
of a balanced tree over those numbers. A state is (o, m, l) for each row: the sum of values times weights, the largest
base-2 logit, the sum of the weights. Here the tree is opened: `attend_states` hands over the state of each sequence,
whose keys must all lie in one subtree of pieces of `SPLIT_KEYS` keys, [i, i + 1) * 2^n, and `merge_subtrees` takes the
states of subtrees and goes on from there. The subtrees may be of different sizes, as long as they are disjoint.

States lie in arrays of shape (slots, Hq, S, Dv + 2), of the dtype of the lse: each row is o, then m, then l. What comes
of them does not depend on who has computed which.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gqa import _core
from gqa.arguments import Array
from gqa.options import Options
from gqa.sequences import SEQUENCE_COLUMNS, Store, Table, named_stores

# Of sequences: those of gqa.sequences, a slot, how many keys all of the sequence has, and the mask row of the first
# query; of merges: batch, token, queries, padding, slot, number of subtrees; of subtrees: the number of any of their
# pieces, and a slot.
STATE_SEQUENCE_COLUMNS = SEQUENCE_COLUMNS + 3
MERGE_COLUMNS, SUBTREE_COLUMNS = 6, 2


def state_shape(slots: int, q_heads: int, queries: int, v_head_dim: int) -> tuple[int, int, int, int]:
    """The shape of an array of states."""
    return slots, q_heads, queries, v_head_dim + 2


def most_waiting(pieces: int) -> int:
    """How many subtrees wait at once, at most, while so many pieces are added one after another."""
    return pieces.bit_length() + 1


def joins(numbers: list[int], upcoming: int) -> Iterator[int]:
    """Merge what is complete once the next piece is `upcoming`: yields where in `numbers` two become one.

    The rule is that of csrc/kernels/merge_tree.h: the smallest subtree with two pieces is as high as the first bit in
    which their numbers differ.
    """
    while len(numbers) > 1 and numbers[-2] ^ numbers[-1] < numbers[-1] ^ upcoming:
        yield len(numbers) - 2
        numbers.pop()


def attend_states(
    q: Array, stores: list[Store], sequences: Table, runs: Table, options: Options, states: Array | None = None, *,
    mask_shape: tuple[int, int, int] = (0, 0, 0), whole_queries: int = 0,
) -> Any:  # fmt: skip
    """Put the states of the rows of each sequence, over its keys, in its slot of `states`; or, without those, end them.

    whole_queries: of how many queries of the sequence in the call that the result must equal, these are some, which
    decides the arithmetic; 0: those there are.
    """
    return _core.attend_states(q, named_stores(stores), (sequences, runs, mask_shape), options, (states, whole_queries))


def merge_subtrees(
    q: Array, kv_heads: int, subtrees: Array, merges: Table, numbers: Table, options: Options, *,
    states: Array | None = None, whole_queries: int = 0,
) -> Any:  # fmt: skip
    """Merge states: out, or (out, lse), for the rows of q, of which only shape and dtype matter.

    If `states` is given, which may be `subtrees`, rows are not ended: the states of the larger subtrees go there.
    """
    return _core.merge_subtrees(q, kv_heads, subtrees, (merges, numbers, whole_queries), options, states)
