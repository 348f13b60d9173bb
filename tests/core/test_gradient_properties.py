"""What gradients satisfy whatever the data: properties, over sizes and options that hypothesis draws."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import gqa
import gradient_oracle
from compare import assert_same_bits
from drawn import calls, few, options
from gradient_cases import assert_gradients_close

float_calls = calls(dtype=st.sampled_from([np.float32, np.float64]))


def output_gradient(q, v, seed=0):
    return np.random.default_rng(seed).standard_normal((*q.shape[:3], v.shape[3])).astype(q.dtype)


def gradients(dout, q, k, v, dlse=None, **arguments):
    out, lse = gqa.attention(q, k, v, return_lse=True, **arguments)
    return gqa.attention_vjp(dout, q, k, v, out, lse, dlse=dlse, **arguments)


def assert_near(x, y, magnitude):
    """Of sums that are as large as magnitude before anything cancels."""
    assert x.shape == y.shape
    allowed = {"float32": 1e-5, "float64": 1e-13}[x.dtype.name] * (magnitude + 1e-3)
    np.testing.assert_allclose(x.astype(np.float64), y, rtol=0, atol=allowed)


def magnitudes(dout, q, k, v, scale=None, **arguments):
    """Bounds of the elements of dq, dk and dv: no weight is above 1, no sum of weights of a row either."""
    scale = q.shape[3] ** -0.5 if scale is None else abs(scale)
    group = q.shape[1] // k.shape[1]
    by_score = 2 * np.abs(dout).max(initial=0) * np.abs(v).max(initial=0) * v.shape[3] * scale
    rows = q.shape[2] * group
    return by_score * np.abs(k).max(), by_score * np.abs(q).max() * rows**0.5, np.abs(dout).max(initial=0) * rows**0.5


@settings(few, max_examples=150)
@given(st.data())
def test_the_definition(isa, data):
    q, k, v = data.draw(calls())
    arguments = data.draw(options(q, k))
    dout = output_gradient(q, v)
    dlse = np.random.default_rng(1).standard_normal(q.shape[:3]) if data.draw(st.booleans()) else None
    floats = "mask" in arguments and arguments["mask"].dtype != bool
    out, lse = gqa.attention(q, k, v, return_lse=True, **arguments)
    actual = gqa.attention_vjp(dout, q, k, v, out, lse, dlse=dlse, mask_grad=floats, **arguments)
    truth = gradient_oracle.attention_vjp(dout, q, k, v, dlse=dlse, **arguments)
    assert_gradients_close(actual, *truth, out_dtype=q.dtype)


@few
@given(st.data(), st.floats(-3, 3), st.floats(-3, 3))
def test_linear_in_the_gradient_by_the_output(isa, data, a, b):
    q, k, v = data.draw(float_calls)
    arguments = data.draw(options(q, k))
    one, two = output_gradient(q, v, 1), output_gradient(q, v, 2)
    mixed = q.dtype.type(a) * one + q.dtype.type(b) * two
    results = [gradients(d, q, k, v, **arguments)[:3] for d in (one, two, mixed)]
    for x, y, z, m in zip(*results, magnitudes(one, q, k, v, **arguments)):
        assert_near(z, a * x.astype(np.float64) + b * y.astype(np.float64), 10 * m)


@few
@given(st.data())
def test_values_share_out_the_gradients_of_rows_that_attend(isa, data):
    """The weights of a row sum to 1, or to what its sink leaves."""
    q, k, v = data.draw(float_calls)
    arguments = data.draw(options(q, k))
    dout = output_gradient(q, v)
    out, lse = gqa.attention(q, k, v, return_lse=True, **arguments)
    dv = gqa.attention_vjp(dout, q, k, v, out, lse, **arguments).dv
    _, own = gqa.attention(q, k, v, return_lse=True, **{n: x for n, x in arguments.items() if n != "sinks"})
    with np.errstate(invalid="ignore"):  # rows without keys: -inf - -inf, if there is no sink either
        shares = np.where(np.isneginf(own), 0, np.exp(own - lse))
    by_head = (shares[..., None] * dout).sum(2)
    expected = by_head.reshape(*k.shape[:2], -1, v.shape[3]).sum(2)
    assert_near(dv.sum(2), expected, 10 * magnitudes(dout, q, k, v)[2])


@few
@given(st.data())
def test_heads_of_a_group_are_repeated_heads_summed(isa, data):
    q, k, v = data.draw(float_calls)
    arguments = data.draw(options(q, k))
    dout, group = output_gradient(q, v), q.shape[1] // k.shape[1]
    grouped = gradients(dout, q, k, v, **arguments)
    apart = gradients(dout, q, np.repeat(k, group, axis=1), np.repeat(v, group, axis=1), **arguments)
    bounds = magnitudes(dout, q, k, v, **arguments)
    assert_near(grouped.dq, apart.dq, bounds[0])
    for x, y, m in zip(grouped[1:3], apart[1:3], bounds[1:]):
        assert_near(x, y.reshape(*x.shape[:2], group, *x.shape[2:]).sum(2), m)


@few
@given(st.data())
def test_chunks_of_queries_are_the_whole(isa, data):
    """dq of the chunks side by side, dk and dv as sums."""
    q, k, v = data.draw(float_calls)
    dout = output_gradient(q, v)
    offset, cut = data.draw(st.integers(-3, k.shape[2])), data.draw(st.integers(0, q.shape[2]))
    arguments = {"causal": True, "window": data.draw(st.sampled_from([None, (5, 0), (17, None)]))}
    whole = gradients(dout, q, k, v, query_offset=offset, **arguments)
    chunks = [
        gradients(dout[:, :, i:j], q[:, :, i:j], k, v, query_offset=offset + i, **arguments)
        for i, j in ((0, cut), (cut, q.shape[2]))
    ]
    bounds = magnitudes(dout, q, k, v)
    assert_near(np.concatenate([x.dq for x in chunks], axis=2), whole.dq, bounds[0])
    assert_near(chunks[0].dk + chunks[1].dk, whole.dk, bounds[1])
    assert_near(chunks[0].dv + chunks[1].dv, whole.dv, bounds[2])


@few
@given(st.data())
def test_parts_that_are_merged_are_the_whole(isa, data):
    """Parts of the keys by themselves, each with the gradients that merge_states' formula gives its out and lse."""
    q, k, v = data.draw(calls(dtype=st.just(np.float64)))
    dout, cut = output_gradient(q, v), data.draw(st.integers(0, k.shape[2]))
    whole = gradients(dout, q, k, v)
    parts = [(k[:, :, i:j], v[:, :, i:j]) for i, j in ((0, cut), (cut, k.shape[2]))]
    results = [gqa.attention(q, *part, return_lse=True) for part in parts]
    out, lse = gqa.merge_states(*zip(*results))
    found = []
    for part, (part_out, part_lse) in zip(parts, results):
        share = np.exp(part_lse - lse)[..., None]
        dlse = (share * dout * (part_out - out)).sum(-1)
        found.append(gqa.attention_vjp(share * dout, q, *part, part_out, part_lse, dlse=dlse))
    bounds = magnitudes(dout, q, k, v)
    assert_near(found[0].dq + found[1].dq, whole.dq, 10 * bounds[0])
    assert_near(np.concatenate([x.dk for x in found], axis=2), whole.dk, 10 * bounds[1])
    assert_near(np.concatenate([x.dv for x in found], axis=2), whole.dv, 10 * bounds[2])


