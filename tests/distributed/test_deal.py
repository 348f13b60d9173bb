"""How tokens are dealt to ranks: in aligned subtrees, evenly; and what a rank holds is counted right."""

import itertools

import pytest

import gqa.distributed
from gqa.distributed.deal import PIECE, Deal
from thread_ranks import run_on_ranks

RANKS = [1, 2, 3, 5, 8]


def some_tokens(last):
    """Numbers of tokens up to `last`, around the ends of pieces as well."""
    step = max(last // 300 // PIECE, 1) * PIECE
    return sorted({t + d for t in range(0, last - 1, step) for d in (0, 1, PIECE // 2)})


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("window", [None, 100, 5 * PIECE, 3000 * PIECE])
def test_blocks_are_subtrees(ranks, window):
    end = 0
    for block in Deal(ranks, 0, window).blocks(0, 16 * 9 * ranks * PIECE + 5):
        pieces = -(-(block.last - block.first) // PIECE)
        assert block.first == end
        assert pieces & (pieces - 1) == 0 or block.last == 16 * 9 * ranks * PIECE + 5
        assert block.first % (PIECE * pieces) == 0 or pieces & (pieces - 1)
        assert block.first <= block.piece * PIECE < block.last
        assert 0 <= block.owner < ranks
        end = block.last


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("window", [None, 100, 5 * PIECE, 3000 * PIECE])
def test_what_a_rank_holds(ranks, window):
    last = 16 * 9 * ranks * PIECE
    for rank in range(ranks):
        deal = Deal(ranks, rank, window)
        ends = [(block.last, block.owner == rank) for block in deal.blocks(0, last)]
        for tokens in some_tokens(last):
            first = held = 0
            for end, own in ends:
                held += own * max(min(end, tokens) - first, 0)
                first = end
            assert deal.held(tokens) == held


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(("window", "capacity"), [(100, 100), (5 * PIECE, 6 * PIECE), (3000 * PIECE, 3000 * PIECE)])
def test_a_ring_has_room_for_any_stretch(ranks, window, capacity):
    for deal in (Deal(ranks, rank, window) for rank in range(ranks)):
        room = deal.room(capacity)
        assert room <= capacity
        assert all(deal.held(t + capacity) - deal.held(t) <= room for t in some_tokens(4 * capacity))


@pytest.mark.parametrize("ranks", RANKS)
def test_shares_are_even(ranks):
    deals = [Deal(ranks, rank) for rank in range(ranks)]
    for tokens in some_tokens(16 * 9 * ranks * PIECE):
        share = max(deal.held(tokens) for deal in deals)
        assert share <= tokens / ranks + max(PIECE, tokens / ranks / 16)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("length", [0, 1, 7, 100, 3000, 8192])
def test_zigzag_is_balanced_under_a_causal_mask(ranks, length):
    positions = run_on_ranks(ranks, lambda comm: gqa.distributed.zigzag(length, comm))
    assert sorted(itertools.chain(*(x.tolist() for x in positions))) == list(range(length))
    assert all((x[1:] > x[:-1]).all() for x in positions)
    work = [int((x + 1).sum()) for x in positions]
    assert max(work) <= min(work) + length * 4 + ranks
