"""What masks, and what masked data may hold: only False, -inf, positions and lengths mask, and nothing leaks."""

import ml_dtypes
import numpy as np
import pytest

import gqa
import oracle
from compare import assert_close, assert_lse_close, assert_same_bits
from conftest import DTYPES

# Few rows with channels in the lanes, over one and several splits; many rows, over one to many blocks.
SIZES = {
    "decode": (1, 40),
    "few": (3, 300),
    "split": (2, 1700),
    "tile": (8, 50),
    "rows": (11, 290),
    "packed": (40, 200),
}


@pytest.fixture(params=SIZES)
def size(request):
    return SIZES[request.param]


def tensors(rng, queries, keys, dtype=np.float32, batch=2, heads=(4, 2), head_dim=20, v_head_dim=12):
    shapes = ((heads[0], queries, head_dim), (heads[1], keys, head_dim), (heads[1], keys, v_head_dim))
    return [rng.standard_normal((batch, *shape)).astype(dtype) for shape in shapes]


def check(q, k, v, **options):
    out, lse = gqa.attention(q, k, v, return_lse=True, **options)
    expected_out, expected_lse = oracle.attention(q, k, v, **options)
    assert_close(out, expected_out)
    assert_lse_close(lse, expected_lse)
    return out, lse


# ---- rows without keys ----------------------------------------------------------------------------------------


def hide(how, queries, keys):
    """Options that leave no key to any row of the first batch entry."""
    mask = np.ones((2, 1, queries, keys), bool)
    mask[0] = False
    match how:
        case "bool mask":
            return {"mask": mask}
        case "float mask":
            return {"mask": np.where(mask, np.float32(0.5), -np.inf).astype(np.float32)}
        case "lengths":
            return {"kv_lengths": np.array([0, keys])}
        case "causal":
            return {"causal": True, "query_offset": np.array([-queries, keys - queries])}
        case "left of the window":
            return {"window": (2, None), "query_offset": np.array([keys + 2, 0])}
        case "right of the window":
            return {"window": (None, 1), "query_offset": np.array([-queries - 1, 0])}


@pytest.mark.parametrize(
    "how", ["bool mask", "float mask", "lengths", "causal", "left of the window", "right of the window"]
)
def test_rows_without_keys_are_zero(isa, rng, dtype, size, how):
    q, k, v = tensors(rng, *size, dtype)
    out, lse = check(q, k, v, **hide(how, *size))
    assert not out[0].any()
    assert np.isneginf(lse[0]).all()
    assert np.isfinite(lse[1]).all()


@pytest.mark.parametrize("how", ["bool mask", "lengths", "causal"])
def test_rows_without_keys_have_their_sink_as_lse(isa, rng, dtype, size, how):
    q, k, v = tensors(rng, *size, dtype)
    sinks = np.array([-3.0, 0.0, 2.5, 40.0], dtype)
    out, lse = check(q, k, v, sinks=sinks, **hide(how, *size))
    assert not out[0].any()
    assert_lse_close(lse[0], np.repeat(sinks.astype(np.float64)[:, None], size[0], 1))


def test_no_keys_at_all(isa, rng, dtype):
    q, k, v = tensors(rng, 21, 0, dtype)
    for options in (
        {},
        {"causal": True},
        {"mask": np.ones((21, 1), bool)},
        {"mask": np.ones((21, 0), bool)},
        {"kv_lengths": [0, 0]},
    ):
        out, lse = gqa.attention(q, k, v, return_lse=True, **options)
        assert out.shape == (2, 4, 21, 12)
        assert not out.any()
        assert np.isneginf(lse).all()


# ---- only False and -inf mask ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_dtype", DTYPES)
def test_a_row_of_the_lowest_finite_mask_is_an_ordinary_row(isa, rng, dtype, mask_dtype, size):
    """The scores drown in it, so all keys weigh the same."""
    q, k, v = tensors(rng, *size, dtype)
    mask = np.full((1, 1), ml_dtypes.finfo(DTYPES[mask_dtype]).min)
    out, lse = gqa.attention(q, k, v, mask=mask, return_lse=True)
    if mask_dtype == "float16":
        assert_close(out, oracle.attention(q, k, v)[0], magnitude=2000)  # -65504 leaves the scores 7 bits in float32
    else:
        mean = np.repeat(v.astype(np.float64).mean(2, keepdims=True), 2, 1)
        assert_close(out, np.broadcast_to(mean, out.shape))
    assert np.isfinite(lse).all()


