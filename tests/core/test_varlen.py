"""varlen_attention: every sequence as if it were alone, bottom right, whatever lies around it."""

import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gqa
import oracle
from child import output_of
from compare import assert_close, assert_lse_close, assert_same_bits
from sequence_model import MAGNITUDES

Q_LENGTHS = [3, 0, 1, 40, 5, 7, 2]
K_LENGTHS = [5, 4, 300, 40, 0, 3, 1100]
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"causal": True, "window": (20, None)},
    "both sides": {"window": (3, 2)},
    "softcap": {"softcap": 1.5, "scale": 0.3},
    "sinks": {"sinks": np.linspace(-1, 1, 4, dtype=np.float32)},
    "lengths": {"kv_lengths": [5, 0, 299, 17, 0, 1, 900], "causal": True},
}


def cumulated(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def packed(rng, tokens, heads, head_dim, dtype=np.float32):
    return rng.standard_normal((tokens, heads, head_dim)).astype(dtype)


def problem(rng, q_lengths=Q_LENGTHS, k_lengths=K_LENGTHS, dtype=np.float32, gap=0):
    """q, k, v with 4/2 heads of 16/24 channels, and cumulated lengths; `gap` more tokens follow the last sequence."""
    q = packed(rng, sum(q_lengths) + gap, 4, 16, dtype)
    k, v = (packed(rng, sum(k_lengths) + gap, 2, n, dtype) for n in (16, 24))
    return q, k, v, cumulated(q_lengths), cumulated(k_lengths)


def expected(q, k, v, cu_q, cu_k, *, kv_lengths=None, **options):
    """(out, lse) of the oracle, one sequence after another."""
    out, lse = np.zeros((*q.shape[:2], v.shape[2])), np.full(q.shape[:2], -np.inf)
    for n in range(len(cu_q) - 1):
        used = cu_k[n + 1] - cu_k[n] if kv_lengths is None else kv_lengths[n]
        rows, keys = slice(cu_q[n], cu_q[n + 1]), slice(cu_k[n], cu_k[n] + used)
        out[rows], lse[rows] = oracle.attention(q[rows], k[keys], v[keys], layout="bshd", **options)
    return out, lse.T


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(rng, isa, dtype, options):
    arguments = problem(rng, dtype=dtype)
    out, lse = gqa.varlen_attention(*arguments, **options, return_lse=True)
    expected_out, expected_lse = expected(*arguments, **options)
    assert out.dtype == dtype
    assert_close(out, expected_out)
    assert_lse_close(lse, expected_lse)


MASKS = [(7, 4, 40, 1100), (1, 4, 1, 1100), (7, 1, 40, 1), (1, 1, 1, 1), (4, 40, 1100), (1100,)]


@pytest.mark.parametrize("shape", MASKS, ids=str)
@pytest.mark.parametrize("kind", ["bool", "float32", "float64"])
def test_masks_count_from_the_first_query_and_key_of_a_sequence(rng, isa, kind, shape):
    q, k, v, cu_q, cu_k = problem(rng)
    mask = rng.random(shape) < 0.7 if kind == "bool" else rng.standard_normal(shape).astype(kind)
    out, lse = gqa.varlen_attention(q, k, v, cu_q, cu_k, mask=mask, causal=True, return_lse=True)
    whole = np.broadcast_to(mask, (7, 4, 40, 1100))
    for n in range(7):
        rows, keys = slice(cu_q[n], cu_q[n + 1]), slice(cu_k[n], cu_k[n + 1])
        part = whole[n, :, : Q_LENGTHS[n], : K_LENGTHS[n]]
        options = {"mask": part, "causal": True, "layout": "bshd"}
        expected_out, expected_lse = oracle.attention(q[rows], k[keys], v[keys], **options)
        assert_close(out[rows], expected_out, magnitude=2)
        assert_lse_close(lse[:, rows].T, expected_lse)
        assert_same_bits(out[rows], gqa.attention(q[rows], k[keys], v[keys], **options))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_float32_results_of_half_precision(rng, isa, dtype):
    arguments = problem(rng, dtype=dtype)
    rounded, lse = gqa.varlen_attention(*arguments, causal=True, return_lse=True)
    out, same = gqa.varlen_attention(*arguments, causal=True, return_lse=True, out_dtype="float32")
    assert out.dtype == np.float32
    assert_same_bits(out.astype(dtype), rounded)
    assert_same_bits(same, lse)
    assert np.abs(out - expected(*arguments, causal=True)[0]).max() < 1e-5
    target = np.empty_like(out)
    assert gqa.varlen_attention(*arguments, causal=True, out=target, out_dtype=np.float32) is target
    assert_same_bits(target, out)


def test_a_mask_with_lengths_has_a_column_for_every_key(rng):
    q, k, v, cu_q, cu_k = problem(rng)
    lengths = OPTIONS["lengths"]["kv_lengths"]
    mask = rng.random((7, 4, 40, 1100)) < 0.7
    out = gqa.varlen_attention(q, k, v, cu_q, cu_k, mask=mask, kv_lengths=lengths)
    for n, used in enumerate(lengths):
        rows, keys = slice(cu_q[n], cu_q[n + 1]), slice(cu_k[n], cu_k[n] + used)
        part = mask[n, :, : Q_LENGTHS[n], :used]
        assert_same_bits(out[rows], gqa.attention(q[rows], k[keys], v[keys], mask=part, layout="bshd"))


@pytest.mark.parametrize("count", [0, 1])
def test_a_mask_for_nothing(rng, count):
    q, k, v = problem(rng, [3], [3])[:3]
    out = gqa.varlen_attention(q, k, v, [0] * (count + 1), [0] * (count + 1), mask=np.ones((count, 4, 0, 0), bool))
    assert not out.any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 120)), max_size=8),
    st.booleans(),
    st.tuples(st.none() | st.integers(0, 30), st.none() | st.integers(0, 30)),
    st.integers(0, 3),
    st.data(),
)
def test_any_lengths(lengths, causal, window, gap, data):
    q_lengths, k_lengths = [n for n, _ in lengths], [n for _, n in lengths]
    arguments = problem(np.random.default_rng(0), q_lengths, k_lengths, gap=gap)
    used = [data.draw(st.integers(0, n)) for n in k_lengths] if data.draw(st.booleans()) else None
    options = {"causal": causal, "window": window, "kv_lengths": used}
    out, lse = gqa.varlen_attention(*arguments, **options, return_lse=True)
    expected_out, expected_lse = expected(*arguments, **options)
    assert_close(out, expected_out)
    assert_lse_close(lse, expected_lse)


