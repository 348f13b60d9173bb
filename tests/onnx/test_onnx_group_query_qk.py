"""GroupQueryAttention's output_qk: scores before the softmax, or probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from compare import assert_close
from group_query import STEPS, Call


def scores(call, bias, softcap, window, causal, keys):
    """(B, Hq, S, total) in float64, and where a key is attended."""
    x = call.q.astype(np.float64).swapaxes(1, 2) @ keys.repeat(2, axis=1).astype(np.float64).swapaxes(2, 3) / np.sqrt(8)
    x = softcap * np.tanh(x / softcap) + bias
    position = (call.before[:, None] + np.arange(call.q.shape[1]))[..., None]
    j = np.arange(call.total)
    allowed = np.broadcast_to(j < call.tokens[:, None, None], (*position.shape[:2], call.total))
    if causal:
        allowed = allowed & (j <= position) & (j > position - window)
    allowed = allowed & (position < call.tokens[:, None, None])  # the others are padding
    return x, np.broadcast_to(allowed[:, None], x.shape)


FORMS = [(step, form) for step in STEPS for form in ("new", "shared") if (step, form) != ("growing", "shared")]


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("qk_output", [1, 2])
@pytest.mark.parametrize(("step", "form"), FORMS)
def test_output_qk(step, qk_output, causal, form, dtype, rng):
    call = Call(rng, dtype=dtype, **STEPS[step])
    bias = rng.standard_normal((max(len(call.q), 1), 1, call.q.shape[1], call.total)).astype(dtype)
    bias[..., 0] = -np.inf
    sinks = rng.standard_normal(4).astype(dtype)
    keys = call.past["past_key"] if form == "shared" else call.cache()[0]
    x, allowed = scores(call, bias, 1.5, 6 if causal else 0, causal, keys[:, :, : call.total])
    if qk_output == 2:
        x = np.exp(np.where(allowed, x, -np.inf))
        x /= x.sum(-1, keepdims=True) + np.exp(sinks.astype(np.float64))[:, None, None]
    result = call.run(
        **{"key": None, "value": None} if form == "shared" else {}, attention_bias=bias, head_sink=sinks, softcap=1.5,
        qk_output=qk_output, causal=causal, local_window_size=6 if causal else -1,
    )  # fmt: skip
    assert result.output_qk.dtype == dtype
    assert_close(result.output_qk, np.where(allowed, x, 0), magnitude=4)


def test_without_qk_output_there_is_none(rng):
    assert Call(rng).run().output_qk is None
