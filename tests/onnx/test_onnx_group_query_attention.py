"""com.microsoft GroupQueryAttention against the float64 oracle: steps, options, types, forms of its inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gqa
import gqa.onnx
from compare import assert_same_bits
from group_query import OPTIONS, STEPS, Call


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("step", STEPS)
def test_steps_and_options(step, option, rng, isa):
    call = Call(rng, **STEPS[step])
    attributes, options = OPTIONS[option]
    call.check(call.run(**attributes), call.expected(**options))


@pytest.mark.parametrize("head_dim", [1, 8, 13, 80])
@pytest.mark.parametrize("step", ["decode", "chunk", "prompt"])
def test_every_type_and_head_size(step, head_dim, dtype, rng, isa):
    call = Call(rng, dtype=dtype, head_dim=head_dim, **STEPS[step])
    call.check(call.run(), call.expected())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_sizes(data):
    """Any batch may have any number of sequences of any length, in a chunk over a past as well."""
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    queries, batch = draw(1, 9), draw(1, 4)
    total = queries + draw(0, 30)
    least = 1 if total == queries else queries
    tokens = [draw(least, total) for _ in range(batch)]
    capacity = draw(0, 1) * draw(total, total + 9) or total - queries
    call = Call(
        np.random.default_rng(draw(0, 99)), batch=batch, queries=queries, capacity=capacity, head_dim=draw(1, 20),
        tokens=tokens, total=total,
    )  # fmt: skip
    attributes, options = OPTIONS[data.draw(st.sampled_from(list(OPTIONS)))]
    call.check(call.run(**attributes), call.expected(**options))


@pytest.mark.parametrize("step", STEPS)
def test_bias_and_sinks(step, dtype, rng):
    call = Call(rng, dtype=dtype, **STEPS[step])
    batch, queries = call.q.shape[:2]
    sinks = rng.standard_normal(4).astype(dtype)
    for rows in {1, max(batch, 1)}:
        for heads in (1, 4):
            bias = rng.standard_normal((rows, heads, queries, call.total)).astype(dtype)
            bias[:, :, :1] = -np.inf
            result = call.run(attention_bias=bias, head_sink=sinks, smooth_softmax=1)
            call.check(result, call.expected(bias=bias, sinks=sinks))
            assert not result.output[:, :1].any()


def test_a_bias_of_very_negative_numbers_masks_nothing(rng):
    """Next to it all scores are alike: the mean of the values, not 0."""
    call = Call(rng)
    bias = np.full((1, 1, 3, 16), np.finfo(np.float32).min)
    result = call.run(attention_bias=bias)
    assert result.output.any(axis=2).all()
    call.check(result, call.expected(bias=bias))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "attributes", [{}, {"softcap": 1.0}, {"qk_output": 1}, {"qk_output": 2}, {"causal": 0}], ids=str
)
def test_a_row_whose_bias_is_all_minus_infinity_is_zero(attributes, step, dtype, rng):
    call = Call(rng, dtype=dtype, **STEPS[step])
    bias = rng.standard_normal((1, 1, call.q.shape[1], call.total)).astype(dtype)
    bias[:, :, 0] = -np.inf
    result = call.run(attention_bias=bias, **attributes)
    assert not result.output[:, 0].any()
    options = {"bias": bias, "softcap": attributes.get("softcap", 0.0), "causal": attributes.get("causal", 1)}
    call.check(result, call.expected(**options))
    if attributes.get("qk_output") == 2:
        assert not result.output_qk[:, :, 0].any()


@pytest.mark.parametrize("smooth_softmax", [-1, 0, 1])
def test_head_sink_goes_before_smooth_softmax(smooth_softmax, rng):
    call, sinks = Call(rng), np.array([0.5, -1, 3, 0], np.float32)
    call.check(call.run(head_sink=sinks, smooth_softmax=smooth_softmax), call.expected(sinks=sinks))


def test_seqlens_k_in_every_shape(rng):
    call = Call(rng)
    want = call.run().output
    for shape in ((2,), (2, 1), (1, 2)):
        lengths = (call.tokens - 1).astype(np.int32).reshape(shape)
        assert_same_bits(call.run(seqlens_k=lengths, total_sequence_length=np.array([16], np.int32)).output, want)
    assert_same_bits(call.run(seqlens_k=[8, 15]).output, want)


@pytest.mark.parametrize("step", STEPS)
def test_packed_tensors(step, rng):
    call = Call(rng, **STEPS[step])
    packed = np.concatenate(list(call.tensors.values()), axis=2)
    assert_same_bits(call.run(query=packed, key=None, value=None).output, call.run().output)


def test_a_first_prompt_needs_no_past(rng):
    call = Call(rng, **STEPS["prompt"])
    result = call.run(past_key=None, past_value=None)
    assert_same_bits(result.output, call.run().output)
    np.testing.assert_array_equal(result.present_key, call.k.swapaxes(1, 2))
    packed = np.concatenate(list(call.tensors.values()), axis=2)
    assert_same_bits(call.run(query=packed, key=None, value=None, past_key=None, past_value=None).output, result.output)


def test_no_query(rng):
    result = Call(rng, queries=0).run()
    assert result.output.shape == (2, 0, 32)


def test_what_lies_past_the_end_is_not_read(rng):
    call = Call(rng)
    want = call.run().output
    call.past["past_key"][0, :, 6:], call.past["past_value"][0, :, 6:] = np.nan, np.inf
    assert_same_bits(call.run().output, want)


def test_strided_inputs(rng):
    call = Call(rng)
    want = call.run().output
    strided = {name: np.repeat(x, 2, axis=-1)[..., ::2] for name, x in (call.tensors | call.past).items()}
    assert_same_bits(call.run(**strided).output, want)
    mapped = {name: np.asfortranarray(x) for name, x in (call.tensors | call.past).items()}
    assert_same_bits(call.run(**mapped).output, want)


@pytest.mark.parametrize("head_dim", [8, 80])
@pytest.mark.parametrize("step", ["decode", "chunk", "prompt"])
def test_norms_do_not_depend_on_the_order_in_memory(rng, step, head_dim):
    call = Call(rng, head_dim=head_dim, **STEPS[step])
    weights = rng.standard_normal((2, head_dim), np.float32)
    norms = {"q_norm_weight": weights[0], "k_norm_weight": weights[1]}
    want = call.run(**norms)
    for axes in ((2, 1, 0), (1, 0, 2), (0, 2, 1)):
        moved = {name: x.transpose(axes).copy().transpose(np.argsort(axes)) for name, x in call.tensors.items()}
        for one, other in zip(call.run(**norms, **moved)[:3], want):
            assert_same_bits(one, other)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("tokens", [(31, 18), (32, 1, 11, 12), (40, 3), (70, 69, 17)], ids=str)
def test_a_padded_prompt_has_the_bits_of_each_sequence_alone(rng, isa, tokens, option):
    """Loops are chosen by the number of a sequence's rows; those of padding must not count."""
    longest, attributes = max(tokens) + 1, OPTIONS[option][0]
    for total in (longest, max(tokens)):
        call = Call(rng, batch=len(tokens), queries=total, tokens=tokens, total=total, capacity=80, head_dim=16)
        output = call.run(**attributes).output
        for b, count in enumerate(tokens):
            one = {name: x[b : b + 1, :count] for name, x in call.tensors.items()}
            alone = gqa.onnx.group_query_attention(
                **one, seqlens_k=[count - 1], total_sequence_length=count, num_heads=4, kv_num_heads=2, **attributes
            )
            assert_same_bits(output[b, :count], alone.output[0])
            assert not output[b, count:].any()