def test_a_sequence_does_not_depend_on_its_neighbours(rng, isa, threads):
    q, k, v, cu_q, cu_k = problem(rng)
    out, lse = gqa.varlen_attention(q, k, v, cu_q, cu_k, causal=True, return_lse=True, num_threads=threads)
    for n in range(len(cu_q) - 1):
        rows, keys = slice(cu_q[n], cu_q[n + 1]), slice(cu_k[n], cu_k[n + 1])
        alone = gqa.attention(q[rows], k[keys], v[keys], causal=True, layout="bshd", return_lse=True, num_threads=1)
        assert_same_bits(out[rows], alone[0])
        assert_same_bits(lse.T[rows], alone[1])


def test_nothing_leaks_from_neighbours_or_unused_keys(rng):
    q, k, v, cu_q, cu_k = problem(rng, [2, 20, 3], [10, 30, 120], gap=4)
    options = {"kv_lengths": [7, 30, 100], "causal": True}
    before = gqa.varlen_attention(q, k, v, cu_q, cu_k, **options)
    for unused in (slice(7, 10), slice(140, None)):
        k[unused] = v[unused] = np.nan
    q[25:] = np.nan
    assert_same_bits(gqa.varlen_attention(q, k, v, cu_q, cu_k, **options), before)
    k[10:40] = np.nan
    after = gqa.varlen_attention(q, k, v, cu_q, cu_k, **options)
    assert np.isnan(after[2:22]).all()
    assert_same_bits(after[:2], before[:2])
    assert_same_bits(after[22:], before[22:])


