"""What gqa.nn.MultiHeadAttention refuses."""

import numpy as np
import pytest

from gqa.nn import MultiHeadAttention
from nn_reference import make


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": None}, TypeError, "query is a NoneType, expected a dict"),
        ({"query_ln": {"scale": np.ones(3)}}, ValueError, "state has an unknown 'query_ln'"),
        ({"out": {"kernel": np.ones((4, 3, 12))}}, ValueError, "out has no 'bias'"),
        ({"key": {"kernel": np.ones((12, 4, 3)), "bias": np.ones((4, 3)), "scale": 1}}, ValueError, "unknown 'scale'"),
        (
            {"key": {"kernel": np.ones((12, 12)), "bias": np.ones((4, 3))}},
            ValueError,
            r"key\.kernel has shape \(12, 12\)",
        ),
        ({"key": {"kernel": np.ones((12, 4, 3)), "bias": np.ones((4, 3), int)}}, TypeError, "key.bias has dtype int64"),
    ],
)
def test_load_refuses_what_does_not_fit_and_changes_nothing(change, error, message):
    layer = make()
    state = {
        name: {"kernel": np.zeros_like(part.kernel), "bias": np.zeros_like(part.bias)}
        for name, part in (("query", layer.query), ("key", layer.key), ("value", layer.value), ("out", layer.out))
    }
    with pytest.raises(error, match=message):
        layer.load(state | change)
    with pytest.raises(ValueError, match="state has no 'value'"):
        layer.load({name: part for name, part in state.items() if name != "value"})
    assert layer.query.kernel.all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_heads": 5}, ValueError, "qkv_features is 12, expected a multiple of num_heads 5"),
        ({"num_kv_heads": 3}, ValueError, "num_kv_heads is 3, which does not divide num_heads 4"),
        ({"num_kv_heads": 8}, ValueError, "num_kv_heads is 8, which does not divide"),
        ({"num_kv_heads": 2, "num_key_value_heads": 4}, ValueError, "num_kv_heads is 2, but num_key_value_heads is 4"),
        ({"num_heads": 0}, ValueError, "num_heads is 0"),
        ({"num_kv_heads": 0}, ValueError, "num_kv_heads is 0"),
        ({"in_features": 12.0}, TypeError, "in_features is 12.0"),
        ({"dropout_rate": 1.0}, ValueError, "dropout_rate is 1.0"),
        ({"dropout_rate": -0.1}, ValueError, "dropout_rate is -0.1"),
        ({"use_bias": 1}, TypeError, "use_bias is 1"),
        ({"dtype": "int8"}, TypeError, "dtype is int8"),
    ],
)
def test_wrong_constructor_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        MultiHeadAttention(**{"num_heads": 4, "in_features": 12} | arguments)


X = np.ones((2, 5, 12), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inputs_q": X.tolist()}, TypeError, "inputs_q is a list"),
        ({"inputs_q": X.astype(int)}, TypeError, "inputs_q has dtype int64"),
        ({"inputs_q": X[..., :3]}, ValueError, r"inputs_q has shape \(2, 5, 3\), expected \(..., length, 12\)"),
        ({"inputs_q": X[0, 0]}, ValueError, r"inputs_q has shape \(12,\)"),
        ({"inputs_v": X}, ValueError, "inputs_v is given without inputs_k"),
        ({"inputs_k": X[:1]}, ValueError, r"inputs_k has shape \(1, 5, 12\), expected \(2, 5, 12\)"),
        ({"inputs_k": X[0]}, ValueError, r"inputs_k has shape \(5, 12\), expected \(2, 5, 12\)"),
        ({"inputs_k": X, "inputs_v": X[:, :4]}, ValueError, r"inputs_v has shape \(2, 4, 12\), expected \(2, 5, 12\)"),
        ({"mask": np.ones((3, 1, 5, 5), bool)}, ValueError, r"does not broadcast to \(2, 4, 5, 5\)"),
        ({"mask": [[True] * 5] * 5}, TypeError, "mask is a list"),
        ({"mask": np.triu(np.full((5, 5), -np.inf), 1)}, ValueError, "mask has negative values"),
        ({"mask": np.full((5, 5), np.nan)}, ValueError, "mask has negative values or NaN"),
        ({"is_causal": 1}, TypeError, "is_causal is 1"),
        ({"deterministic": 0}, TypeError, "deterministic is 0"),
        ({"num_threads": 0}, ValueError, "num_threads is 0, expected at least 1"),
    ],
)
def test_wrong_call_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        make()(**{"inputs_q": X} | arguments)


@pytest.mark.parametrize("shape", [(12,), (2, 5, 11), (), (2, -1, 12)])
def test_wrong_cache_shapes(shape):
    with pytest.raises(ValueError, match="input_shape is"):
        make().init_cache(shape)
