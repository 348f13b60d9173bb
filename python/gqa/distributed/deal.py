"""Which rank holds which tokens of a sharded cache, and where.

Tokens are dealt in blocks, each of which is a subtree of the tree in which attention merges its parts: 2^n pieces of
SPLIT_KEYS tokens, from a multiple of that. A rank hands over one state for each of its blocks, so few large blocks
travel less; many small ones are even. Blocks are dealt in turn, and are of one piece as long as each rank has fewer
than 32 of them. From there on they grow with the sequence: whenever it has doubled, so have they. So no rank has more
than a sixteenth too many tokens once each has 16 pieces, and the states of a rank grow by no more than 16 with each
doubling: what travels hardly depends on the context.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from gqa import _core

PIECE: int = _core.SPLIT_KEYS
ROUNDS = 16  # in which ranks take their turns before blocks grow


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
        while first < last:
            piece = first // PIECE
            level = self._level(piece)
            end = min(((piece >> level) + 1 << level) * PIECE, last)
            yield Block(piece, first, end, (piece >> level) % self.ranks)
            first = end

    def held(self, token: int) -> int:
        """How many of the tokens before `token` this rank holds."""
        total, level, first = 0, 0, 0
        while first < token:
            block = PIECE << level
            turn = block * self.ranks
            end = 2 * ROUNDS * turn
            last = token if level == self._most_levels() else min(token, end)
            turns, rest = divmod(last - first, turn)
            total += turns * block + min(max(rest - self.rank * block, 0), block)
            first, level = last, level + 1
        return total

    def room(self, capacity: int) -> int:
        """How many tokens this rank may have to hold of any `capacity` consecutive ones, from the first on without a
        window.
        """
        if self.window is None:
            return self.held(capacity)
        block = PIECE << self._level(-(-self.window // PIECE))
        return min(capacity, capacity // self.ranks + 2 * block) if self.ranks > 1 else capacity

    def _level(self, piece: int) -> int:
        """The blocks of a piece's neighbourhood have 2^level pieces."""
        return min(max((piece // (ROUNDS * self.ranks)).bit_length() - 1, 0), self._most_levels())

    def _most_levels(self) -> int:
        if self.window is None:
            return 64
        return max((-(-self.window // PIECE) // (ROUNDS * self.ranks)).bit_length() - 1, 0)