def test_rows_outside_every_sequence_are_0(rng, dtype):
    q, k, v, _, _ = problem(rng, [6], [9], dtype)
    out, lse = gqa.varlen_attention(q, k, v, [0, 2, 4], [0, 0, 5], sinks=np.zeros(4, np.float32), return_lse=True)
    assert not out[:2].any()
    assert (lse[:, :2] == 0).all()  # no keys, but a sink
    assert not out[4:].any()
    assert np.isneginf(lse[:, 4:]).all()
    out, lse = gqa.varlen_attention(q, k, v, [0], [0], return_lse=True)
    assert not out.any()
    assert np.isneginf(lse).all()


@pytest.mark.parametrize("tokens", [0, 5])
def test_no_sequences_and_no_tokens(rng, tokens):
    q, k, v = packed(rng, 0, 4, 16), packed(rng, tokens, 2, 16), packed(rng, tokens, 2, 24)
    assert gqa.varlen_attention(q, k, v, [0, 0], [0, tokens]).shape == (0, 4, 24)
    assert gqa.varlen_attention(q, k, v, [0], [0]).shape == (0, 4, 24)


def test_views_of_a_fused_projection(rng, isa, dtype):
    qkv = packed(rng, sum(Q_LENGTHS), 4 + 2 + 2, 16, dtype)
    q, k, v = qkv[:, :4], qkv[:, 4:6], qkv[:, 6:]
    cu = cumulated(Q_LENGTHS)
    contiguous = gqa.varlen_attention(q.copy(), k.copy(), v.copy(), cu, cu, causal=True)
    assert_same_bits(gqa.varlen_attention(q, k, v, cu, cu, causal=True), contiguous)
    heads_first = [x.swapaxes(0, 1).copy().swapaxes(0, 1) for x in (q, k, v)]
    assert_same_bits(gqa.varlen_attention(*heads_first, cu, cu, causal=True), contiguous)
    channels_first = [np.asfortranarray(x) for x in (q, k, v)]
    assert_same_bits(gqa.varlen_attention(*channels_first, cu, cu, causal=True), contiguous)
    backwards = [x[::-1].copy()[::-1] for x in (q, k, v)]
    assert_same_bits(gqa.varlen_attention(*backwards, cu, cu, causal=True), contiguous)


def test_quantised_keys_and_values(rng, isa):
    q, k, v, cu_q, cu_k = problem(rng)
    k, v = gqa.quantize(k), gqa.quantize(v)
    for values in (v, v.dequantize()):
        out = gqa.varlen_attention(q, k, values, cu_q, cu_k, causal=True)
        expected_out, _ = expected(q, k.dequantize(), v.dequantize(), cu_q, cu_k, causal=True)
        assert_close(out, expected_out, magnitude=MAGNITUDES["int8"])


def test_out(rng):
    q, k, v, cu_q, cu_k = problem(rng, gap=2)
    wanted, wanted_lse = gqa.varlen_attention(q, k, v, cu_q, cu_k, return_lse=True)
    out = np.full((*q.shape[:2], 24), np.nan, np.float32)
    assert gqa.varlen_attention(q, k, v, cu_q, cu_k, out=out) is out
    assert_same_bits(out, wanted)
    strided = np.full((24, *q.shape[:2]), np.nan, np.float32).transpose(1, 2, 0)
    result, lse = gqa.varlen_attention(q, k, v, cu_q, cu_k, out=strided, return_lse=True)
    assert result is strided
    assert_same_bits(strided, wanted)
    assert_same_bits(lse, wanted_lse)


