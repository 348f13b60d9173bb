"""torch's flex_attention, run eagerly, with the functions that gqa gets: the same functions, the same results."""

from __future__ import annotations

import numpy as np
import pytest

import gqa
from compare import assert_close

torch = pytest.importorskip("torch")
flex = pytest.importorskip("torch.nn.attention.flex_attention")

HEADS, ROWS, KEYS = 4, 30, 90
slopes = torch.exp2(-torch.arange(1, HEADS + 1).float())
table = torch.linspace(-1, 1, HEADS * 33).reshape(HEADS, 33)
buckets = torch.arange(-20, 21).abs().clamp(max=15)
documents = torch.repeat_interleave(torch.arange(6), 15)
windows = torch.arange(HEADS) * 5 + 3
lengths = torch.tensor([20, 55])
related = torch.tril(torch.ones(7, 7, dtype=torch.bool))
related[3, 1] = related[6, 2] = False

SCORES = {
    "alibi": lambda s, b, h, q, k: s - slopes[h] * (q - k).abs(),
    "relative bias": lambda s, b, h, q, k: s + table[h, (k - q).clamp(-16, 16) + 16],
    "buckets": lambda s, b, h, q, k: s + table[h, buckets[(k - q).clamp(-20, 20) + 20]],
    "soft cap": lambda s, b, h, q, k: 2 * torch.tanh(s / 2),
    "bias by key": lambda s, b, h, q, k: s + table[b, k % 33],
    "causal": lambda s, b, h, q, k: torch.where(q >= k, s, -float("inf")),
}
MASKS = {
    "causal": lambda b, h, q, k: q >= k,
    "sliding window": lambda b, h, q, k: (q >= k) & (q - k < 17),
    "dilated window": lambda b, h, q, k: (q >= k) & (q - k < 27) & ((q - k) % 3 == 0),
    "windows of heads": lambda b, h, q, k: (q >= k) & (q - k < windows[h]),
    "prefix": lambda b, h, q, k: (k < lengths[b]) | (q >= k),
    "documents": lambda b, h, q, k: (documents[q] == documents[k]) & (q >= k),
    "tree": lambda b, h, q, k: (k < 10) | related[(q - 10).clamp(0, 6), (k - 10).clamp(0, 6)],
    "neighbourhood": lambda b, h, q, k: ((q % 9 - k % 9).abs() <= 1) & ((q // 9 - k // 9).abs() <= 1),
    "tiles": lambda b, h, q, k: (q % 9 // 4 == k % 9 // 4) & (q // 9 // 4 == k // 9 // 4),
    "checkerboard": lambda b, h, q, k: (q + k) % 2 == 0,
}
COMBINED = {
    "or_masks": lambda: flex.or_masks(MASKS["documents"], MASKS["sliding window"]),
    "and_masks": lambda: flex.and_masks(MASKS["prefix"], flex.or_masks(MASKS["tiles"], MASKS["checkerboard"])),
    "noop_mask": lambda: flex.noop_mask,
}


def check(rng, score_mod=None, mask_mod=None):
    """float64, in which both are exact enough to tell a wrong key from rounding; torch's rows begin at key 0."""
    q = torch.from_numpy(rng.standard_normal((2, HEADS, ROWS, 16)))
    k, v = torch.from_numpy(rng.standard_normal((2, 2, 2, KEYS, 16)))
    blocks = None if mask_mod is None else flex.create_block_mask(mask_mod, 2, HEADS, ROWS, KEYS, device="cpu")
    expected = flex.flex_attention(q, k, v, score_mod=score_mod, block_mask=blocks, enable_gqa=True)
    out = gqa.attention(q, k, v, score_mod=score_mod, mask_mod=mask_mod, query_offset=0)
    assert_close(out, np.asarray(expected), 1e3)  # their tables are of float32


pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.mark.parametrize("name", SCORES)
def test_score_mod(name, rng):
    check(rng, SCORES[name])


@pytest.mark.parametrize("name", [*MASKS, *COMBINED])
def test_mask_mod(name, rng):
    check(rng, mask_mod=MASKS[name] if name in MASKS else COMBINED[name]())


def test_both(rng):
    check(rng, SCORES["alibi"], MASKS["documents"])
