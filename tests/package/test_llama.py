"""The Llama example: cached generation against full recomputation, logits against transformers, weights from files."""

import dataclasses
import importlib.util
import json
import runpy
import sys

import numpy as np
import pytest

from repository import ROOT
from thread_ranks import run_on_ranks

PATH = ROOT / "examples" / "llama.py"


@pytest.fixture(scope="module")
def llama():
    spec = importlib.util.spec_from_file_location("llama_example", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def model(llama):
    config = llama.Config(vocab_size=97, hidden_size=64, intermediate_size=160, num_hidden_layers=3, head_dim=8)
    return llama.Llama(config, llama.random_weights(config))


def all_logits(model, tokens, dtype="float32"):
    """Logits at every position, computed without anything cached before."""
    return model.logits(model(tokens, model.new_caches(*tokens.shape, dtype)))


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9}])
def test_cached_generation_equals_full_recomputation(llama, model, rng, sampling):
    tokens = rng.integers(0, 97, (2, 9))
    draws = np.random.default_rng(3)
    for token in llama.generate(model, tokens, 30, seed=3, **sampling):
        np.testing.assert_array_equal(token, llama.sample(all_logits(model, tokens)[:, -1], draws, **sampling))
        tokens = np.concatenate([tokens, token[:, None]], axis=1)
    assert tokens.shape == (2, 39)
    assert len(np.unique(tokens[:, 9:])) > 10


def test_logits_do_not_depend_on_chunks(model, rng):
    tokens = rng.integers(0, 97, (2, 40))
    caches = model.new_caches(2, 40)
    chunks = [model.logits(model(chunk, caches)) for chunk in np.split(tokens, [1, 2, 7, 33], axis=1)]
    np.testing.assert_allclose(np.concatenate(chunks, axis=1), all_logits(model, tokens), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("dtype", "error"), [("float16", 3e-3), ("bfloat16", 2e-2), ("int8", 3e-2)])
def test_caches_in_other_dtypes(model, rng, dtype, error):
    tokens = rng.integers(0, 97, (2, 40))
    expected = all_logits(model, tokens)
    difference = all_logits(model, tokens, dtype) - expected
    assert 0 < np.linalg.norm(difference) < error * np.linalg.norm(expected)


