"""What attention satisfies whatever the data: properties, over sizes and options that hypothesis draws."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import gqa
import oracle
from compare import assert_close, assert_lse_close
from drawn import calls, few, options
from oracle import wide


@settings(few, max_examples=150)
@given(st.data())
def test_the_definition(isa, data):
    q, k, v = data.draw(calls())
    arguments = data.draw(options(q, k))
    out, lse = gqa.attention(q, k, v, return_lse=True, **arguments)
    expected_out, expected_lse = oracle.attention(q, k, v, **arguments)
    assert_close(out, expected_out)
    assert_lse_close(lse, expected_lse)


@few
@given(st.data())
def test_grouped_heads_are_repeated_heads(isa, data):
    q, k, v = data.draw(calls())
    arguments = data.draw(options(q, k))
    repeated = (np.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k, v))
    assert_close(gqa.attention(q, k, v, **arguments), wide(gqa.attention(q, *repeated, **arguments)), magnitude=2)


@few
@given(st.data())
def test_split_and_merge_is_the_whole(isa, data):
    q, k, v = data.draw(calls(dtype=st.sampled_from([np.float32, np.float64])))
    cuts = sorted(data.draw(st.lists(st.integers(0, k.shape[2]), max_size=3)))
    mask = np.random.default_rng(0).random((*q.shape[:3], k.shape[2])) < 0.6
    bounds = list(zip([0, *cuts], [*cuts, k.shape[2]]))
    sinks = np.linspace(-2, 2, q.shape[1])
    parts = [
        gqa.attention(q, k[:, :, i:j], v[:, :, i:j], mask=mask[..., i:j], sinks=part_sinks, return_lse=True)
        for (i, j), part_sinks in itertools.zip_longest(bounds, [sinks])
    ]
    order = data.draw(st.permutations(range(len(parts))))
    out, lse = gqa.merge_states([parts[i][0] for i in order], [parts[i][1] for i in order])
    whole, whole_lse = gqa.attention(q, k, v, mask=mask, sinks=sinks, return_lse=True)
    assert_close(out, wide(whole), magnitude=2)
    assert_lse_close(lse, wide(whole_lse))


@few
@given(st.data())
def test_the_order_of_the_keys_does_not_matter(isa, data):
    q, k, v = data.draw(calls())
    mask = np.random.default_rng(0).random((q.shape[2], k.shape[2])) < 0.6
    order = np.random.default_rng(1).permutation(k.shape[2])
    out = gqa.attention(q, k[:, :, order], v[:, :, order], mask=mask[:, order])
    assert_close(out, wide(gqa.attention(q, k, v, mask=mask)), magnitude=2)


@few
@given(st.data())
def test_chunks_of_queries_are_the_whole(isa, data):
    q, k, v = data.draw(calls())
    keys, queries = k.shape[2], q.shape[2]
    window = data.draw(st.sampled_from([None, (5, 0), (17, None), (0, 3)]))
    offset = data.draw(st.integers(-3, keys))
    whole = gqa.attention(q, k, v, causal=True, window=window, query_offset=offset)
    cut = data.draw(st.integers(0, queries))
    chunks = [
        gqa.attention(q[:, :, i:j], k, v, causal=True, window=window, query_offset=offset + i)
        for i, j in ((0, cut), (cut, queries))
    ]
    assert_close(np.concatenate(chunks, axis=2), wide(whole), magnitude=2)


@few
@given(st.data())
def test_decoding_is_the_whole(isa, data):
    """Chunks that see the keys so far, at the default positions, are the causal whole."""
    q, k, v = data.draw(calls(keys=st.just(40)))
    queries = q.shape[2]
    k, v = k[:, :, :queries], v[:, :, :queries]
    whole = gqa.attention(q, k, v, causal=True)
    step = data.draw(st.integers(1, 9))
    for i in range(0, queries, step):
        j = min(i + step, queries)
        out = gqa.attention(q[:, :, i:j], k[:, :, :j], v[:, :, :j], causal=True)
        assert_close(out, wide(whole[:, :, i:j]), magnitude=2)


@few
@given(st.data())
def test_a_past_and_new_keys_are_the_whole(isa, data):
    q, k, v = data.draw(calls())
    arguments = data.draw(options(q, k))
    cut = data.draw(st.integers(0, k.shape[2]))
    out = gqa.attention(q, k[:, :, cut:], v[:, :, cut:], past_key=k[:, :, :cut], past_value=v[:, :, :cut], **arguments)
    whole = wide(gqa.attention(q, k, v, **arguments))
    assert_close(out, whole, magnitude=2)
    assert_close(gqa.attention(q, past_key=k, past_value=v, **arguments), whole, magnitude=2)


@few
@given(st.data())
def test_options_that_are_masks(isa, data):
    """causal, window, lengths and offsets say what a mask could say."""
    q, k, v = data.draw(calls())
    batch, queries, keys = len(q), q.shape[2], k.shape[2]
    left, right = data.draw(st.tuples(*[st.one_of(st.none(), st.integers(0, keys))] * 2))
    causal = data.draw(st.booleans())
    offset = np.array(data.draw(st.lists(st.integers(-queries, keys), min_size=batch, max_size=batch)))
    length = np.array(data.draw(st.lists(st.integers(0, keys), min_size=batch, max_size=batch)))
    position = (offset[:, None] + np.arange(queries))[:, None, :, None]
    j = np.arange(keys)
    mask = np.broadcast_to(j < length[:, None, None, None], (batch, 1, queries, keys)).copy()
    mask &= True if left is None else j >= position - left
    mask &= True if right is None else j <= position + right
    mask &= j <= position if causal else True
    out = gqa.attention(q, k, v, causal=causal, window=(left, right), query_offset=offset, kv_lengths=length)
    assert_close(out, wide(gqa.attention(q, k, v, mask=mask)), magnitude=2)


@few
@given(calls(dtype=st.sampled_from([np.float32, np.float64])))
def test_outputs_are_convex_combinations_of_the_values(isa, call):
    q, k, v = call
    out = gqa.attention(q, k, v).reshape(*k.shape[:2], -1, v.shape[3])
    slack = 1e-5
    assert (out <= v.max(2, keepdims=True) + slack).all()
    assert (out >= v.min(2, keepdims=True) - slack).all()


@few
@given(calls(dtype=st.sampled_from([np.float32, np.float64])), st.floats(-3, 3), st.floats(-3, 3))
def test_linear_in_the_values(isa, call, a, b):
    q, k, v = call
    w = np.random.default_rng(0).standard_normal(v.shape).astype(v.dtype)
    out = gqa.attention(q, k, v.dtype.type(a) * v + v.dtype.type(b) * w)
    assert_close(out, a * wide(gqa.attention(q, k, v)) + b * wide(gqa.attention(q, k, w)), magnitude=10)


@few
@given(calls(), st.floats(-50, 50))
def test_a_constant_added_to_all_scores_changes_the_lse_alone(isa, call, shift):
    q, k, v = call
    out, lse = gqa.attention(q, k, v, return_lse=True)
    shifted, shifted_lse = gqa.attention(q, k, v, mask=np.full((1, 1), shift, np.float64), return_lse=True)
    assert_close(shifted, wide(out), magnitude=20)
    assert_close(shifted_lse, wide(lse) + shift, magnitude=50)


@few
@given(calls(), st.integers(1, 4))
def test_equal_keys_give_the_mean_of_the_values(isa, call, value):
    q, k, v = call
    out = gqa.attention(q, np.full_like(k, value / 4), v)
    mean = np.repeat(v.astype(np.float64).mean(2, keepdims=True), q.shape[1] // v.shape[1], axis=1)
    assert_close(out, np.broadcast_to(mean, out.shape))


@few
@given(calls(keys=st.integers(1, 30)), st.integers(1, 4))
def test_a_key_counts_as_often_as_it_is_there(isa, call, times):
    q, k, v = call
    out, lse = gqa.attention(q, k, v, return_lse=True)
    out1, lse1 = gqa.attention(q, np.tile(k, (1, 1, times, 1)), np.tile(v, (1, 1, times, 1)), return_lse=True)
    assert_close(out1, wide(out), magnitude=2)
    assert_close(lse1, wide(lse) + np.log(times), magnitude=5)


@few
@given(st.data())
def test_a_sink_is_a_key_without_a_value(isa, data):
    q, k, v = data.draw(calls(dtype=st.sampled_from([np.float32, np.float64])))
    sink = data.draw(st.floats(-5, 5))
    mask = np.zeros((1, k.shape[2] + 1))
    mask[0, -1] = sink
    k1, v1 = (np.concatenate([x, np.zeros_like(x[:, :, :1])], axis=2) for x in (k, v))
    out, lse = gqa.attention(q, k, v, sinks=np.full(q.shape[1], sink), return_lse=True)
    out1, lse1 = gqa.attention(q, k1, v1, mask=mask, return_lse=True)
    assert_close(out, wide(out1), magnitude=2)
    assert_lse_close(lse, wide(lse1))
