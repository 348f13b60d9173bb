"""Whole ONNX models: a layer that shares the cache of another one, and a decoder exported from PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

import gqa
import gqa.onnx
from compare import assert_same_bits

onnx = pytest.importorskip("onnx")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_layer_with_a_shared_cache(dtype, rng):
    """key and value are empty names; the head size is that of the past."""
    batch, queries, past, heads, kv_heads, head_dim = 1, 4, 16, 8, 4, 32
    helper, element_of = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype
    inputs = {
        "query": rng.standard_normal((batch, queries, heads * head_dim)).astype(dtype),
        "past_key": rng.standard_normal((batch, kv_heads, past, head_dim)).astype(dtype),
        "past_value": rng.standard_normal((batch, kv_heads, past, head_dim)).astype(dtype),
        "seqlens_k": np.array([past - 1], np.int32),
        "total_seq_len": np.array([past], np.int32),
    }
    node = helper.make_node(
        "GroupQueryAttention", ["query", "", "", *list(inputs)[1:]], ["attn_output", "present_key", "present_value"],
        domain="com.microsoft", num_heads=heads, kv_num_heads=kv_heads, scale=float(head_dim**-0.5), do_rotary=0,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "layer",
        [helper.make_tensor_value_info(name, element_of(x.dtype), x.shape) for name, x in inputs.items()],
        [helper.make_tensor_value_info(name, element_of(np.dtype(dtype)), None) for name in node.output],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)

    outputs = gqa.onnx.run(model.SerializeToString(), inputs)
    q = inputs["query"].reshape(batch, queries, heads, head_dim).swapaxes(1, 2)
    want = gqa.attention(q, inputs["past_key"], inputs["past_value"], causal=True)
    assert outputs["attn_output"].shape == (1, 4, 256)
    assert_same_bits(outputs["attn_output"], want.swapaxes(1, 2).reshape(1, 4, 256))
    assert_same_bits(outputs["present_key"], inputs["past_key"])
    assert_same_bits(outputs["present_value"], inputs["past_value"])


# ---- a decoder from PyTorch -----------------------------------------------------------------------------------

LAYERS, HEADS, KV_HEADS, HEAD_DIM, WIDTH, WORDS = 2, 6, 2, 16, 96, 50


def decoder(torch):
    """Two layers of attention over a past and a gated feed-forward; returns logits and the caches."""
    nn, functional = torch.nn, torch.nn.functional

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(2))
            self.q = nn.Linear(WIDTH, HEADS * HEAD_DIM, bias=False)
            self.kv = nn.Linear(WIDTH, 2 * KV_HEADS * HEAD_DIM, bias=False)
            self.out = nn.Linear(HEADS * HEAD_DIM, WIDTH, bias=False)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

        def forward(self, x, mask, past_key, past_value):
            y = self.norms[0](x)
            q = self.q(y).unflatten(2, (HEADS, HEAD_DIM)).transpose(1, 2)
            k, v = self.kv(y).unflatten(2, (2, KV_HEADS, HEAD_DIM)).permute(2, 0, 3, 1, 4)
            k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
            x = x + self.out(y.transpose(1, 2).flatten(2))
            gate, y = self.up(self.norms[1](x)).chunk(2, -1)
            return x + self.down(functional.silu(gate) * y), k, v

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.layers = nn.Embedding(WORDS, WIDTH), nn.ModuleList(Layer() for _ in range(LAYERS))
            self.head = nn.Linear(WIDTH, WORDS)

        def forward(self, tokens, mask, pasts):
            x, caches = self.words(tokens), []
            for layer, (past_key, past_value) in zip(self.layers, pasts):
                x, k, v = layer(x, mask, past_key, past_value)
                caches += [k, v]
            return (self.head(x), *caches)

    torch.manual_seed(0)
    return Decoder().eval()


@pytest.mark.filterwarnings("ignore")  # of the exporter, about itself
def test_a_decoder_from_pytorch(tmp_path):
    """A prompt, then steps of one token over the caches that the model returned: the logits are PyTorch's."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    model = decoder(torch)

    def arguments(tokens, caches):
        queries, past = tokens.shape[1], caches[0].shape[2]
        mask = torch.ones(queries, past + queries, dtype=torch.bool).tril(past)
        return tokens, mask, [tuple(caches[i : i + 2]) for i in range(0, 2 * LAYERS, 2)]

    empty = [torch.zeros(2, KV_HEADS, 3, HEAD_DIM) for _ in range(2 * LAYERS)]
    sample = arguments(torch.zeros(2, 5, dtype=torch.int64), empty)
    batch, queries, past, keys = (torch.export.Dim(name) for name in ("batch", "queries", "past", "keys"))
    cache = {0: batch, 2: past}
    path = tmp_path / "decoder.onnx"
    torch.onnx.export(
        model, sample, path, dynamo=True, opset_version=23, verbose=False,
        input_names=["tokens", "mask", *(f"past{i}" for i in range(2 * LAYERS))],
        dynamic_shapes=({0: batch, 1: queries}, {0: queries, 1: keys}, [(cache, cache)] * LAYERS),
    )  # fmt: skip
    nodes = [node.op_type for node in onnx.load_model(path).graph.node]
    assert nodes.count("Attention") == LAYERS

    words = torch.randint(0, WORDS, (2, 9), generator=torch.Generator().manual_seed(1))
    theirs = mine = [torch.zeros(2, KV_HEADS, 0, HEAD_DIM) for _ in range(2 * LAYERS)]
    for start, end in ((0, 6), (6, 7), (7, 8), (8, 9)):
        tokens = words[:, start:end]
        with torch.no_grad():
            want, *theirs = model(*arguments(tokens, theirs))
        names = [x.name for x in onnx.load_model(path).graph.input]
        tokens, mask, pairs = arguments(tokens, [torch.as_tensor(x) for x in mine])
        inputs = dict(zip(names, (x.numpy() for x in (tokens, mask, *(x for pair in pairs for x in pair)))))
        logits, *mine = gqa.onnx.run(path, inputs).values()
        np.testing.assert_allclose(logits, want.numpy(), rtol=0, atol=2e-6)
        for a, b in zip(mine, theirs):
            np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=2e-6)