def test_lists_of_integers(rng):
    call = Call(rng, **STEPS["chunk"])
    tables = {"cos_cache": np.ones((20, 4), np.float32), "sin_cache": np.ones((20, 4), np.float32), "do_rotary": 1}
    want = call.run(**tables)
    result = call.run(**tables, seqlens_k=[8, 15], total_sequence_length=[16], position_ids=[[6, 7, 8], [13, 14, 15]])
    for one, other in zip(result[:3], want):
        assert_same_bits(one, other)


@pytest.mark.parametrize("step", ["decode", "prompt"])
def test_any_number_of_threads(rng, step):
    call = Call(rng, **STEPS[step])
    want = call.run().output
    for number in (1, 2, np.int64(3)):
        assert_same_bits(call.run(num_threads=number).output, want)
    for number, error in ((0, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="num_threads is"):
            call.run(num_threads=number)


def test_a_chunk_is_its_tokens_one_by_one(rng):
    """Five tokens over a past of eleven, at once or in five steps into the same buffers."""
    call = Call(rng, queries=5, tokens=(16, 16))
    whole = call.run()
    buffers = [x.copy() for x in call.past.values()]
    for i in range(5):
        result = gqa.onnx.group_query_attention(
            *(x[:, i : i + 1] for x in call.tensors.values()), *buffers, [11 + i] * 2, 12 + i, num_heads=4,
            kv_num_heads=2, present_key=buffers[0], present_value=buffers[1],
        )  # fmt: skip
        np.testing.assert_allclose(result.output[:, 0], whole.output[:, i], rtol=1e-5, atol=1e-6)
    for buffer, present in zip(buffers, whole[1:3]):
        assert_same_bits(buffer, present)


def test_a_decode_step_is_attention_over_the_cache(rng):
    call = Call(rng, queries=1, tokens=(16, 16))
    present_key, present_value = call.cache()
    want = gqa.attention(call.q, present_key.swapaxes(1, 2), present_value.swapaxes(1, 2), causal=True, layout="bshd")
    assert_same_bits(call.run().output, want.reshape(2, 1, 32))
