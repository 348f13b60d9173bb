"""gqa.nn.MultiHeadAttention by its definition, in float64."""

from __future__ import annotations

import numpy as np

import oracle
from gqa.nn import MultiHeadAttention


def make(num_heads=4, in_features=12, *args, bias_rng=5, **options):
    """A layer whose biases and scales are not the trivial ones it starts with."""
    layer = MultiHeadAttention(num_heads, in_features, *args, **{"rng": 0} | options)
    rng = np.random.default_rng(bias_rng)
    for part in (layer.query, layer.key, layer.value, layer.out):
        if layer.use_bias:
            part.bias = rng.standard_normal(part.bias.shape).astype(layer.dtype)
    if layer.normalize_qk:
        for norm in (layer.query_ln, layer.key_ln):
            norm.scale = rng.uniform(0.5, 1.5, norm.scale.shape).astype(layer.dtype)
    return layer


def projected(layer, inputs, rounded=lambda x: x):
    """Queries, keys and values (..., length, heads, head_dim) in float64, `rounded` where the layer rounds."""
    norms = (layer.query_ln, layer.key_ln, None)
    for x, part, norm in zip(inputs, (layer.query, layer.key, layer.value), norms):
        y = np.einsum("...f,fhd->...hd", oracle.wide(x), oracle.wide(part.kernel))
        y = rounded(y + oracle.wide(part.bias) if layer.use_bias else y)
        if norm is not None:
            y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
            y = rounded(y * oracle.wide(norm.scale))
        yield y


def reference(layer, inputs_q, inputs_k=None, inputs_v=None, *, mask=None, is_causal=False):
    """The layer's result in float64, rounding to its dtype where it does."""

    def rounded(x):
        return x.astype(layer.dtype).astype(np.float64)

    inputs_k = inputs_q if inputs_k is None else inputs_k
    q, k, v = projected(layer, (inputs_q, inputs_k, inputs_k if inputs_v is None else inputs_v), rounded)
    leading, heads, queries, keys = q.shape[:-3], layer.num_heads, q.shape[-3], k.shape[-3]
    if mask is not None:
        mask = np.broadcast_to(mask != 0, (*leading, heads, queries, keys)).reshape(-1, heads, queries, keys)
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    attended, _ = oracle.attention(q, k, v, mask=mask, causal=is_causal, query_offset=0, layout="bshd")
    out = np.einsum("...hd,hdf->...f", rounded(attended), oracle.wide(layer.out.kernel))
    out = out + oracle.wide(layer.out.bias) if layer.use_bias else out
    return out.reshape(*leading, queries, layer.out_features)


def assert_near(actual, expected):
    """Errors of a few roundings of sums of values of about 1; half precision may round an intermediate otherwise."""
    tolerance = {"float64": 1e-13, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}[actual.dtype.name]
    np.testing.assert_allclose(oracle.wide(actual), oracle.wide(expected), rtol=tolerance, atol=tolerance)
