"""What holds of gradients for any numbers: bits, masked data, rows without keys, refusals."""

import numpy as np
import pytest

import cases
import gqa
import gradient_oracle
from compare import assert_same_bits
from gradient_cases import assert_gradients_close, gradients, problem


@pytest.mark.parametrize("options", [("causal",), ("float_mask", "sinks"), ("window", "lengths")])
def test_bits_do_not_depend_on_threads(isa, dtype, options):
    case = cases.Case(heads=(32, 2), queries=100, keys=250, batch=2, options=options)
    arguments, dout = problem(case, dtype)
    wants_mask = "float_mask" in options
    plain = gradients(arguments, dout, mask_grad=wants_mask, num_threads=1)
    for threads in (2, 5, 16):
        for x, y in zip(gradients(arguments, dout, mask_grad=wants_mask, num_threads=threads), plain):
            if y is not None:
                assert_same_bits(x, y)


def test_bits_do_not_depend_on_the_batch(isa, dtype):
    arguments, dout = problem(cases.Case(heads=(20, 2), queries=110, keys=200, batch=3, options=("causal",)), dtype)
    together = gradients(arguments, dout, num_threads=2)
    for b in range(3):
        alone = arguments | {name: arguments[name][b : b + 1] for name in ("q", "k", "v")}
        for x, y in zip(gradients(alone, dout[b : b + 1])[:3], together[:3]):
            assert_same_bits(x, y[b : b + 1])


def test_packed_sequences_have_the_bits_of_each_alone(isa, dtype, rng):
    q, dout = (rng.standard_normal((300, 4, 24)).astype(dtype) for _ in range(2))
    k, v = (rng.standard_normal((310, 2, 24)).astype(dtype) for _ in range(2))
    q_ends, k_ends, lengths = [0, 120, 120, 290], [0, 130, 140, 305], [130, 4, 150]
    options = {"causal": True, "window": (70, None)}
    out, lse = gqa.varlen_attention(q, k, v, q_ends, k_ends, kv_lengths=lengths, return_lse=True, **options)
    packed = gqa.varlen_attention_vjp(dout, q, k, v, q_ends, k_ends, out, lse, kv_lengths=lengths, **options)
    attended = np.zeros(len(k), bool)
    for n, length in enumerate(lengths):
        rows, keys = slice(q_ends[n], q_ends[n + 1]), slice(k_ends[n], k_ends[n] + length)
        one = [x[rows].swapaxes(0, 1) for x in (dout, q)] + [x[keys].swapaxes(0, 1) for x in (k, v)]
        one_out, one_lse = gqa.attention(*one[1:], return_lse=True, **options)
        alone = gqa.attention_vjp(*one, one_out, one_lse, **options)
        for x, y in zip(alone[:3], (packed.dq[rows], packed.dk[keys], packed.dv[keys])):
            assert_same_bits(x.swapaxes(0, 1).copy(), y)
        attended[keys] = rows.stop > rows.start
    assert not packed.dq[q_ends[-1] :].any()
    for x in (packed.dk, packed.dv):
        assert not x[~attended].any()


@pytest.mark.parametrize("options", [("causal", "offset"), ("bool_mask",), ("float_mask", "sinks"), ("lengths",)])
def test_nan_behind_a_mask_does_not_show(isa, dtype, options):
    """In keys and values that nobody attends, and in whatever belongs to rows that attend nothing."""
    arguments, dout = problem(cases.Case(heads=(4, 2), queries=40, keys=130, options=options), dtype)
    arguments.pop("sinks", None)
    plain = gradients(arguments, dout)
    x = gradient_oracle.oracle.forward(**arguments)
    rows, tokens = x.allowed.any(-1), x.allowed.any(2).reshape(2, 2, 2, -1).any(2)
    assert not tokens.all() or not rows.all()
    out, lse = gqa.attention(**arguments, return_lse=True)
    spoilt = dict(arguments)
    for name in ("k", "v"):
        spoilt[name] = np.where(tokens[..., None], arguments[name], np.nan).astype(dtype)
    spoilt["q"] = np.where(rows[..., None], arguments["q"], np.nan).astype(dtype)
    dout = np.where(rows[..., None], dout, np.nan).astype(dtype)
    tensors = [spoilt.pop(name) for name in ("q", "k", "v")]
    actual = gqa.attention_vjp(dout, *tensors, out, lse, **spoilt)
    for a, b in zip(actual[:3], plain[:3]):
        assert_same_bits(a, b)
    assert not actual.dq[~rows].any()
    assert not actual.dk[~tokens].any()