@pytest.mark.parametrize("value", [-1e4, -3e38, 3e38])
def test_one_key_of_another_finite_mask_value(isa, rng, size, value):
    q, k, v = tensors(rng, *size)
    mask = np.zeros(size[1], np.float32)
    mask[size[1] // 2] = value
    out = gqa.attention(q, k, v, mask=mask)
    assert_close(out, oracle.attention(q, k, v, mask=mask)[0])


def test_positive_infinity_in_a_mask_is_not_a_number(isa, rng, size):
    q, k, v = tensors(rng, *size)
    mask = np.zeros(size, np.float32)
    mask[0, 1] = np.inf
    out, _ = gqa.attention(q, k, v, mask=mask, return_lse=True)
    assert np.isnan(out[:, :, 0]).all()
    assert np.isfinite(out[:, :, 1:]).all()


def test_any_byte_but_zero_is_true(isa, rng, size):
    q, k, v = tensors(rng, *size)
    mask = rng.integers(0, 2, size).astype(np.uint8) * rng.integers(1, 256, size).astype(np.uint8)
    expected = gqa.attention(q, k, v, mask=mask != 0)
    assert_same_bits(gqa.attention(q, k, v, mask=mask.view(bool)), expected)


# ---- broadcasting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize(
    "shape",
    [(), (1,), ("T",), ("S", 1), (1, "T"), ("S", "T"), ("H", 1, 1), ("H", "S", "T"), (1, "S", "T"), ("H", 1, "T"), ("H", "S", 1),
     ("B", 1, 1, 1), ("B", 1, 1, "T"), ("B", 1, "S", "T"), (1, "H", "S", 1), (1, 1, 1, 1), ("B", "H", "S", "T")],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_a_mask_broadcasts_by_numpy_rules_in_any_layout(isa, rng, shape, kind, layout, size):
    q, k, v = tensors(rng, *size)
    sizes = {"B": 2, "H": 4, "S": size[0], "T": size[1], 1: 1}
    mask = np.array(rng.standard_normal([sizes[n] for n in shape]), np.float32)
    mask = np.asarray(mask > -0.5) if kind == "bool" else mask
    expected, _ = oracle.attention(q, k, v, mask=mask)
    if layout == "bhsd":
        assert_close(gqa.attention(q, k, v, mask=mask), expected)
    else:
        q, k, v = (np.ascontiguousarray(x.swapaxes(1, 2)) for x in (q, k, v))
        assert_close(gqa.attention(q, k, v, mask=mask, layout=layout), expected.swapaxes(1, 2))


@pytest.mark.parametrize("shape", [(), ("T",), ("S", "T"), ("H", 1, "T"), ("H", "S", "T")], ids=str)
def test_a_mask_without_the_batch(isa, rng, shape, size):
    q, k, v = (x[0] for x in tensors(rng, *size))
    mask = np.asarray(rng.random([{"H": 4, "S": size[0], "T": size[1], 1: 1}[n] for n in shape]) < 0.8)
    assert_close(gqa.attention(q, k, v, mask=mask), oracle.attention(q, k, v, mask=mask)[0])


def test_a_mask_spans_all_keys_also_where_lengths_are_given(isa, rng, size):
    q, k, v = tensors(rng, *size)
    mask = rng.random(size) < 0.8
    check(q, k, v, mask=mask, kv_lengths=np.array([size[1] - 3, size[1] // 2]))
    with pytest.raises(ValueError, match="mask"):
        gqa.attention(q, k, v, mask=mask[:, :-3], kv_lengths=np.full(2, size[1] - 3))


# ---- NaN and infinity -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["k", "v", "both"])
@pytest.mark.parametrize("how", ["bool mask", "float mask", "lengths", "causal", "window"])
def test_masked_keys_do_not_leak(isa, rng, dtype, size, how, where, poison):
    q, k, v = tensors(rng, *size, dtype)
    queries, keys = size
    hidden = np.zeros((2, keys), bool)
    hidden[:, keys - queries // 2 - 2 :] = True  # the last rows would see them but for the options below
    options = {
        "bool mask": {"mask": ~hidden[:, None, None]},
        "float mask": {"mask": np.where(hidden, -np.inf, 0.25).astype(np.float32)[:, None, None]},
        "lengths": {"kv_lengths": (~hidden).sum(1)},
        "causal": {"causal": True, "query_offset": keys - queries // 2 - 2 - queries},
        "window": {"window": (None, 3), "query_offset": keys - queries // 2 - 5 - queries},
    }[how]
    clean = gqa.attention(q, k, v, return_lse=True, **options)
    for name, x in (("k", k), ("v", v)):
        if where in (name, "both"):
            x[np.broadcast_to(hidden[:, None], x.shape[:3])] = poison
    dirty = gqa.attention(q, k, v, return_lse=True, **options)
    assert np.isfinite(clean[0].astype(np.float64)).all()
    assert_close(dirty[0], clean[0].astype(np.float64))
    assert_lse_close(dirty[1], clean[1].astype(np.float64))


def test_keys_that_some_rows_see_do_not_leak_to_the_others(isa, rng, dtype, size):
    """NaN in the value of one key: rows that attend it are NaN, the others do not change."""
    q, k, v = tensors(rng, *size, dtype)
    mask = rng.random((2, 4, *size)) < 0.5
    mask[..., 0] = True
    bad = size[1] * 2 // 3
    clean = gqa.attention(q, k, v, mask=mask)
    v[:, :, bad] = np.nan
    out = gqa.attention(q, k, v, mask=mask)
    assert np.isnan(out[mask[..., bad]]).all()
    assert_close(out[~mask[..., bad]], clean[~mask[..., bad]].astype(np.float64))


def test_future_values_do_not_leak_under_a_causal_mask(isa, rng, dtype):
    q, k, v = tensors(rng, 60, 150, dtype)
    clean = gqa.attention(q, k, v, causal=True)
    k[:, :, 130:], v[:, :, 130:] = np.nan, np.inf
    out = gqa.attention(q, k, v, causal=True)
    assert_close(out[:, :, :40], clean[:, :, :40].astype(np.float64))
    assert np.isnan(out[:, :, 40:]).all()


@pytest.mark.parametrize("tensor", ["data", "scale"])
@pytest.mark.parametrize("name", ["k", "v"])
def test_masked_quantised_keys_do_not_leak(isa, rng, size, name, tensor):
    q, k, v = tensors(rng, *size)
    x = {"k": gqa.quantize(k), "v": gqa.quantize(v)}
    mask = np.ones(size[1], bool)
    mask[-5:] = False
    clean = gqa.attention(q, **x, mask=mask)
    if tensor == "scale":
        x[name].scale[:, :, -5:] = np.nan
    else:
        x[name].data[:, :, -5:] = -128
    assert_close(gqa.attention(q, **x, mask=mask), clean.astype(np.float64))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_bad_query_spoils_its_own_row_only(isa, rng, dtype, size, poison):
    q, k, v = tensors(rng, *size, dtype)
    clean = gqa.attention(q, k, v)
    q[1, 2, -1, 3] = poison
    out, lse = gqa.attention(q, k, v, return_lse=True)
    assert np.isnan(out[1, 2, -1]).all()
    assert np.isnan(lse[1, 2, -1])
    out[1, 2, -1] = clean[1, 2, -1]
    assert_same_bits(out, clean)


def test_a_bad_query_without_keys_is_zero(isa, rng, dtype, size):
    q, k, v = tensors(rng, *size, dtype)
    q[...] = np.nan
    out = gqa.attention(q, k, v, kv_lengths=[0, 0])
    assert not out.any()


@pytest.mark.parametrize("option", ["nothing", "mask", "softcap", "sinks"])
def test_an_attended_nan_in_k_makes_the_row_nan(isa, rng, dtype, size, option):
    q, k, v = tensors(rng, *size, dtype)
    options = {
        "nothing": {},
        "mask": {"mask": np.ones(size, bool)},
        "softcap": {"softcap": 3.0},
        "sinks": {"sinks": np.ones(4, np.float32)},
    }[option]
    k[0, 1, size[1] // 2] = np.nan  # heads 2 and 3 of q
    out, lse = gqa.attention(q, k, v, return_lse=True, **options)
    assert np.isnan(out[0, 2:]).all()
    assert np.isnan(lse[0, 2:]).all()
    assert np.isfinite(out[0, :2].astype(np.float32)).all()
    assert np.isfinite(out[1].astype(np.float32)).all()


def test_all_scores_nan(isa, rng, dtype, size):
    q, k, v = tensors(rng, *size, dtype)
    k[...] = np.nan
    out, lse = gqa.attention(q, k, v, return_lse=True)
    assert np.isnan(out).all()
    assert np.isnan(lse).all()


def test_an_attended_nan_in_a_mask_makes_the_row_nan(isa, rng, size):
    q, k, v = tensors(rng, *size)
    mask = np.zeros(size, np.float32)
    mask[-1, 0] = np.nan
    out = gqa.attention(q, k, v, mask=mask)
    assert np.isnan(out[:, :, -1]).all()
    assert np.isfinite(out[:, :, :-1]).all()


# ---- extreme logits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_extreme_logits(isa, rng, dtype, size, logit):
    """Multiples of 64 are exact in every dtype and far apart, so each row has one winner, or equals that tie."""
    queries, keys = size
    q, k, v = tensors(rng, queries, keys, dtype)
    q[...], k[...] = 0, 0
    q[..., 0] = 1
    k[..., 0] = rng.integers(-2, 3, (2, 2, keys)) * 64
    out, lse = gqa.attention(q, k, v, scale=logit / 128, return_lse=True)
    expected_out, expected_lse = oracle.attention(q, k, v, scale=logit / 128)
    assert_close(out, expected_out)
    assert_lse_close(lse, expected_lse)


@pytest.mark.parametrize("sink", [-1e4, 0.0, 1e4, -np.inf])
def test_sinks_join_the_denominator_only(isa, rng, dtype, size, sink):
    q, k, v = tensors(rng, *size, dtype)
    sinks = np.array([sink, -1.0, sink, 2.0]).astype(dtype)
    out, lse = check(q, k, v, sinks=sinks)
    plain, plain_lse = gqa.attention(q, k, v, return_lse=True)
    if sink < -1:
        assert_close(out[:, 0], plain[:, 0].astype(np.float64))
        assert_lse_close(lse[:, 0], plain_lse[:, 0].astype(np.float64))