@few
@given(st.data())
def test_scaling_queries_is_scaling_keys(isa, data):
    """So that sum(dq * q) is sum(dk * k), for all heads of a group together."""
    q, k, v = data.draw(calls(dtype=st.just(np.float64)))
    arguments = data.draw(options(q, k))
    dout = output_gradient(q, v)
    dq, dk, *_ = gradients(dout, q, k, v, **arguments)
    by_q = (dq * q).sum((2, 3)).reshape(*k.shape[:2], -1).sum(2)
    bound = magnitudes(dout, q, k, v, **arguments)[1] * np.abs(k).max() * k[0, 0].size
    assert_near(by_q, (dk * k).sum((2, 3)), bound)


@few
@given(calls())
def test_queries_of_equal_keys_have_no_gradient(isa, call):
    q, k, v = call
    k = np.full_like(k, 0.5)
    dout = output_gradient(q, v)
    dq = gradients(dout, q, k, v).dq.astype(np.float32)
    rounding = {2: 2.0**-8, 4: 1e-5, 8: 1e-13}[q.dtype.itemsize]  # of out in half precision
    assert np.abs(dq).max() <= rounding * magnitudes(*(x.astype(np.float64) for x in (dout, q, k, v)))[0]


@few
@given(st.data(), st.integers(2, 9))
def test_bits_depend_on_neither_threads_nor_neighbours(isa, data, threads):
    q, k, v = data.draw(calls())
    dout = output_gradient(q, v)
    arguments = {"causal": data.draw(st.booleans()), "num_threads": 1}
    one = gradients(dout, q, k, v, **arguments)
    for x, y in zip(gradients(dout, q, k, v, **arguments | {"num_threads": threads})[:3], one[:3]):
        assert_same_bits(x, y)
    b = data.draw(st.integers(0, len(q) - 1))
    for x, y in zip(gradients(*(x[b : b + 1] for x in (dout, q, k, v)), **arguments)[:3], one[:3]):
        assert_same_bits(x, y[b : b + 1])
