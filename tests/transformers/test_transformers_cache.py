"""The cache for models against transformers' own: what it returns, keeps and takes back; read in place by gqa."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer  # noqa: E402

import gqa.transformers  # noqa: E402
from gqa.transformers import attention_interface  # noqa: E402
from gqa.transformers.cache_layers import CacheLayer, StoredTokens  # noqa: E402
from gqa.transformers.masks import described_mask  # noqa: E402
from tiny_models import model_named, prompt  # noqa: E402

gqa.transformers.register()

CHUNKS = {
    "a prompt and tokens": [20, 1, 1, 1],
    "tokens": [1] * 12,
    "chunks": [3, 5, 2, 70, 1, 9],
    "a long prompt": [150, 1, 2],
}
# What int8 and bfloat16 keep of numbers of about 1.
TOLERANCE = {None: 0, "bfloat16": 0.02, "int8": 0.03}


def layers(window):
    """Ours and transformers' own."""
    own = DynamicLayer() if window is None else DynamicSlidingWindowLayer(sliding_window=window)
    return CacheLayer(window=window, capacity=4), own


def tokens(count, seed, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, count, 8, generator=generator), torch.randn(batch, 2, count, 6, generator=generator)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("window", [None, 2, 4, 9])
@pytest.mark.parametrize("stored", TOLERANCE)
def test_what_an_update_returns(stored, window, chunks):
    layer, own = layers(window)
    layer = CacheLayer(window=window, capacity=4, stored=stored)
    for seed, count in enumerate(CHUNKS[chunks]):
        if own.is_initialized:
            assert layer.get_mask_sizes(count) == own.get_mask_sizes(count)
        results, expected = layer.update(*tokens(count, seed)), own.update(*tokens(count, seed))
        assert layer.get_seq_length() == own.get_seq_length()
        for x, y in zip(results, expected):
            assert (x.shape, x.dtype) == (y.shape, y.dtype)
            torch.testing.assert_close(x + 0, y, rtol=0, atol=TOLERANCE[stored])
        for x, y in ((layer.keys, own.keys), (layer.values, own.values)):
            torch.testing.assert_close(x, y, rtol=0, atol=TOLERANCE[stored])
    assert layer.get_max_length() == own.get_max_length()


@pytest.mark.parametrize("window", [None, 9])
def test_what_a_layer_takes_back(window):
    layer, own = layers(window)
    if window and not hasattr(own, "activate_past_recording"):
        pytest.skip("this version of transformers takes nothing back from windows")
    for x in (layer, own):
        x.update(*tokens(20, 0))
        if window:
            x.activate_past_recording()
    for x in (layer, own):
        x.update(*tokens(5, 1))
        x.crop(-3)
        x.crop(0)
        x.update(*tokens(30, 2))
        x.crop(-30)
    assert layer.get_seq_length() == own.get_seq_length() == 22
    torch.testing.assert_close(layer.keys, own.keys, rtol=0, atol=0)
    layer.crop(20)  # what to keep
    layer.crop(30)
    assert layer.get_seq_length() == 20


@pytest.mark.parametrize("stored", TOLERANCE)
@pytest.mark.parametrize("window", [None, 4])
def test_batches(window, stored):
    layer, own = layers(window)
    layer = CacheLayer(window=window, stored=stored)
    for x in (layer, own):
        x.update(*tokens(3, 0))
        x.reorder_cache(torch.tensor([1, 0]))
        x.update(*tokens(3, 1))
        x.batch_repeat_interleave(3)
        x.update(*tokens(3, 2, batch=6))
        x.batch_select_indices(torch.tensor([4, 0, 1]))
        x.update(*tokens(3, 3, batch=3))
        x.batch_select_indices(torch.tensor([True, False, True]))
    torch.testing.assert_close(layer.values, own.values, rtol=0, atol=TOLERANCE[stored])
    assert layer.batch_size == 2
    other = copy.deepcopy(layer)
    layer.reset()
    assert (layer.get_seq_length(), other.get_seq_length()) == (0, 12)
    torch.testing.assert_close(other.values, own.values, rtol=0, atol=TOLERANCE[stored])


def test_before_the_first_tokens():
    layer = CacheLayer()
    for method in ("reset", "activate_past_recording", "offload", "prefetch"):
        getattr(layer, method)()
    layer.crop(-1)
    layer.reorder_cache(torch.tensor([0]))
    layer.batch_repeat_interleave(2)
    assert (layer.keys, layer.values, layer.get_seq_length()) == (None, None, 0)
    assert layer.get_mask_sizes(3) == (3, 0)


