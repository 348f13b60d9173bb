"""Calls of com.microsoft GroupQueryAttention, and what they must give, in float64."""

from __future__ import annotations

import numpy as np

import gqa.onnx
import oracle
from compare import assert_close

HEADS = {"num_heads": 4, "kv_num_heads": 2}
STEPS = {
    "decode": {"queries": 1, "tokens": (9, 16)},
    "chunk": {"queries": 3, "tokens": (9, 16)},
    "growing": {"queries": 3, "tokens": (5, 19), "total": 19},
    "prompt": {"queries": 7, "tokens": (7, 4), "total": 7},
    "one token": {"queries": 1, "tokens": (1, 1), "total": 1},
    "no batch": {"batch": 0, "tokens": ()},
}
OPTIONS = {  # attributes of the operator, and the same for the oracle
    "plain": ({}, {}),
    "window": ({"local_window_size": 3}, {"window": 3}),
    "window of one": ({"local_window_size": 1}, {"window": 1}),
    "window of none": ({"local_window_size": 0}, {"window": 0}),
    "endless window": ({"local_window_size": 2**62}, {}),
    "bidirectional": ({"causal": 0}, {"causal": 0}),
    "softcap and scale": ({"softcap": 1.5, "scale": 0.7}, {"softcap": 1.5, "scale": 0.7}),
    "scale of zero": ({"scale": 0.0}, {}),
    "smooth": ({"smooth_softmax": 1}, {"sinks": np.zeros(4)}),
}


class Call:
    """Random tokens over a random cache: the inputs of the operator, and the same by heads, (B, S, heads, D)."""

    def __init__(self, rng, dtype=np.float32, batch=2, queries=3, capacity=16, head_dim=8, tokens=(9, 16), total=16):
        self.q, self.k, self.v = (
            rng.standard_normal((batch, queries, heads, head_dim)).astype(dtype) for heads in (4, 2, 2)
        )
        self.past = {
            name: rng.standard_normal((batch, 2, capacity, head_dim)).astype(dtype)
            for name in ("past_key", "past_value")
        }
        self.tokens, self.total = np.array(tokens, int), total
        self.before = np.zeros_like(self.tokens) if queries == total else self.tokens - queries
        self.lengths = {"seqlens_k": self.tokens - 1, "total_sequence_length": total}
        names = {"query": self.q, "key": self.k, "value": self.v}
        self.tensors = {name: x.reshape(batch, queries, x.shape[2] * head_dim) for name, x in names.items()}
        self.inputs = self.tensors | self.past | self.lengths

    def run(self, **changes):
        return gqa.onnx.group_query_attention(**self.inputs | HEADS | changes)

    def cache(self):
        """past_key and past_value with the new tokens: (B, Hkv, max(capacity, total), D), 0 after the last one."""
        batch, queries, kv_heads, head_dim = self.k.shape
        rows = max(self.total, *(x.shape[2] for x in self.past.values()))
        caches = []
        for past, new in zip(self.past.values(), (self.k, self.v)):
            cache = np.zeros((batch, kv_heads, rows, head_dim), new.dtype)
            for b, start in enumerate(self.before):
                cache[b, :, :start] = past[b, :, :start]
                cache[b, :, start : start + queries] = new[b].swapaxes(0, 1)
            caches.append(cache)
        return caches

    def expected(self, caches=None, window=-1, causal=1, bias=None, **options):
        """The output (B, S, Hq, D) in float64."""
        out = np.zeros(self.q.shape)
        for b, (start, end) in enumerate(zip(self.before, self.tokens)):
            keys, values = (x[b : b + 1, :, :end].swapaxes(1, 2) for x in caches or self.cache())
            mask = None if bias is None else bias[b % len(bias), :, :, :end]
            if window != 0:
                out[b] = oracle.attention(
                    self.q[b : b + 1], keys, values, mask=mask, causal=bool(causal), query_offset=start, layout="bshd",
                    window=(window - 1 if window > 0 else None, None), **options,
                )[0][0]  # fmt: skip
            out[b, end - start :] = 0  # padding of a first prompt
        return out

    def check(self, result, want, magnitude=2):
        """Compare the output; magnitude allows for values that are larger, or rounded more than once."""
        assert result.output.dtype == self.q.dtype
        assert_close(result.output, want.reshape(result.output.shape), magnitude)
