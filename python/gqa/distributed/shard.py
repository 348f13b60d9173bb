"""Shard: one rank's slots of a cache whose tokens are dealt out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gqa.caches.slots import Slots, SlotSizes
from gqa.distributed.deal import Deal
from gqa.sequences import spans

if TYPE_CHECKING:
    from typing_extensions import Self


class Shard(Slots):
    """Slots for the tokens that a deal gives to a rank, as many as `Deal.room` says; the n-th is in slot n % room.

    Lengths, capacity and window are those of whole sequences, the same on every rank.
    """

    def __init__(self, deal: Deal, sizes: SlotSizes) -> None:
        self.deal = deal
        self.room = deal.room(sizes.capacity)
        super().__init__(*sizes)

    @property
    def dealt(self) -> tuple[Any, int, int]:
        """What the core is given of it."""
        return self.native, self.deal.ranks, self.deal.rank

    def places(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        for block in self.deal.blocks(first, last):
            if block.owner == self.deal.rank:
                before = self.deal.held(block.first)
                for held, count in spans(before, before + block.last - block.first, self.room):
                    yield block.first + held - before, held % self.room, count

    def _room(self) -> int:
        return self.room

    def _empty(self, batch: int, capacity: int) -> Self:
        sizes = SlotSizes(batch, self.kv_heads, capacity, self.head_dims, self.dtype, self.layout, self.window)
        return type(self)(self.deal, sizes)
