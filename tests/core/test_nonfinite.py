"""NaN and infinity: what is masked does not leak, and what is attended shows in its own rows alone."""

import numpy as np
import pytest

import gqa
from cases import tensors
from compare import assert_close, assert_lse_close, assert_same_bits, naming


@pytest.mark.parametrize("how", ["bool mask", "float mask", "lengths", "causal", "window"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_masked_keys_do_not_leak(isa, rng, dtype, size, how, poison):
    queries, keys = size
    first = keys - queries // 2 - 2  # of the hidden ones, which the last rows would see but for the options
    seen = np.broadcast_to(np.arange(keys) < first, (2, 1, 1, keys))
    options = {
        "bool mask": {"mask": seen},
        "float mask": {"mask": np.where(seen, 0.25, -np.inf).astype(np.float32)},
        "lengths": {"kv_lengths": np.full(2, first)},
        "causal": {"causal": True, "query_offset": first - queries},
        "window": {"window": (None, 3), "query_offset": first - queries - 3},
    }[how]
    q, k, v = tensors(rng, *size, dtype)
    clean, clean_lse = gqa.attention(q, k, v, return_lse=True, **options)
    assert np.isfinite(clean.astype(np.float64)).all()
    for where in ("k", "v", "kv"):
        poisoned = {"k": k.copy(), "v": v.copy()}
        for name in where:
            poisoned[name][:, :, first:] = poison
        with naming(where):
            out, lse = gqa.attention(q, **poisoned, return_lse=True, **options)
            assert_close(out, clean.astype(np.float64))
            assert_lse_close(lse, clean_lse.astype(np.float64))


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


@pytest.mark.parametrize("v_head_dim", [1, 4, 19])
@pytest.mark.parametrize(("group", "queries"), [(1, 1), (3, 1), (4, 2), (1, 30)])
def test_masked_values_of_any_size_do_not_leak(isa, rng, dtype, group, queries, v_head_dim):
    """Tiles of every height, in the channels as in the rows: one row, three, four, and rows in the lanes."""
    q, k, v = tensors(rng, queries, 150, dtype, heads=(2 * group, 2), v_head_dim=v_head_dim)
    mask = rng.random(150) < 0.5
    mask[0] = True
    clean, clean_lse = gqa.attention(q, k, v, mask=mask, return_lse=True)
    v[:, :, ~mask] = np.nan
    out, lse = gqa.attention(q, k, v, mask=mask, return_lse=True)
    assert_close(out, clean.astype(np.float64))
    assert_same_bits(lse, clean_lse)


@pytest.mark.parametrize("v_head_dim", [12, 19])
@pytest.mark.parametrize("tensor", ["data", "scale"])
@pytest.mark.parametrize("name", ["k", "v"])
def test_masked_quantised_keys_do_not_leak(isa, rng, size, name, tensor, v_head_dim):
    q, k, v = tensors(rng, *size, v_head_dim=v_head_dim)
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


def test_an_attended_nan_in_k_makes_the_row_nan(isa, rng, dtype, size):
    q, k, v = tensors(rng, *size, dtype)
    k[0, 1, size[1] // 2] = np.nan  # heads 2 and 3 of q
    sinks = np.ones(4, np.float32)
    for options in ({}, {"mask": np.ones(size, bool)}, {"softcap": 3.0}, {"sinks": sinks}, {"causal": True}):
        with naming(options):
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