def test_out_over_an_input_that_is_copied_first():
    """k with channels that are not contiguous is attended as a copy, but it is k that out must leave alone."""
    memory = np.ones((12, 16, 4), np.float32)
    k = memory.transpose(0, 2, 1)
    with pytest.raises(ValueError, match="out overlaps k in memory"):
        gqa.varlen_attention(np.ones((12, 4, 16), np.float32), k, k.copy(), [0, 12], [0, 12], out=k)


def test_out_between_the_inputs(rng):
    buffer = packed(rng, 12, 4 + 2 + 2 + 4, 16)
    q, k, v, out = np.split(buffer, [4, 6, 8], axis=1)
    wanted = gqa.varlen_attention(q, k, v, [0, 12], [0, 12])
    assert gqa.varlen_attention(q, k, v, [0, 12], [0, 12], out=out) is out
    assert_same_bits(out, wanted)
    for name, taken in (("q", q), ("k", buffer[:, 5:9])):
        with pytest.raises(ValueError, match=f"out overlaps {name}"):
            gqa.varlen_attention(q, k, v, [0, 12], [0, 12], out=taken)


def test_lse_of_parts_can_be_merged(rng):
    q, k, v, cu_q, cu_k = problem(rng, [3, 4], [30, 50])
    parts = [
        gqa.varlen_attention(q, k[keys], v[keys], cu_q, cu, return_lse=True)
        for keys, cu in ((np.r_[0:10, 30:80], [0, 10, 60]), (np.r_[10:30], [0, 20, 20]))
    ]
    out, lse = gqa.merge_states([out for out, _ in parts], [lse.T for _, lse in parts])
    expected_out, expected_lse = expected(q, k, v, cu_q, cu_k)
    assert_close(out, expected_out)
    assert_lse_close(lse.T, expected_lse)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_group():
    measure = """
        import re, sys
        import numpy as np, gqa

        def kib(field):
            return int(re.search(field + r":\\s*(\\d+) kB", open("/proc/self/status").read())[1])

        heads, tokens, cu = int(sys.argv[1]), 8192, [0, 1000, 4096, 8192]
        q, k, v, out = (np.ones((tokens, n, 64), np.float32) for n in (heads, 8, 8, heads))
        gqa.varlen_attention(q[:9], k[:9], v[:9], [0, 9], [0, 9], num_threads=1)
        before = kib("VmRSS")
        gqa.varlen_attention(q, k, v, cu, cu, causal=True, window=(256, None), out=out, num_threads=1)
        print(kib("VmHWM") - before)
    """
    grouped, plain = int(output_of(measure, 32)), int(output_of(measure, 8))
    keys = 8192 * 8 * 64 * 4 // 1024
    assert max(grouped, plain) < keys / 2  # KiB: neither k nor v was copied, let alone repeated
    assert grouped <= plain + keys / 16


