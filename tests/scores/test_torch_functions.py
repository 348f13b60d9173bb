"""Functions written for torch's flex_attention, against torch's own evaluation of them."""

from __future__ import annotations

import numpy as np
import pytest

import gqa
from score_programs import coordinates, evaluated

torch = pytest.importorskip("torch")
slopes = torch.exp2(-torch.arange(1, 4).float())
documents = torch.tensor([0, 0, 1, 1, 1, 2, 2])
bias = torch.linspace(-1, 1, 21).reshape(3, 7)
scalar = torch.tensor(0.75)

SCORES = {
    "alibi": lambda s, b, h, q, k: s + slopes[h] * (k - q),
    "bias": lambda s, b, h, q, k: s + bias[h, k],
    "soft cap": lambda s, b, h, q, k: 20 * torch.tanh(s / 20),
    "causal": lambda s, b, h, q, k: torch.where(q >= k, s, -float("inf")),
    "causal by a tensor": lambda s, b, h, q, k: torch.where(q >= k, s, torch.tensor(-float("inf"))),
    "alibi by exp2": lambda s, b, h, q, k: s + torch.exp2(-((h + 1) * 8.0 / 3)) * (k - q),
    "scalar": lambda s, b, h, q, k: s * scalar + torch.sigmoid(s) - scalar,
    "methods": lambda s, b, h, q, k: (q - k).abs().clamp(max=3).to(torch.float32).mul(0.5).add(s).tanh(),
    "types": lambda s, b, h, q, k: s + (q > k).int() + (q - k).abs().float().sqrt() + k.type_as(s) + s.long(),
    "integers": lambda s, b, h, q, k: s + (q - k) // 2 + (q - k) % 3 + torch.div(q - k, 2, rounding_mode="floor"),
    "logic": lambda s, b, h, q, k: torch.where(torch.logical_and(q > k, ~(h == 1)) | (k == 0), s, s * 2),
    "masked_fill": lambda s, b, h, q, k: s.masked_fill(q < k, -1.5),
    "full_like": lambda s, b, h, q, k: torch.where(q >= k, s, torch.full_like(s, -2.0) + torch.zeros_like(s)),
    "bucket": lambda s, b, h, q, k: s + bias[h, torch.clamp(torch.log2((q - k).abs() + 1).long(), 0, 6)],
    "minimum": lambda s, b, h, q, k: torch.minimum(s, torch.maximum(s * 2, s - 1)) + torch.relu(s) + torch.abs(s),
    "a tensor made within": lambda s, b, h, q, k: s + torch.arange(7)[k],
    "relu": lambda s, b, h, q, k: torch.nn.functional.relu(s) + torch.rsqrt(s * s + 1),
}
MASKS = {
    "document": lambda b, h, q, k: documents[q] == documents[k],
    "window": lambda b, h, q, k: (q >= k) & (q - k <= 2),
    "prefix": lambda b, h, q, k: (k < 3) | (q >= k),
}


def of_torch(function, *scores):
    """The function on torch's tensors, one call for each score, as flex_attention calls it."""
    for axis in range(4):
        coordinate = [None] * 4
        coordinate[3 - axis] = 0
        function = torch.vmap(function, in_dims=(*(0 for _ in scores), *coordinate))
    return function(*scores, torch.arange(2), torch.arange(3), torch.arange(5) + 2, torch.arange(7)).numpy()


@pytest.mark.parametrize("name", SCORES)
def test_score_mod(name):
    score = np.random.default_rng(5).standard_normal((2, 3, 5, 7))
    program = gqa.trace(SCORES[name])
    actual = evaluated(program.plan, program.arrays, {"score": score, **coordinates()})["score"]
    expected = of_torch(SCORES[name], torch.from_numpy(score))
    np.testing.assert_allclose(np.broadcast_to(actual, score.shape), expected, rtol=1e-6, atol=1e-6)


def masks_of_torch():
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    return {
        "and": flex.and_masks(MASKS["document"], flex.or_masks(MASKS["window"], MASKS["prefix"])),
        "or": flex.or_masks(*MASKS.values()),
    }


@pytest.mark.parametrize("name", [*MASKS, "and", "or"])
def test_mask_mod(name):
    function = MASKS[name] if name in MASKS else masks_of_torch()[name]
    program = gqa.trace(mask_mod=function)
    actual = evaluated(program.plan, program.arrays, coordinates())["mask"]
    np.testing.assert_array_equal(np.broadcast_to(actual, (2, 3, 5, 7)), of_torch(function))


def test_tensors_are_kept_as_they_are():
    program = gqa.trace(SCORES["bias"])
    assert program.arrays[0] is bias


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda s, b, h, q, k: s + bias[h], "with 1 indices, expected one for each of its 2 axes"),
        (lambda s, b, h, q, k: s + bias, "index it"),
        (lambda s, b, h, q, k: s + torch.abs(bias)[h, k], "hands it to abs"),
        (lambda s, b, h, q, k: torch.cumsum(s, 0), "calls cumsum"),
        (lambda s, b, h, q, k: s.to(torch.float16), "the dtype float16"),
        (lambda s, b, h, q, k: s.add_(1), "in place: use add"),
        (lambda s, b, h, q, k: s if bool(q > k) else -s, "instead of `if`"),
    ],
)
def test_refused(function, message):
    with pytest.raises((TypeError, ValueError), match=message):
        gqa.trace(function)