# ---- read in place -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", TOLERANCE)
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("padding", [0, 5])
def test_attention_in_the_cache(stored, window, padding, monkeypatch):
    """Tokens that come one or a few at a time are attended where they lie: no copy of what is stored is made."""
    monkeypatch.setattr(CacheLayer, "tokens", lambda *_: pytest.fail("stored tokens are copied"))
    layer, own = layers(window)
    layer = CacheLayer(window=window, stored=stored, capacity=4)
    for seed, count in enumerate([20, 1, 7, 1, 40, 1]):
        query = torch.randn(2, 4, count, 8)
        lengths, position = own.get_mask_sizes(count), own.get_seq_length()
        if seed == 0:
            lengths = (count, 0)
        attended = torch.arange(position + count) >= torch.tensor([0, padding])[:, None]
        mask = described_mask(2, count, lengths[0], position, lengths[1], window_function(window), attended)
        results = []
        for x in (layer, own):
            key, value = x.update(*tokens(count, seed))
            options = {"softcap": 5.0, "s_aux": torch.tensor([0.5, 1, -1, 0])}
            results.append(
                attention_interface.attention_forward(torch.nn.Module(), query, key, value, mask, **options)[0]
            )
        assert isinstance(layer.update(*tokens(1, 9))[0], StoredTokens) == (stored is not None or window is not None)
        layer.crop(-1)
        torch.testing.assert_close(*results, rtol=0, atol=max(TOLERANCE[stored], 2e-6))


def window_function(window):
    masking = transformers.masking_utils
    return masking.causal_mask_function if window is None else masking.sliding_window_causal_mask_function(window)


def test_a_step_writes_in_place():
    layer = CacheLayer(capacity=64)
    layer.update(*tokens(20, 0))
    where = layer.keys.data_ptr()
    key, _ = layer.update(*tokens(1, 1))
    assert key.data_ptr() == layer.keys.data_ptr() == where
    assert type(key) is torch.Tensor


def test_stored_tokens_that_are_no_more():
    layer = CacheLayer(window=4)
    key, _ = layer.update(*tokens(3, 0))
    layer.update(*tokens(1, 1))
    with pytest.raises(RuntimeError, match="tokens 0 to 3 are read after the cache went on to 4 tokens"):
        key.sum()


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "gqa"])
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma3", "GptOss"])
def test_any_implementation_may_use_it(name, implementation):
    if (name, implementation) == ("GptOss", "sdpa"):
        pytest.skip("this model has no sdpa")
    model = model_named(name)
    text, mask = prompt(padding=11)
    options = {"attention_mask": mask, "max_new_tokens": 30, "do_sample": False}
    model.set_attn_implementation(implementation)
    expected = model.generate(text, **options)
    cache = gqa.transformers.KVCache(model.config)
    assert model.generate(text, past_key_values=cache, **options).tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, "int8", torch.float64])
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma3"])
def test_stored_dtypes(name, dtype):
    """Logits of a prompt in pieces, as near as what is stored allows; the same in one piece and in several."""
    model = model_named(name)
    text = prompt(batch=1, length=40)[0]
    with torch.no_grad():
        expected = model(text).logits
        model.set_attn_implementation("gqa")
        results = []
        for pieces in ([40], [20] + [1] * 20):
            cache = gqa.transformers.KVCache(model.config, dtype=dtype)
            results.append(
                torch.cat([model(x, past_key_values=cache).logits for x in text.split(pieces, dim=1)], dim=1)
            )
    exact = dtype == torch.float64
    torch.testing.assert_close(*results, rtol=0, atol=1e-5 if exact else 2e-3)  # a key may round the other way
    torch.testing.assert_close(results[0], expected, rtol=0, atol=1e-5 if exact else 0.15 * expected.std().item())
    kept = cache.layers[0].cache
    assert kept.dtype == str(dtype).removeprefix("torch.")


def test_layers_follow_the_configuration():
    cache = gqa.transformers.KVCache(model_named("Gemma3").config)
    assert [layer.sliding_window for layer in cache.layers] == [9, None, 9]
    assert cache.is_sliding == [True, False, True]
    assert all(layer.is_croppable and not layer.is_compileable for layer in cache.layers)
    cache = gqa.transformers.KVCache(capacity=4)
    cache.update(*tokens(3, 0), layer_idx=1)
    assert [type(layer) for layer in cache.layers] == [CacheLayer] * 2
    config = transformers.Qwen3NextConfig(layer_types=["linear_attention", "full_attention"], num_hidden_layers=2)
    other, layer = gqa.transformers.KVCache(config).layers
    assert type(layer) is CacheLayer
    assert type(other) is type(transformers.DynamicCache(config=config).layers[0])


def test_refused():
    with pytest.raises(TypeError, match="dtype is complex64, expected float32"):
        gqa.transformers.KVCache(dtype=torch.complex64)
    with pytest.raises(ValueError, match="capacity is -1, expected at least 0"):
        gqa.transformers.KVCache(capacity=-1)
    with pytest.raises(NotImplementedError, match="use_cache=False"):
        gqa.transformers.KVCache().update(*(x.requires_grad_() for x in tokens(3, 0)), layer_idx=0)
