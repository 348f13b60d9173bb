"""Models on gqa against the same models on transformers' own eager attention: logits, and tokens that they generate."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import gqa.transformers  # noqa: E402
from tiny_models import DECODERS, ENCODER_DECODERS, model_named, prompt  # noqa: E402

gqa.transformers.register()

TOLERANCE = {"rtol": 0, "atol": 2e-5}
PADDINGS = {"no padding": 0, "left padding": 11}
CACHES = {
    "DynamicCache": lambda config: {},
    "StaticCache": lambda config: {"cache_implementation": "static"},
    "KVCache": lambda config: {"past_key_values": gqa.transformers.KVCache(config, capacity=8)},
}


@pytest.fixture(autouse=True)
def one_thread():
    """Such small models are slower with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


def generated(model, implementation, tokens, mask, **options):
    model.set_attn_implementation(implementation)
    return model.generate(tokens, attention_mask=mask, **{"max_new_tokens": 64, "do_sample": False, **options})


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", DECODERS)
def test_logits(name, padding):
    model = model_named(name)
    tokens, mask = prompt(padding=PADDINGS[padding])
    results = []
    for implementation in ("eager", "gqa"):
        model.set_attn_implementation(implementation)
        results.append(model(tokens, attention_mask=mask).logits[mask.bool()])
    assert results[0].std() > 0.3
    torch.testing.assert_close(*results, **TOLERANCE)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", DECODERS)
def test_generated_tokens(name, padding):
    model = model_named(name)
    tokens, mask = prompt(padding=PADDINGS[padding])
    expected = generated(model, "eager", tokens, mask)
    assert len(set(expected[0, tokens.shape[1] :].tolist())) > 8
    for cache, options in CACHES.items():
        result = generated(model, "gqa", tokens, mask, **options(model.config))
        assert result.tolist() == expected.tolist(), cache


@pytest.mark.parametrize("name", ["Llama", "Mistral", "GptOss"])
def test_half_precision(name):
    """As near to float64 as eager attention is."""
    tokens, mask = prompt(padding=5)
    model = model_named(name, experts_implementation="eager") if name == "GptOss" else model_named(name)
    exact = model.double()(tokens, attention_mask=mask).logits[mask.bool()]
    model = model_named(name).to(torch.bfloat16)
    errors = {}
    for implementation in ("eager", "gqa"):
        model.set_attn_implementation(implementation)
        logits = model(tokens, attention_mask=mask).logits[mask.bool()]
        assert logits.dtype == torch.bfloat16
        errors[implementation] = (logits.double() - exact).square().mean().sqrt()
    assert errors["gqa"] < 1.1 * errors["eager"]


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoder(name):
    model = model_named(name)
    tokens, mask = prompt(padding=11)
    mask = mask.flip(1)  # on the right
    results = []
    for implementation in ("eager", "gqa"):
        model.set_attn_implementation(implementation)
        results.append(model(tokens, attention_mask=mask, decoder_input_ids=tokens[:, :7]).logits)
    torch.testing.assert_close(*results, **TOLERANCE)
    expected = generated(model, "eager", tokens, mask)
    caches = [gqa.transformers.KVCache(model.config) for _ in range(2)]
    for options in ({}, {"past_key_values": transformers.EncoderDecoderCache(*caches)}):
        assert generated(model, "gqa", tokens, mask, **options).tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "GptOss"])
def test_beam_search(name):
    model = model_named(name)
    tokens, mask = prompt(padding=11)
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 24}
    expected = generated(model, "eager", tokens, mask, **options)
    for cache in ("DynamicCache", "KVCache"):
        result = generated(model, "gqa", tokens, mask, **CACHES[cache](model.config), **options)
        assert result.tolist() == expected.tolist(), cache


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Mistral"])
def test_assisted_decoding(name):
    """An assistant with other weights proposes tokens, of which some are taken back from the cache."""
    model, assistant = model_named(name), model_named(name)
    with torch.no_grad():
        for parameter in assistant.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.004)
    tokens, mask = prompt(batch=1)
    expected = generated(model, "eager", tokens, mask)
    assistant.set_attn_implementation("gqa")
    for options in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 3}):
        for cache in ("DynamicCache", "KVCache"):
            result = generated(model, "gqa", tokens, mask, **CACHES[cache](model.config), **options)
            assert result.tolist() == expected.tolist(), cache


def test_a_conversation_goes_on_with_the_same_cache():
    """A prompt, an answer, a second prompt: chunks of several tokens behind tokens that are there."""
    for name in ("Llama", "Mistral", "Gemma3"):
        model = model_named(name)
        tokens = prompt(batch=1, length=60)[0]
        model.set_attn_implementation("eager")
        expected = model(tokens).logits
        model.set_attn_implementation("gqa")
        for capacity in (4, 256):
            cache = gqa.transformers.KVCache(model.config, capacity=capacity)
            chunks = [model(x, past_key_values=cache).logits for x in tokens.split([20, 1, 1, 30, 8], dim=1)]
            torch.testing.assert_close(torch.cat(chunks, dim=1), expected, **TOLERANCE)
            assert cache.get_seq_length() == 60


def test_training_with_dropout():
    """The same keys are dropped for the same seed; what a layer gives is eager attention's."""
    for name in ("Llama", "Gemma2", "GptOss"):
        model = model_named(name, attention_dropout=0.5).train()
        tokens, mask = prompt(padding=11)
        results = []
        for implementation in ("eager", "gqa"):
            model.set_attn_implementation(implementation)
            torch.manual_seed(0)
            results.append(model(tokens, attention_mask=mask).logits[mask.bool()])
        torch.testing.assert_close(*results, **TOLERANCE)


def test_another_name():
    gqa.transformers.register("another")
    model = model_named("Llama")
    expected = model(prompt()[0]).logits
    model.set_attn_implementation("another")
    torch.testing.assert_close(model(prompt()[0]).logits, expected, **TOLERANCE)
    with pytest.raises(TypeError, match="name is 3, expected a string"):
        gqa.transformers.register(3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled():
    """One graph, in which attention is one operator for each layer."""
    model = model_named("Llama")
    tokens, _ = prompt()
    expected = model(tokens).logits
    model.set_attn_implementation("gqa")
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(tokens, use_cache=False).logits, expected, **TOLERANCE)
    assert len(graphs) == 1
    assert sum("gqa.attention" in str(node.target) for node in graphs[0].graph.nodes) == 3
