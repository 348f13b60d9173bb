"""Gradients through score functions: those of the options that say the same, and central differences."""

import numpy as np
import pytest

import gqa
from compare import assert_same_bits

B, HEADS, KV_HEADS, S, T, D = 2, 4, 2, 70, 230, 24
SLOPES = 2.0 ** -np.arange(1, HEADS + 1)
DOCUMENTS = np.sort(np.random.default_rng(3).integers(0, 4, (B, T)), axis=1)
POSITIONS = np.arange(S)[:, None] + T - S
BIAS = (-SLOPES[:, None, None] * np.abs(POSITIONS - np.arange(T))).astype(np.float32)
SAME_DOCUMENT = (DOCUMENTS[:, T - S :, None] == DOCUMENTS[:, None])[:, None]


def alibi(score, b, h, q_idx, kv_idx):
    return score - SLOPES[h] * np.abs(q_idx - kv_idx)


def soft_cap(score, b, h, q_idx, kv_idx):
    return 2.5 * np.tanh(score / 2.5)


def cap_and_document(score, b, h, q_idx, kv_idx):
    return np.where(DOCUMENTS[b, q_idx] == DOCUMENTS[b, kv_idx], 2.5 * np.tanh(score / 2.5), -np.inf)


def causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


def document(b, h, q_idx, kv_idx):
    return DOCUMENTS[b, q_idx] == DOCUMENTS[b, kv_idx]


def unchanged(score, b, h, q_idx, kv_idx):
    return score


SAME = {
    "alibi": ({"score_mod": alibi}, {"mask": BIAS}),
    "alibi after a soft cap": ({"score_mod": alibi, "softcap": 3.0}, {"mask": BIAS, "softcap": 3.0}),
    "soft cap": ({"score_mod": soft_cap}, {"softcap": 2.5}),
    "soft cap and mask": ({"score_mod": cap_and_document}, {"softcap": 2.5, "mask": SAME_DOCUMENT}),
    "causal": ({"mask_mod": causal}, {"causal": True}),
    "document": ({"mask_mod": document}, {"mask": SAME_DOCUMENT}),
    "document, causal": ({"mask_mod": document, "causal": True}, {"mask": SAME_DOCUMENT, "causal": True}),
    "both": ({"score_mod": soft_cap, "mask_mod": causal}, {"softcap": 2.5, "causal": True}),
    "unchanged": ({"score_mod": unchanged}, {}),
}


def arguments(rng, dtype=np.float32, batch=B):
    q, dout = rng.standard_normal((2, batch, HEADS, S, D)).astype(dtype)
    k, v = rng.standard_normal((2, batch, KV_HEADS, T, D)).astype(dtype)
    return dout, q, k, v


def gradients(dout, q, k, v, num_threads=None, **options):
    out, lse = gqa.attention(q, k, v, return_lse=True, **options)
    return gqa.attention_vjp(dout, q, k, v, out, lse, num_threads=num_threads, **options)


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [None, 30.0])  # the second: logs of denominators that a float is too coarse for
def test_functions_are_as_the_options_that_say_the_same(isa, rng, name, dtype, scale):
    tensors = arguments(rng, dtype)
    functions, options = SAME[name]
    got = gradients(*tensors, scale=scale, **functions)
    expected = gradients(*tensors, scale=scale, **options)
    tolerance = {np.float32: 1e-5, np.float64: 1e-12}[dtype] * (1 if scale is None else 20)
    for x, y in zip(got[:3], expected[:3]):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.abs(y).max(), strict=True)


@pytest.mark.parametrize("name", ["alibi", "both", "document, causal"])
def test_bits_do_not_depend_on_threads_or_batch(isa, rng, name):
    tensors = arguments(rng)
    functions, _ = SAME[name]
    one = gradients(*tensors, num_threads=1, **functions)
    for x, y in zip(gradients(*tensors, num_threads=5, **functions)[:3], one[:3]):
        assert_same_bits(x, y)
    first = gradients(*(x[:1] for x in tensors), **functions)
    for x, y in zip(first[:3], one[:3]):
        assert_same_bits(x, y[:1])


def test_the_slope_of_any_function(rng):
    """Central differences in float64, where the slope is the score itself, follows from a table, or has a kink."""
    table = rng.standard_normal((HEADS, T))

    def function(score, b, h, q_idx, kv_idx):
        return np.where(kv_idx % 3 == 0, 0.5 * score * score, np.maximum(score, 0.2 * score) * table[h, kv_idx])

    q, k, v = (rng.standard_normal((1, heads, n, 5)) for heads, n in ((HEADS, 9), (KV_HEADS, 40), (KV_HEADS, 40)))
    dout = rng.standard_normal(q.shape)
    got = gradients(dout, q, k, v, score_mod=function)

    def value(q, k, v):
        return (gqa.attention(q, k, v, score_mod=function) * dout).sum()

    tensors = [q, k, v]
    for i, gradient in enumerate(got[:3]):
        step = rng.standard_normal(gradient.shape)
        shifted = [[x + sign * 1e-6 * step if i == j else x for j, x in enumerate(tensors)] for sign in (1, -1)]
        difference = (value(*shifted[0]) - value(*shifted[1])) / 2e-6
        assert (gradient * step).sum() == pytest.approx(difference, rel=1e-6)


def test_packed_sequences(isa, rng):
    """b is the number of the sequence."""
    lengths = np.array([0.1, 2.0])

    def function(score, b, h, q_idx, kv_idx):
        return score * lengths[b] - SLOPES[h] * (q_idx - kv_idx)

    q, dout = rng.standard_normal((2, 90, HEADS, D)).astype(np.float32)
    k, v = rng.standard_normal((2, 90, KV_HEADS, D)).astype(np.float32)
    ends = [0, 30, 90]
    options = {"score_mod": function, "mask_mod": causal}
    out, lse = gqa.varlen_attention(q, k, v, ends, ends, return_lse=True, **options)
    got = gqa.varlen_attention_vjp(dout, q, k, v, ends, ends, out, lse, **options)
    for n in range(2):
        rows = slice(ends[n], ends[n + 1])
        one = [x[rows].swapaxes(0, 1)[None] for x in (dout, q, k, v)]

        def alone(score, b, h, q_idx, kv_idx, factor=lengths[n]):
            return score * factor - SLOPES[h] * (q_idx - kv_idx)

        expected = gradients(*one, score_mod=alone, mask_mod=causal)
        for x, y in zip(got[:3], expected[:3]):
            np.testing.assert_allclose(x[rows], y[0].swapaxes(0, 1), rtol=0, atol=1e-5 * np.abs(y).max())


def test_nan_behind_a_mask_does_not_show(isa, rng):
    dout, q, k, v = arguments(rng)
    plain = gradients(dout, q, k, v, mask_mod=lambda b, h, q_idx, kv_idx: kv_idx < 100, score_mod=soft_cap)
    k[:, :, 100:], v[:, :, 100:] = np.nan, np.nan
    got = gradients(dout, q, k, v, mask_mod=lambda b, h, q_idx, kv_idx: kv_idx < 100, score_mod=soft_cap)
    for x, y in zip(got[:3], plain[:3]):
        assert_same_bits(x, y)
    assert not got.dk[:, :, 100:].any()
    assert not got.dv[:, :, 100:].any()