def test_sampling_follows_the_probabilities(llama):
    logits = np.log(np.array([[0.05, 0.4, 0.15, 0.3, 0.1]], np.float32)).repeat(20000, axis=0)
    for options, expected in [
        ({"temperature": 1.0}, [0.05, 0.4, 0.15, 0.3, 0.1]),
        ({"temperature": 0.5}, np.square([0.05, 0.4, 0.15, 0.3, 0.1]) / 0.285),
        ({"temperature": 1.0, "top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"temperature": 1.0, "top_k": 99}, [0.05, 0.4, 0.15, 0.3, 0.1]),
        ({"temperature": 1.0, "top_p": 0.75}, [0, 8 / 17, 3 / 17, 6 / 17, 0]),
        ({"temperature": 1.0, "top_p": 0.0}, [0, 1, 0, 0, 0]),
        ({}, [0, 1, 0, 0, 0]),
    ]:
        tokens = llama.sample(logits, np.random.default_rng(0), **options)
        np.testing.assert_allclose(np.bincount(tokens, minlength=5) / 20000, expected, atol=0.015)
        np.testing.assert_array_equal(tokens, llama.sample(logits, np.random.default_rng(0), **options))


def test_weights_that_do_not_fit(llama, model):
    weights = dict(model.weights)
    del weights["model.norm.weight"]
    with pytest.raises(ValueError, match=r"model.norm.weight has shape None, but the configuration has \(64,\)"):
        llama.Llama(model.config, weights)
    with pytest.raises(ValueError, match=r"model.norm.bias has shape \(64,\), but the configuration has None"):
        llama.Llama(model.config, model.weights | {"model.norm.bias": np.zeros(64, np.float32)})


def test_other_architectures_are_refused(llama, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma"}))
    with pytest.raises(ValueError, match="has model_type 'gemma', expected 'llama'"):
        llama.Config.read(tmp_path / "config.json")


@pytest.mark.parametrize("options", [[], ["--temperature", "0.7", "--top-k", "50", "--cache-dtype", "int8"]])
def test_command_line(monkeypatch, capsys, options):
    monkeypatch.setattr(sys, "argv", [str(PATH), "--tokens", "12", *options])
    runpy.run_path(str(PATH), run_name="__main__")
    out, err = capsys.readouterr()
    assert len(out.split()) == 12
    assert "prompt of 64 tokens" in err
    assert "12/12" in err


def test_sharded_caches(llama, model):
    """Two ranks, which are threads, generate the tokens of one."""
    prompt = np.array([[5, 90, 7], [1, 2, 3]])
    want = list(llama.generate(model, prompt, 10))
    for got in run_on_ranks(2, lambda comm: list(llama.generate(model, prompt, 10, comm=comm))):
        np.testing.assert_array_equal(got, want)


def test_command_line_with_files(llama, model, monkeypatch, capsys, tmp_path):
    """Text in and out, up to a token that ends it."""
    save_file = pytest.importorskip("safetensors.numpy").save_file
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    save_file(model.weights, tmp_path / "model.safetensors")
    tokens = [int(token[0]) for token in llama.generate(model, np.array([[5, 90, 7]]), 20)]
    end = next(token for token in tokens[3:] if token not in tokens[:3])
    config = dataclasses.asdict(model.config) | {"model_type": "llama", "eos_token_id": [end]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(sys, "argv", [str(PATH), "--tokens", "20", "--folder", str(tmp_path), "--text", "w5 w90 w7"])
    llama.main()
    assert capsys.readouterr().out.split() == [f"w{i}" for i in tokens[: tokens.index(end) + 1]]


def test_reading_weights_names_the_package_it_needs(llama, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(SystemExit, match="reading weights needs the package safetensors: pip install"):
        llama.read_weights(tmp_path)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS = {
    "multi-head": {"num_key_value_heads": 8},
    "grouped heads": {"num_key_value_heads": 2},
    "one KV head, tied embeddings": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "llama3 scaling, head_dim given": {"head_dim": 16, "rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "yarn scaling": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
}


@pytest.fixture(params=CONFIGS)
def hugging_face(request):
    """A LlamaForCausalLM with random weights, larger than its initial ones so that attention is not uniform."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 101,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
    }
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | CONFIGS[request.param])).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5 + (1 if "norm" in name else 0))
    return model


def their_logits(model, tokens):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.float().numpy()


def test_logits_equal_those_of_transformers(llama, hugging_face, rng, tmp_path):
    pytest.importorskip("safetensors")
    hugging_face.save_pretrained(tmp_path)
    model = llama.Llama(llama.Config.read(tmp_path / "config.json"), llama.read_weights(tmp_path))
    tokens = rng.integers(0, 101, (2, 100))
    np.testing.assert_allclose(all_logits(model, tokens), their_logits(hugging_face, tokens), rtol=0, atol=2e-5)


@pytest.mark.parametrize("hugging_face", ["grouped heads"], indirect=True)
def test_bfloat16_weights_in_several_files(llama, hugging_face, rng, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    with torch.no_grad():
        for parameter in hugging_face.parameters():
            parameter.copy_(parameter.bfloat16())
    tokens = rng.integers(0, 101, (2, 20))
    expected = their_logits(hugging_face, tokens)
    hugging_face.bfloat16().save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = llama.Llama(llama.Config.read(tmp_path / "config.json"), llama.read_weights(tmp_path))
    np.testing.assert_allclose(all_logits(model, tokens), expected, rtol=0, atol=2e-5)
