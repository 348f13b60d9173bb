"""Masks as descriptions: which are, that they stand for transformers' own, and that no array is made of them."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from transformers import masking_utils  # noqa: E402

import gqa.transformers  # noqa: E402
from gqa.transformers import attention_interface, masks  # noqa: E402
from gqa.transformers.masks import DescribedMask, Pattern, described_mask, pattern_of  # noqa: E402
from tiny_models import model_named, prompt  # noqa: E402

gqa.transformers.register()

CAUSAL = masking_utils.causal_mask_function
FUNCTIONS = {
    "causal": (CAUSAL, Pattern(causal=True)),
    "all": (masking_utils.bidirectional_mask_function, Pattern()),
    "sliding": (masking_utils.sliding_window_causal_mask_function(4), Pattern(causal=True, window=(3, None))),
    "sliding both ways": (masking_utils.sliding_window_bidirectional_mask_function(4), Pattern(window=(4, 4))),
    "sliding alone": (masking_utils.sliding_window_overlay(4), Pattern(window=(3, None))),
    "chunks": (masking_utils.chunked_causal_mask_function(4, torch.zeros(2, dtype=torch.int64)), None),
    "two windows": (
        masking_utils.and_masks(*(masking_utils.sliding_window_overlay(w) for w in (3, 4)), CAUSAL),
        None,
    ),
    "causal or": (masking_utils.or_masks(CAUSAL, masking_utils.sliding_window_overlay(2)), None),
    "somebody's own": (lambda b, h, q, k: (k <= q) & (k % 2 == 0), None),
}
SIZES = {  # queries, keys, positions of the first of each
    "prompt": (7, 7, 0, 0),
    "chunk": (3, 9, 6, 0),
    "token": (1, 9, 8, 0),
    "room for tokens to come": (3, 16, 4, 0),
    "a ring": (2, 5, 9, 6),
}
PADDINGS = {"none": None, "left": [5, 0], "all there": [0, 0]}


def attended(size, padding):
    queries, keys, query_position, key_position = SIZES[size]
    if PADDINGS[padding] is None:
        return None
    tokens = min(query_position + queries, key_position + keys)
    return torch.arange(tokens) >= torch.tensor(PADDINGS[padding])[:, None]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_against_transformers_own(function, size, padding):
    """The mask, and attention by its description."""
    mask_function, pattern = FUNCTIONS[function]
    assert pattern_of(mask_function) == pattern
    arguments = 2, *SIZES[size], mask_function, attended(size, padding)
    expected = masking_utils.sdpa_mask(*arguments, allow_is_causal_skip=False)
    mask = described_mask(*arguments, allow_is_causal_skip=False)
    assert isinstance(mask, DescribedMask) == (pattern is not None)
    assert (mask.shape, mask.dtype, mask.dim()) == (expected.shape, expected.dtype, 4)
    assert torch.equal(mask & True, expected)
    queries, keys, *_ = SIZES[size]
    query, key, value = (torch.randn(2, h, n, 8) for h, n in ((4, queries), (2, keys), (2, keys)))
    results = [
        attention_interface.attention_forward(torch.nn.Module(), query, key, value, x)[0]
        for x in (described_mask(*arguments, allow_is_causal_skip=False), expected)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=2e-6)


def test_no_mask_where_all_is_seen():
    every = masking_utils.bidirectional_mask_function
    ones = torch.ones(2, 9, dtype=torch.bool)
    for mask in (None, ones):
        assert described_mask(2, 3, 9, 0, 0, every, mask, allow_is_bidirectional_skip=True) is None
        assert described_mask(2, 3, 9, 0, 0, every, mask) is not None
    ones[0, 8] = False
    assert described_mask(2, 3, 9, 0, 0, every, ones, allow_is_bidirectional_skip=True) is not None
    assert described_mask(2, 3, 9, 0, 0, CAUSAL, None, allow_is_bidirectional_skip=True) is not None


def test_a_mask_of_another_size_than_the_keys():
    """As where a model puts keys of its own before the others: the mask that it has made of ours counts."""
    query, key = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 5, 8)
    mask = described_mask(1, 3, 3)
    longer = torch.nn.functional.pad(mask, (2, 0), value=True)
    result = attention_interface.attention_forward(torch.nn.Module(), query, key, key, longer)[0]
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, key, longer)
    torch.testing.assert_close(result, expected.transpose(1, 2), rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="mask has shape"):
        attention_interface.attention_forward(torch.nn.Module(), query, key, key, mask)


def test_a_description_is_a_tensor():
    mask = described_mask(2, 3, 5, 2)
    expected = masking_utils.sdpa_mask(2, 3, 5, 2, allow_is_causal_skip=False)
    assert torch.equal(mask[:, :, :, :4], expected[:, :, :, :4])
    assert torch.equal(torch.where(mask, 0.0, -1.0), torch.where(expected, 0.0, -1.0))
    assert torch.equal(mask.to(torch.float32) * 2, expected.float() * 2)
    assert repr(mask) == "DescribedMask((2, 1, 3, 5), torch.bool)"


def test_traced_masks_are_whole():
    torch._dynamo.reset()

    def make(x, skip):
        return described_mask(1, x.shape[1], x.shape[1], allow_is_causal_skip=skip)

    traced = torch.compile(make, backend="eager", fullgraph=True)
    mask = traced(torch.zeros(1, 4), False)
    assert type(mask) is torch.Tensor
    assert torch.equal(mask, torch.ones(1, 1, 4, 4, dtype=torch.bool).tril())
    mask = traced(torch.zeros(1, 4), True)  # which is left out where transformers does so
    assert mask is None or type(mask) is torch.Tensor


@pytest.mark.parametrize("padding", [0, 11])
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma3", "GptOss", "Bart"])
def test_models_make_no_array_of_queries_and_keys(name, padding, monkeypatch):
    """Of any of their masks, in the prompt and in the tokens after it."""
    monkeypatch.setattr(masks.masking_utils, "sdpa_mask", lambda *x, **y: pytest.fail("a whole mask is made"))
    seen = []
    attend = attention_interface.attend_tokens_first
    monkeypatch.setattr(attention_interface, "attend_tokens_first", lambda *x: seen.append(x[3]) or attend(*x))
    model = model_named(name)
    model.set_attn_implementation("gqa")
    tokens, mask = prompt(padding=padding)
    for options in ({}, {"cache_implementation": "static"}):
        model.generate(tokens, attention_mask=mask, max_new_tokens=3, do_sample=False, **options)
    assert len(seen) >= 2 * 3 * 2
    assert {x["mask"].shape[:3] for x in seen if x.get("mask") is not None} == ({(2, 1, 1)} if padding else set())


def test_images_within_text_have_a_whole_mask():
    """Blocks of tokens that see each other both ways."""
    config = model_named("Llama").config
    config._attn_implementation = "gqa"
    blocks = torch.tensor([[-1, 0, 0, 0, -1, -1]])
    mask = masking_utils.create_causal_mask(config, torch.zeros(1, 6, 64), None, None, block_sequence_ids=blocks)
    assert type(mask) is torch.Tensor
    assert mask[0, 0, 1].tolist() == [True] * 4 + [False] * 2


def test_position_biases():
    """T5's, with and without a mask."""
    query, key, bias = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 8), torch.randn(1, 4, 5, 5)
    padding = torch.arange(5) >= torch.tensor([2, 0])[:, None]
    module = torch.nn.Module()
    for mask in (
        described_mask(2, 5, 5),
        described_mask(2, 5, 5, attention_mask=padding),
        described_mask(2, 5, 5, attention_mask=padding).to(torch.bool),
        torch.randn(2, 1, 5, 5),
        None,
    ):
        result = attention_interface.attention_forward(module, query, key, key, mask, position_bias=bias)[0]
        whole = torch.ones(5, 5, dtype=torch.bool).tril() if mask is None else mask
        added = torch.where(whole, bias, -torch.inf) if whole.dtype == torch.bool else bias + whole
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, key, added)
        torch.testing.assert_close(result, expected.transpose(1, 2), rtol=0, atol=2e-6)
