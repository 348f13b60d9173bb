"""Rotary embedding against its definition in float64, and its tables against transformers' values."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compare import assert_close, assert_same_bits
from gqa.rotary_embedding import rotary, rotary_tables
from oracle import wide

LAYOUTS = ("bhsd", "bshd")
MODELS = json.loads((Path(__file__).parents[1] / "support" / "fixtures" / "rotary_scaling.json").read_text())["models"]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}


def turned(x, cos, sin, positions, interleaved):
    """x (B, H, S, D) by definition: a pair of channels is a complex number, multiplied by cos + i sin."""
    x, half = wide(x), cos.shape[1]
    factor = (wide(cos) + 1j * wide(sin))[np.atleast_2d(positions)][:, None]
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(half), slice(half, 2 * half))
    )
    pairs = (x[..., first] + 1j * x[..., second]) * factor
    out = x.copy()
    out[..., first], out[..., second] = pairs.real, pairs.imag
    return out


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("rotary_dim", "head_dim"),
    [(0, 3), (2, 2), (6, 9), (32, 32), (34, 64), (128, 128), (128, 131), (514, 514), (1030, 1031)],
)
def test_every_dtype_turns_pairs_and_rounds_once(isa, dtype, rng, rotary_dim, head_dim, interleaved):
    x = rng.standard_normal((2, 3, 5, head_dim)).astype(dtype)
    cos, sin = rng.uniform(-1, 1, (2, 40, rotary_dim // 2)).astype(np.float64 if dtype is np.float64 else np.float32)
    positions = rng.integers(0, 40, (2, 5))
    out = rotary(x, cos, sin, positions=positions, interleaved=interleaved)
    assert out.dtype == dtype
    assert_close(out, turned(x, cos, sin, positions, interleaved))
    assert_same_bits(out[..., rotary_dim:], np.ascontiguousarray(x[..., rotary_dim:]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_the_number_of_threads_changes_nothing(isa, dtype, rng, layout, interleaved):
    """Enough for several threads, of tokens that no number of threads divides."""
    x = rng.standard_normal((3, 211, 7, 66)).astype(dtype)
    x = x if layout == "bshd" else x.swapaxes(1, 2)
    cos, sin = rotary_tables(300, 64)
    positions = rng.integers(0, 300, (3, 211))
    results = [
        rotary(x, cos, sin, positions=positions, interleaved=interleaved, layout=layout, num_threads=threads)
        for threads in (1, 2, 5, 1000, None)
    ]
    for result in results:
        assert_same_bits(result, results[0])
    by_token = [
        rotary(row[None], cos, sin, positions=places[None], interleaved=interleaved, layout=layout)
        for row, places in zip(x, positions)
    ]
    assert_same_bits(np.concatenate(by_token), results[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("positions", "rows"),
    [
        (None, [0, 1, 2, 3]),
        (7, [7, 8, 9, 10]),
        (np.int32(7), [7, 8, 9, 10]),
        ([3, 0, 3, 19], [3, 0, 3, 19]),
        (np.array([[3, 16], [0, 17], [3, 18], [19, 0]]).T, [[3, 0, 3, 19], [16, 17, 18, 0]]),
        (np.array([3, 0, 3, 19], np.uint8), [3, 0, 3, 19]),
        ([[0, 1, 2, 3], [16, 17, 18, 19]], [[0, 1, 2, 3], [16, 17, 18, 19]]),
    ],
)
def test_positions_select_rows(rng, layout, positions, rows):
    x = rng.standard_normal((2, 3, 4, 8), np.float32)
    cos, sin = rotary_tables(20, 8)
    given = x if layout == "bhsd" else np.ascontiguousarray(x.swapaxes(1, 2))
    out = rotary(given, cos, sin, positions=positions, layout=layout)
    assert_close(out if layout == "bhsd" else out.swapaxes(1, 2), turned(x, cos, sin, np.array(rows), False))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_a_batch(rng, layout):
    x = rng.standard_normal((3, 4, 8), np.float32)
    tables = rotary_tables(20, 8)
    tokens = x.shape[1 if layout == "bhsd" else 0]
    for positions in (None, 5, np.arange(tokens)[::-1]):
        out = rotary(x, *tables, positions=positions, layout=layout)
        assert_same_bits(out, rotary(x[None], *tables, positions=positions, layout=layout)[0])


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::-1, ::2],
        lambda x: x[..., ::2],
        lambda x: x[..., ::-1],
        lambda x: x.swapaxes(1, 2),
        lambda x: x.T,
        lambda x: np.broadcast_to(x[:1, :1], x.shape),
    ],
)
def test_any_strides_are_read_and_left_alone(rng, dtype, view):
    whole = rng.standard_normal((6, 6, 6, 6)).astype(dtype)
    before = whole.copy()
    x = view(whole)
    cos, sin = rotary_tables(6, 2)
    assert_same_bits(rotary(x, cos, sin), rotary(x.copy(), cos, sin))
    assert_same_bits(rotary(x, cos.T.copy().T, sin[::-1].copy()[::-1]), rotary(x, cos, sin))
    assert_same_bits(whole, before)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (2, 0, 4), (0, 3, 4)])
def test_empty(dtype, shape):
    out = rotary(np.ones(shape, dtype), *rotary_tables(8, 4))
    assert out.shape == shape
    assert out.dtype == dtype


def test_tables_of_any_dtype_are_converted_to_what_x_is_computed_in(rng, dtype):
    cos, sin = rotary_tables(8, 6, dtype=dtype)
    for x in (rng.standard_normal((1, 2, 8, 6)), rng.standard_normal((1, 2, 8, 6), np.float32)):
        narrow = [table.astype(x.dtype) for table in (cos, sin)]
        assert_same_bits(rotary(x, cos, sin), rotary(x, *narrow))


def test_nan_and_infinity_stay_in_their_row(rng):
    x = rng.standard_normal((1, 2, 4, 6), np.float32)
    tables = rotary_tables(4, 6)
    clean = rotary(x, *tables)
    x[0, 1, 2], x[0, 0, 3] = np.nan, np.inf
    out = rotary(x, *tables)
    assert np.isnan(out[0, 1, 2]).all()
    assert not np.isfinite(out[0, 0, 3]).any()
    assert_same_bits(out[:, 0, :3], clean[:, 0, :3])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500), st.integers(1, 40), st.booleans())
def test_scores_depend_on_the_distance_alone(m, n, shift, pairs, interleaved):
    q, k = np.random.default_rng(pairs).standard_normal((2, 1, 1, 2 * pairs))
    tables = rotary_tables(1001, 2 * pairs, dtype="float64")

    def score(m, n):
        return np.vdot(*(rotary(x, *tables, positions=p, interleaved=interleaved) for x, p in ((q, m), (k, n))))

    assert score(m, n) == pytest.approx(score(m + shift, n + shift), rel=1e-11, abs=1e-11)


X = np.ones((2, 3, 4, 8), np.float32)
COS, SIN = rotary_tables(16, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X.tolist()}, TypeError, "x is a list"),
        ({"x": X.astype(np.int32)}, TypeError, "x has dtype int32"),
        ({"x": X.astype(">f4")}, TypeError, "x has dtype '>f4'"),
        ({"cos": COS.astype(complex)}, TypeError, "cos has dtype complex128"),
        ({"sin": None}, TypeError, "sin is a NoneType"),
        ({"x": X[0, 0]}, ValueError, r"x has shape \(4, 8\)"),
        ({"x": X[..., :6]}, ValueError, "cos has 4 columns for 8 channels, but x has 6"),
        ({"cos": COS[None]}, ValueError, r"cos has shape \(1, 16, 4\)"),
        ({"sin": SIN[:15]}, ValueError, r"sin has shape \(15, 4\), expected \(16, 4\)"),
        ({"layout": "sbhd"}, ValueError, "layout is 'sbhd'"),
        ({"interleaved": 1}, TypeError, "interleaved is 1"),
        ({"num_threads": 0}, ValueError, "num_threads is 0, expected at least 1"),
        ({"num_threads": 1.0}, TypeError, "num_threads is 1.0"),
        ({"positions": -1}, ValueError, "positions is -1, expected at least 0"),
        ({"positions": 13}, ValueError, "positions 13 to 16 of x are beyond the 16 rows"),
        ({"positions": 2**80}, ValueError, "beyond the 16 rows"),
        ({"positions": True}, TypeError, "positions is True"),
        ({"positions": 1.0}, TypeError, "positions is 1.0"),
        ({"positions": [0.0, 1.0, 2.0, 3.0]}, TypeError, "positions has dtype float64"),
        ({"positions": [0, 1, 2, 16]}, ValueError, "positions has 16, expected 0 to 15"),
        ({"positions": [0, -1, 2, 20]}, ValueError, "positions has -1, expected 0 to 15"),
        ({"positions": np.array([0, 1, 2, 2**64 - 1], np.uint64)}, ValueError, "expected 0 to 15"),
        ({"positions": [0, 1, 2]}, ValueError, r"positions has shape \(3,\), expected \(4,\)"),
        ({"positions": np.zeros((3, 4), int)}, ValueError, r"positions has shape \(3, 4\), expected \(2, 4\)"),
        ({"x": X[0], "positions": np.zeros((1, 4), int)}, ValueError, r"expected \(4,\)"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        rotary(**{"x": X, "cos": COS, "sin": SIN} | arguments)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["name"])
def test_frequencies_and_magnitude_are_those_of_transformers(model):
    dim, base = model["rotary_dim"], model["base"]
    cos, sin = rotary_tables(2, dim, base=base, scaling=model["scaling"], dtype="float64")
    assert cos[0] == pytest.approx(np.full(dim // 2, model["attention_factor"]), rel=1e-15)
    assert (sin[0] == 0).all()
    np.testing.assert_allclose(np.arctan2(sin[1], cos[1]), model["inv_freq"], rtol=5e-7)  # theirs are float32


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["name"])
def test_tables_are_those_of_transformers_llama(model):
    pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    dim, base, scaling = model["rotary_dim"], model["base"], model["scaling"]
    config = llama.LlamaConfig(
        hidden_size=dim, num_attention_heads=1, head_dim=dim, rope_theta=base, rope_scaling=scaling and dict(scaling)
    )
    positions = llama.torch.arange(64)[None]
    expected = llama.LlamaRotaryEmbedding(config)(llama.torch.zeros(1), positions)
    for table, theirs in zip(rotary_tables(64, dim, base=base, scaling=scaling), expected):
        np.testing.assert_allclose(table, theirs[0, :, : dim // 2].numpy(), rtol=0, atol=64 * 5e-7)


def test_angles_grow_with_the_position_and_are_rounded_once(dtype):
    cos, sin = rotary_tables(2**17, 4, base=100.0, dtype=dtype)
    angles = np.arange(2**17) * [[1.0], [0.1]]
    assert cos.dtype == sin.dtype == dtype
    exact = dtype is np.float64
    np.testing.assert_allclose(wide(cos), np.cos(angles).T.astype(dtype).astype(float), rtol=0, atol=1e-10 * exact)
    np.testing.assert_allclose(wide(sin), np.sin(angles).T.astype(dtype).astype(float), rtol=0, atol=1e-10 * exact)


def test_scalings_that_change_nothing():
    plain = rotary_tables(32, 8)
    one = {"factor": 1}
    for scaling in ({"rope_type": "default"}, {"type": "linear"} | one, LLAMA3 | one, YARN | one):
        for table, expected in zip(rotary_tables(32, 8, scaling=scaling | {"rope_theta": 10000}), plain):
            assert_same_bits(table, expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_position": -1}, ValueError, "max_position is -1"),
        ({"max_position": 1.5}, TypeError, "max_position is 1.5"),
        ({"rotary_dim": 7}, ValueError, "rotary_dim is 7, expected an even number"),
        ({"rotary_dim": 0}, ValueError, "rotary_dim is 0, expected at least 2"),
        ({"base": 0.0}, ValueError, "base is 0.0, expected more than 1"),
        ({"base": np.nan}, ValueError, "base is nan"),
        ({"base": "1e4"}, TypeError, "base is '1e4'"),
        ({"dtype": "int8"}, TypeError, "dtype is int8"),
        ({"scaling": "linear"}, TypeError, "scaling is a str"),
        ({"scaling": {}}, ValueError, "scaling has rope_type None, expected one of 'default', 'linear'"),
        ({"scaling": {"rope_type": "longrope"}}, ValueError, "scaling has rope_type 'longrope'"),
        ({"scaling": {"type": "linear"}}, ValueError, "scaling has no factor"),
        ({"scaling": {"type": "linear", "factor": 0.5}}, ValueError, "scaling's factor is 0.5"),
        ({"scaling": {"type": "linear", "factor": "8"}}, TypeError, "scaling's factor is '8'"),
        ({"scaling": {"type": "default", "rope_theta": 5e5}}, ValueError, "rope_theta 500000.0, but base is 10000.0"),
        ({"scaling": LLAMA3 | {"high_freq_factor": 1.0}}, ValueError, "high_freq_factor 1.0, expected more than"),
        ({"scaling": LLAMA3 | {"low_freq_factor": None}}, ValueError, "scaling has no low_freq_factor"),
        ({"scaling": YARN | {"original_max_position_embeddings": None}}, ValueError, "no original_max_position"),
        ({"scaling": YARN | {"beta_fast": 0.5}}, ValueError, "beta_fast 0.5 and beta_slow 1.0"),
        ({"scaling": YARN | {"attention_factor": -1.0}}, ValueError, "scaling's attention_factor is -1.0"),
        ({"scaling": YARN | {"truncate": "no"}}, TypeError, "scaling's truncate is 'no'"),
    ],
)
def test_wrong_table_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        rotary_tables(**{"max_position": 8, "rotary_dim": 8} | arguments)


def test_bfloat16_by_name_or_type():
    assert rotary_tables(2, 2, dtype="bfloat16")[0].dtype == rotary_tables(2, 2, dtype=ml_dtypes.bfloat16)[0].dtype
