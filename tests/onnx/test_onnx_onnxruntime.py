"""GroupQueryAttention against onnxruntime's CPU kernel, on random problems that it supports."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

import gqa.onnx  # noqa: E402
from gqa.onnx.group_query.shapes import INPUTS  # noqa: E402

DTYPES = {"float32": (np.float32, 4e-6), "float16": (np.float16, 2e-3)}


def run_onnxruntime(inputs, attributes, outputs):
    """The outputs of a model of one GroupQueryAttention."""
    helper = onnx.helper
    info = {name: helper.np_dtype_to_tensor_dtype(x.dtype) for name, x in inputs.items()}
    cache = info.get("past_key", info["query"])
    names = [name if name in inputs else "" for name in INPUTS]
    node = helper.make_node("GroupQueryAttention", names, outputs, domain="com.microsoft", **attributes)
    graph = helper.make_graph(
        [node],
        "problem",
        [helper.make_tensor_value_info(name, info[name], x.shape) for name, x in inputs.items()],
        [helper.make_tensor_value_info(x, cache if "present" in x else info["query"], None) for x in outputs],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, inputs)


class Problem:
    """Random inputs and attributes, within the limits of onnxruntime's kernel."""

    def __init__(self, seed, dtype):
        self.rng = rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.query_heads, self.kv_heads = map(int, rng.choice([(4, 2), (6, 2), (3, 1), (4, 4), (8, 1)]))
        self.attributes = {"num_heads": self.query_heads, "kv_num_heads": self.kv_heads}
        self.inputs = {}
        self.kind = str(rng.choice(["prompt", "growing", "buffer", "chunk", "shared", "sliding"]))
        self.rotated = self.maybe(0.4)
        self.head_dim = int(rng.choice([16, 32, 64] if self.rotated else [8, 16, 24, 40, 64]))
        self.place_tokens()
        self.add_tokens()
        if self.rotated:
            self.add_rotary()
        self.add_options()

    def maybe(self, chance):
        return bool(self.rng.random() < chance)

    def floats(self, *shape):
        return self.rng.standard_normal(shape).astype(self.dtype)

    def place_tokens(self):
        """Sizes of batch, query, cache; the number of tokens of each sequence."""
        rng, kind = self.rng, self.kind
        several = self.maybe(0.5)
        self.queries = int(rng.integers(2, 12)) if several or kind == "chunk" else 1
        self.batch = 1 if self.queries > 1 and kind != "prompt" else int(rng.integers(1, 4))
        if kind == "prompt":
            self.total = self.queries
            self.capacity = int(rng.choice([0, self.total, self.total + 5]))
        elif kind in ("growing", "chunk"):
            self.capacity = int(rng.integers(1, 40))
            self.total = self.capacity + self.queries
        else:
            self.total = self.queries + int(rng.integers(1, 40))
            self.capacity = self.total + int(rng.integers(0, 20))
        least = 1 if kind == "prompt" else self.queries
        self.tokens = rng.integers(least, self.total + 1, self.batch)
        self.tokens[rng.integers(self.batch)] = self.total
        if kind == "sliding":
            window = int(rng.integers(1, 12))
            self.capacity = window + int(rng.integers(0, 6))
            self.attributes |= {"local_window_size": window, "sliding_window_cache": 1}

    def add_tokens(self):
        """query, key, value and the past, perhaps packed or quantised."""
        shared = self.kind == "shared"
        queries, keys = self.query_heads * self.head_dim, self.kv_heads * self.head_dim
        query = self.floats(self.batch, self.queries, queries)
        key, value = (self.floats(self.batch, 0 if shared else self.queries, keys) for _ in range(2))
        quantised = self.capacity > 0 and self.dtype == np.float32 and self.maybe(0.25)
        quantised = quantised and (self.kind != "sliding" or self.head_dim % 32 == 0)
        if not shared and self.maybe(0.3):
            self.inputs["query"] = np.concatenate((query, key, value), axis=2)
        else:
            self.inputs |= {"query": query, "key": key, "value": value}
        if self.capacity:
            for name in ("past_key", "past_value"):
                self.inputs[name] = self.floats(self.batch, self.kv_heads, self.capacity, self.head_dim)
        self.inputs["seqlens_k"] = (self.tokens - 1).astype(np.int32)
        self.inputs["total_sequence_length"] = np.array([self.total], np.int32)
        if quantised:
            self.quantise()

    def quantise(self):
        bits, kind = int(self.rng.choice([4, 8])), str(self.rng.choice(["PER_TENSOR", "PER_CHANNEL"]))
        self.attributes |= {"k_quant_type": kind, "v_quant_type": kind, "kv_cache_bit_width": bits}
        shape = (1,) if kind == "PER_TENSOR" else (1, self.kv_heads, 1, self.head_dim)
        for x in "kv":
            self.inputs[f"{x}_scale"] = (self.rng.uniform(0.5, 3, shape) / 2**bits).astype(np.float32)
        for name in ("past_key", "past_value"):
            *rows, channels = self.inputs[name].shape
            low, high, dtype = (-128, 128, np.int8) if bits == 8 else (0, 256, np.uint8)
            width = channels if bits == 8 else channels // 2
            self.inputs[name] = self.rng.integers(low, high, (*rows, width)).astype(dtype)

    def add_rotary(self):
        half = int(self.rng.choice([n for n in (8, 16, 32) if n <= self.head_dim // 2]))
        angles = np.outer(np.arange(self.total + 8), 0.5 ** np.arange(half))
        self.inputs |= {"cos_cache": np.cos(angles).astype(self.dtype), "sin_cache": np.sin(angles).astype(self.dtype)}
        self.attributes |= {"do_rotary": 1, "rotary_interleaved": int(self.maybe(0.5))}
        if self.maybe(0.3):
            first = self.rng.integers(0, 8, (self.batch, 1))
            self.inputs["position_ids"] = (first + np.arange(self.queries)).astype(np.int64)

    def add_options(self):
        rows = (self.queries, self.total)
        if self.maybe(0.3) and "local_window_size" not in self.attributes:
            self.attributes["local_window_size"] = int(self.rng.integers(1, 20))
        elif self.maybe(0.15) and "local_window_size" not in self.attributes:
            self.attributes["causal"] = 0
        if self.maybe(0.3):
            self.attributes["softcap"] = 1.5
        if self.maybe(0.3):
            self.attributes["scale"] = 0.3
        if self.maybe(0.3):
            heads, batch = self.rng.choice([1, self.query_heads]), self.rng.choice([1, self.batch])
            self.inputs["attention_bias"] = self.floats(batch, heads, *rows)
        if self.maybe(0.25):
            self.inputs["head_sink"] = self.floats(self.query_heads)
        elif self.maybe(0.2):
            self.attributes["smooth_softmax"] = 1
        if self.maybe(0.3) and self.kind != "sliding":
            self.attributes["qk_output"] = int(self.rng.choice([1, 2]))

    def defined(self, name, x):
        """`x` with 0 where onnxruntime leaves open what an output holds, or where its kernels disagree."""
        rows = self.tokens[:, None, None]
        if name == "output":  # padding of a prompt
            return np.where((np.arange(self.queries)[:, None] < rows) | (self.kind != "prompt"), x, 0)
        if name == "output_qk":
            padding = (np.arange(self.queries)[:, None] >= rows) & (self.kind == "prompt")
            return np.where((padding | (np.arange(self.total) >= rows))[:, None], 0, x)
        if self.kind == "sliding":
            step = self.capacity - self.attributes["local_window_size"] + 1
            rows = rows - step * np.maximum(np.ceil((rows - self.capacity) / step), 0)
        if self.kind in ("shared", "sliding"):
            return np.where((np.arange(x.shape[2])[:, None] < rows)[:, None], x, 0)
        return x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(120))
def test_same_as_onnxruntime(seed, dtype):
    dtype, tolerance = DTYPES[dtype]
    problem = Problem(seed, dtype)
    names = ["output", "present_key", "present_value"] + ["output_qk"] * ("qk_output" in problem.attributes)
    expected = dict(zip(names, run_onnxruntime(problem.inputs, problem.attributes, names)))
    actual = gqa.onnx.group_query_attention(**problem.inputs, **problem.attributes)._asdict()
    for name, want in expected.items():
        got = actual[name]
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        got, want = (problem.defined(name, x).astype(np.float64) for x in (got, want))
        atol = 0 if "present" in name and not problem.rotated else tolerance
        np.testing.assert_allclose(got, want, rtol=atol, atol=atol, err_msg=name)