@pytest.mark.parametrize("value", [-1e9, np.finfo(np.float32).min])
def test_rows_of_very_negative_masks_are_ordinary_rows(isa, value):
    """Their lse is too coarse for weights."""
    arguments, dout = problem(cases.Case(heads=(4, 2), queries=40, keys=130), np.float32)
    arguments["q"][:] = 0  # scores that the mask leaves equal, however coarse their sum with it is
    arguments["mask"] = np.full((1, 1, 40, 130), value, np.float32)
    actual = gradients(arguments, dout)
    assert_gradients_close(actual, *gradient_oracle.attention_vjp(dout, **arguments))


def test_peaked_softmax(isa, rng):
    arguments, dout = problem(cases.Case(heads=(4, 2), queries=40, keys=130, options=("causal",)), np.float64)
    arguments["scale"] = 30.0
    assert_gradients_close(gradients(arguments, dout), *gradient_oracle.attention_vjp(dout, **arguments))


def test_central_differences(isa, rng):
    arguments, dout = problem(cases.Case(heads=(4, 2), queries=9, keys=14, options=("softcap", "sinks")), np.float64)
    arguments["mask"] = rng.standard_normal((4, 1, 14))
    dlse = rng.standard_normal(dout.shape[:-1])
    actual = gradients(arguments, dout, dlse, mask_grad=True)
    for name in ("q", "k", "v", "mask", "sinks"):
        step = 1e-6 * rng.standard_normal(arguments[name].shape)
        ends = []
        for sign in (1, -1):
            out, lse = gqa.attention(**arguments | {name: arguments[name] + sign * step}, return_lse=True)
            ends.append((out * dout).sum() + (lse * dlse).sum())
        expected = (getattr(actual, f"d{name}") * 2 * step).sum()
        np.testing.assert_allclose(ends[0] - ends[1], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dout": np.zeros((2, 4, 3, 5), np.float32)}, ValueError, "dout has shape"),
        ({"lse": np.zeros((2, 4, 4), np.float32)}, ValueError, "lse has shape"),
        ({"lse": np.zeros((2, 4, 3))}, TypeError, "lse has dtype float64, expected float32"),
        ({"dlse": np.zeros((2, 4), np.float32)}, ValueError, "dlse has shape"),
        ({"mask": np.ones((3, 40), bool), "mask_grad": True}, TypeError, "mask has dtype bool"),
        ({"mask_grad": 1}, TypeError, "mask_grad is 1"),
        ({"k": gqa.quantize(np.ones((2, 2, 40, 16), np.float32))}, TypeError, "k is quantised"),
    ],
)
def test_refused(change, error, message):
    arguments, dout = problem(cases.Case(), np.float32)
    out, lse = gqa.attention(**arguments, return_lse=True)
    with pytest.raises(error, match=message):
        gqa.attention_vjp(**{"dout": dout, "out": out, "lse": lse} | arguments | change)


def test_heads_without_keys_are_not_counted():
    k = np.empty((1, 2**40, 0, 4), np.float32)
    q = np.empty((1, 0, 3, 4), np.float32)
    gradients = gqa.attention_vjp(q, q, k, k, q, np.empty((1, 0, 3), np.float32))
    assert [x.shape for x in gradients[:3]] == [q.shape, k.shape, k.shape]


@pytest.mark.parametrize("options", [{"kv_lengths": [0, 0]}, {"causal": True, "query_offset": -9}, {"mask": "none"}])
def test_sinks_of_rows_without_keys(isa, rng, options):
    """The sink is all of the lse, and takes its gradient, whether or not the row has a block of keys to read."""
    arguments, dout = problem(cases.Case(heads=(4, 2), queries=9, keys=14, options=("sinks",)), np.float64)
    arguments |= {"mask": np.zeros((9, 14), bool)} if "mask" in options else options
    dlse = rng.standard_normal(dout.shape[:-1])
    actual = gradients(arguments, dout, dlse)
    np.testing.assert_allclose(actual.dsinks, dlse.sum((0, 2)), rtol=1e-13)
    for x in actual[:3]:
        assert not x.any()


def test_a_row_of_nan_reaches_only_the_keys_that_it_attends(isa, rng):
    q, k, v, dout = rng.standard_normal((4, 1, 1, 40, 16)).astype(np.float32)
    q[:, :, 5] = np.nan
    out, lse = gqa.attention(q, k, v, causal=True, return_lse=True)
    dq, dk, dv = gqa.attention_vjp(dout, q, k, v, out, lse, causal=True)[:3]
    for gradient in (dk, dv):
        assert np.isnan(gradient[:, :, :6]).all()
        assert np.isfinite(gradient[:, :, 6:]).all()
    assert np.isfinite(np.delete(dq, 5, axis=2)).all()