GOOD = {
    "q": np.ones((6, 4, 16), np.float32),
    "k": np.ones((9, 2, 16), np.float32),
    "v": np.ones((9, 2, 24), np.float32),
    "cu_seqlens_q": [0, 2, 6],
    "cu_seqlens_k": [0, 4, 9],
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cu_seqlens_q": [1, 2, 6]}, ValueError, r"cu_seqlens_q\[0\] is 1, expected 0"),
        ({"cu_seqlens_q": [0, 3, 2]}, ValueError, r"cu_seqlens_q\[2\] is 2, expected at least 3"),
        ({"cu_seqlens_q": [0, 2, 7]}, ValueError, "cu_seqlens_q ends with 7, expected at most 6"),
        ({"cu_seqlens_k": [0, 4, 10]}, ValueError, "cu_seqlens_k ends with 10, expected at most 9"),
        ({"cu_seqlens_k": [0, -(2**62), 9]}, ValueError, r"cu_seqlens_k\[1\] is -"),
        ({"cu_seqlens_k": np.array([0, 4, 2**64 - 1], np.uint64)}, ValueError, "cu_seqlens_k ends with"),
        ({"cu_seqlens_k": [0, 9]}, ValueError, r"cu_seqlens_k has shape \(2,\), expected \(3,\)"),
        ({"cu_seqlens_q": []}, ValueError, r"cu_seqlens_q has shape \(0,\)"),
        ({"cu_seqlens_q": 0}, ValueError, r"cu_seqlens_q has shape \(\)"),
        ({"cu_seqlens_q": [[0, 2, 6]]}, ValueError, r"cu_seqlens_q has shape \(1, 3\)"),
        ({"cu_seqlens_q": [0, 2.0, 6]}, TypeError, "cu_seqlens_q has dtype float64"),
        ({"kv_lengths": [4, 6]}, ValueError, r"kv_lengths\[1\] is 6, expected 0 to 5"),
        ({"kv_lengths": [-1, 5]}, ValueError, r"kv_lengths\[0\] is -1"),
        ({"kv_lengths": [4]}, ValueError, r"kv_lengths has shape \(1,\), expected \(2,\)"),
        ({"kv_lengths": [4.0, 5.0]}, TypeError, "kv_lengths has dtype float64"),
        ({"q": np.ones((1, 6, 4, 16), np.float32)}, ValueError, r"q has shape \(1, 6, 4, 16\)"),
        ({"k": np.ones((9, 3, 16), np.float32)}, ValueError, "k has 3 heads, which does not divide the 4 heads of q"),
        ({"k": np.ones((8, 2, 16), np.float32)}, ValueError, "v has 9 tokens, expected 8 as k"),
        ({"k": np.ones((9, 2, 15), np.float32)}, ValueError, "k has head_dim 15, expected 16 as q"),
        ({"v": np.ones((9, 1, 24), np.float32)}, ValueError, "v has 1 heads, expected 2 as k"),
        ({"v": None}, ValueError, "k is given without v"),
        ({"q": np.ones((6, 4, 16), int)}, TypeError, "q has dtype int64"),
        ({"k": np.ones((9, 2, 16), np.int8)}, TypeError, "k has dtype int8, expected .*Quantized"),
        ({"q": [[[1.0]]]}, TypeError, "q is a list"),
        ({"mask": np.ones((2, 4, 4, 4), bool)}, ValueError, r"mask has shape \(2, 4, 4, 4\).* \(2, 4, 4, 5\)"),
        ({"mask": np.ones((3, 1, 4, 5), bool)}, ValueError, r"mask has shape \(3, 1, 4, 5\)"),
        ({"mask": np.ones((2, 4, 4, 5), int)}, TypeError, "mask has dtype int64"),
        ({"mask": [[True]]}, TypeError, "mask is a list"),
        ({"causal": 1}, TypeError, "causal is 1"),
        ({"window": (-1, 0)}, ValueError, "window is"),
        ({"scale": np.nan}, ValueError, "scale is nan"),
        ({"softcap": -1}, ValueError, "softcap is -1"),
        ({"sinks": np.zeros(2, np.float32)}, ValueError, r"sinks has shape \(2,\), expected \(4,\)"),
        ({"sinks": np.zeros(4, int)}, TypeError, "sinks has dtype int64"),
        ({"out": np.zeros((6, 4, 16), np.float32)}, ValueError, r"out has shape \(6, 4, 16\), expected \(6, 4, 24\)"),
        ({"out": np.zeros((6, 4, 24))}, TypeError, "out has dtype float64, expected float32"),
        ({"return_lse": None}, TypeError, "return_lse is None"),
        ({"out_dtype": "float64"}, TypeError, "out_dtype is float64, expected float32 as q"),
        ({"num_threads": 0}, ValueError, "num_threads is 0"),
    ],
    ids=lambda x: str(x)[:50],
)
def test_refused(change, error, message):
    assert gqa.varlen_attention(**GOOD).shape == (6, 4, 24)
    with pytest.raises(error, match=message):
        gqa.varlen_attention(**GOOD | change)
