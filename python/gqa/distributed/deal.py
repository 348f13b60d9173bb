"""Which rank holds which tokens of a sharded cache, and where: the rules are those of csrc/deal.h."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from gqa import _core

PIECE: int = _core.SPLIT_KEYS
MOST_TOKENS = 1 << 56  # more than any memory holds


class Block(NamedTuple):
    """Tokens [first, last) of a sequence, of a subtree to which `piece` belongs."""

    piece: int
    first: int
    last: int
    owner: int


@dataclass(frozen=True)
class Deal:
    """How the tokens of any sequence are dealt.

    window: of a cache that keeps the last tokens alone, in which blocks stop growing; None: they go on.
    """

    ranks: int
    rank: int
    window: int | None = None

    def blocks(self, first: int, last: int) -> Iterator[Block]:
        """The blocks that tokens [first, last) lie in, cut to those."""
        return map(Block._make, _core.deal_blocks(self.ranks, self._window, first, last))

    def held(self, token: int) -> int:
        """How many of the tokens before `token` this rank holds."""
        return _core.deal_held(self.ranks, self.rank, self._window, token)

    def room(self, capacity: int) -> int:
        """How many tokens this rank may have to hold of any `capacity` consecutive ones, from the first on without a
        window.
        """
        return _core.deal_room(self.ranks, self.rank, self._window, min(capacity, MOST_TOKENS))

    @property
    def _window(self) -> int:
        return min(self.window or 0, MOST_TOKENS)
